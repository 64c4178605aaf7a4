"""Sequence classifiers of transformers as judges of answers.

Shapes: B texts, K labels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rllava.errors import UserError
from rllava.metrics.judges.judge import Exchange, Judge, Verdict
from rllava.model.language import load_tokenizer
from rllava.pretrained import read_pretrained
from rllava.weights import Weighted, check_weights, readable

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits_BK: logits_BK.softmax(1),
}


def check_labels(spec: Weighted, flags: Sequence[str]) -> list[str]:
    """The labels of a classifier, in the order of its logits.

    Args:
        flags: that have to be among them.

    Raises:
        UserError: if weights are missing, the configuration cannot be read, or a label is not there.
    """
    path = check_weights(spec)
    assert path is not None
    try:
        config = AutoConfig.from_pretrained(path)
        labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(f"{spec.label}: {path} holds no classifier of transformers ({reason})") from error
    if unknown := [name for name in flags if name not in labels]:
        raise UserError(f"{spec.label}: no label {', '.join(unknown)}; it has {', '.join(labels)}")
    return labels


def load_classifier(
    spec: Weighted, text: str, *, flags: Sequence[str], function: str, threshold: float, max_length: int
) -> Judge:
    """Loads a classifier onto this process's GPU, or its CPUs.

    Args:
        text: see :class:`rllava.metrics.judges.classifier.Classifier`, as all others.

    Raises:
        UserError: if weights are missing, have another hash or do not fit, or there is no tokenizer.
    """
    labels = check_labels(spec, flags)
    path = check_weights(spec)
    assert path is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(path, spec.label, padding_side="right")
    with readable(path, spec.label):
        model = read_pretrained(AutoModelForSequenceClassification, "weights", path).to(device).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    # Decoders read the last token that is no padding. Were the end token taken for it, the end of a text would be lost.
    together = tokenizer.pad_token is not None
    counting = [labels.index(name) for name in flags] or list(range(len(labels)))

    @torch.no_grad()
    def scores(texts: list[str]) -> list[list[float]]:
        encoded: Any = tokenizer(
            texts, truncation=True, max_length=max_length, padding=together, return_tensors="pt"
        ).to(device)
        score_BK = FUNCTIONS[function](model(**encoded).logits.float())
        return list(score_BK.tolist())

    def judge(exchanges: Sequence[Exchange]) -> list[Verdict]:
        texts = [exchange.fill(text) for exchange in exchanges]
        verdicts = []
        for score_K in scores(texts) if together else (score_K for one in texts for score_K in scores([one])):
            found = [labels[index] for index in counting if score_K[index] > threshold]
            highest = max(score_K[index] for index in counting)
            verdicts.append(Verdict(bool(found), highest, tuple(found), dict(zip(labels, score_K, strict=True))))
        return verdicts

    return judge
