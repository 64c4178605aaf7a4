"""Classifiers as judges: small random ones, written by transformers in its own format."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from detoxify import Detoxify
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.metrics.judges.classifier import BEAVER_DAM, DETOXIFY, Classifier
from rllava.metrics.judges.judge import Exchange, read_judge
from rllava.pinned import Pinned

CLASSES = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "a", "square", "is", "it", "what", "?", "beginning")
EXCHANGES = [
    Exchange("<image>\nwhat is it ?", "a red square"),
    Exchange("is it blue ?", "blue"),
    Exchange("what ?", "it is a red red blue square " * 40),
]


def bert(folder: Path, seed: int = 0, labels: tuple[str, ...] = CLASSES) -> Path:
    """A classifier of BERT's kind, as Detoxify's is."""
    folder.mkdir()
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=64, id2label=dict(enumerate(labels)), **sizes
    )
    model = transformers.BertForSequenceClassification(config)
    model.classifier.weight.data *= 60
    model.save_pretrained(folder)
    return folder


def described(tmp_path: Path, folder: Path, *lines: str) -> Classifier:
    path = tmp_path / "mine.toml"
    path.write_text("\n".join((f'weights = "{folder}"', "max_length = 32", *lines)))
    found = read_judge(f"classifier:{path}").pinned()
    assert isinstance(found, Classifier)
    return found


def test_scores_are_the_librarys_own(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    judge = read_judge(f"detoxify:{folder}").pinned()
    assert isinstance(judge, Classifier)
    verdicts = replace(judge, max_length=32).load()(EXCHANGES)
    pipeline = transformers.pipeline("text-classification", str(folder), device=-1)
    for exchange, verdict in zip(EXCHANGES, verdicts, strict=True):
        expected = pipeline(exchange.answer, top_k=None, function_to_apply="sigmoid", truncation=True, max_length=32)
        assert verdict.scores == pytest.approx({entry["label"]: entry["score"] for entry in expected}, abs=1e-5)
        assert verdict.labels == tuple(name for name in CLASSES if verdict.scores[name] > 0.5)
        assert verdict.flagged == bool(verdict.labels)
        assert verdict.score == max(verdict.scores.values())
    assert len({verdict.score for verdict in verdicts}) == 3


def test_scores_are_those_of_the_detoxify_package(tmp_path: Path) -> None:
    """The same weights, as a checkpoint of its release holds them."""
    folder = bert(tmp_path / "bert")
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    architecture = {
        "model_type": str(folder), "model_name": "BertForSequenceClassification",
        "tokenizer_name": "PreTrainedTokenizerFast", "num_classes": len(CLASSES),
    }  # fmt: skip
    config = {"arch": {"args": architecture}, "dataset": {"args": {"classes": list(CLASSES)}}}
    torch.save({"config": config, "state_dict": model.state_dict()}, tmp_path / "toxic_original.ckpt")
    theirs = Detoxify(checkpoint=str(tmp_path / "toxic_original.ckpt"))
    verdicts = read_judge(f"detoxify:{folder}").pinned().load()(EXCHANGES[:2])
    renamed = {"toxic": "toxicity", "severe_toxic": "severe_toxicity", "identity_hate": "identity_attack"}
    for exchange, verdict in zip(EXCHANGES, verdicts, strict=False):
        own = {renamed.get(name, name): score for name, score in verdict.scores.items()}
        assert own == pytest.approx(theirs.predict(exchange.answer), abs=1e-6)
    assert verdicts[0].scores != verdicts[1].scores


def test_an_answer_is_judged_by_itself(tmp_path: Path) -> None:
    judge = described(tmp_path, bert(tmp_path / "bert")).load()
    together = judge(EXCHANGES)
    for exchange, verdict in zip(EXCHANGES, together, strict=True):
        (alone,) = judge([exchange])
        assert alone.scores == pytest.approx(verdict.scores, abs=1e-5)
        assert alone.flagged == verdict.flagged


def test_only_labels_that_count_flag(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    (any_label,) = described(tmp_path, folder).load()(EXCHANGES[:1])
    high, low = any_label.labels[0], next(name for name in CLASSES if name not in any_label.labels)
    for flags, flagged in ((high, True), (low, False)):
        (verdict,) = described(tmp_path, folder, f'flags = ["{flags}"]').load()(EXCHANGES[:1])
        assert verdict.flagged == flagged
        assert verdict.scores == any_label.scores
    (most,) = described(tmp_path, folder, 'function = "softmax"').load()(EXCHANGES[:1])
    assert sum(most.scores.values()) == pytest.approx(1)
    (strict,) = described(tmp_path, folder, "threshold = 1.0").load()(EXCHANGES[:1])
    assert not strict.flagged


def test_a_question_may_be_read_with_its_answer(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    judge = described(tmp_path, folder, 'text = "{prompt} [SEP] {answer}"').load()
    one, two = judge([Exchange("<image>\nwhat ?", "red"), Exchange("blue ?", "red")])
    assert one.scores != two.scores
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(["[CLS]", "what", "?", "[SEP]", "red", "[SEP]"])])
        expected = model(ids).logits.sigmoid()[0].tolist()
    assert list(one.scores.values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_beaver_dam_reads_a_conversation_up_to_its_end(tmp_path: Path, pad: str | None) -> None:
    """A Llama with 14 labels, as the published weights are: the last token that is no padding is read."""
    folder = tmp_path / "beaver"
    words = {
        word: index
        for index, word in enumerate(("<unk>", "<s>", "</s>", "<pad>", "USER", "ASSISTANT", ":", "red", "what"))
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=pad
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(words), num_labels=14, eos_token_id=2, bos_token_id=1, **sizes)
    model = transformers.LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    judge = read_judge(f"beaver_dam:{folder}").pinned().load()
    verdicts = judge([Exchange("<image>\nwhat", "red"), Exchange("what what what", "red red")])
    text = "BEGINNING OF CONVERSATION: USER: what ASSISTANT:red</s>"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids[0, -1] == 2
    with torch.no_grad():
        score_PK = torch.nn.functional.linear(model.model(ids).last_hidden_state[0], model.score.weight).sigmoid()
    assert list(verdicts[0].scores.values()) == pytest.approx(score_PK[-1].tolist(), abs=1e-5)
    assert len(verdicts[0].scores) == 14
    (alone,) = judge([Exchange("what", "red")])
    assert alone.scores == pytest.approx(verdicts[0].scores, abs=1e-5), "padding is not read"


def test_the_identity_is_weights_and_settings(tmp_path: Path) -> None:
    first, second = bert(tmp_path / "one"), bert(tmp_path / "two", seed=1)
    judge = described(tmp_path, first)
    moved = replace(judge, weights=Pinned(str(tmp_path / "elsewhere"), judge.weights.sha256))  # type: ignore[union-attr]
    assert fingerprint(moved) == fingerprint(judge)
    assert moved.label == judge.label
    others = [described(tmp_path, second), replace(judge, threshold=0.4), replace(judge, flags=("toxic",))]
    assert len({fingerprint(other) for other in (judge, *others)}) == 4
    assert len({other.label for other in (judge, *others)}) == 4


def test_weights_that_are_not_there_are_missed_with_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    for spec, name in ((DETOXIFY, "unitary/toxic-bert"), (BEAVER_DAM, "PKU-Alignment/beaver-dam-7b")):
        (missing,) = spec.missing()
        assert missing.where.startswith(f"{tmp_path}/{name}/ (a folder")
        assert missing.source.startswith(f"the hub's {name}")
    bert(tmp_path / "unitary")  # a folder of the organisation, and no weights of that name
    assert DETOXIFY.missing()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (('flags = ["rude"]',), "judge mine: no label rude; it has toxic, severe_toxic"),
        (('flags = "toxic"',), r"flags = 'toxic'; write a list of labels"),
        (("treshold = 0.5",), "unknown treshold; known: name, weights, text"),
        (('text = "{prompt}"',), r"the text does not show the answer; write \{answer\}"),
        (('function = "argmax"',), "function = 'argmax'; expected sigmoid or softmax"),
        (('threshold = "high"',), "threshold = 'high' is of another kind"),
    ],
)
def test_a_bad_description_is_one_line(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    folder = bert(tmp_path / "bert")
    with pytest.raises(UserError, match=message) as caught:
        described(tmp_path, folder, *lines)
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="bert") as caught:
        read_judge(f"detoxify:{folder}").pinned().load()
    assert "\n" not in str(caught.value)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no classifier of transformers"):
        read_judge(f"detoxify:{folder}").pinned()
    with pytest.raises(UserError, match=r"judge classifier: give its file, classifier:FILE\.toml"):
        read_judge("classifier")
