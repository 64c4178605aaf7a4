"""Tokens and loss masks beside LLaVA's own code, on conversations where they can go wrong.

The golden file comes from ``tests/golden/llava/make_golden.py``. LLaVA counts tokens of parts, ours are found by their
place in the text; they differ where LLaVA's count fails and where a rule differs on purpose, and each such conversation
is named here with its reason.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, normalizers
from torch import nn

from rllava.errors import UserError
from rllava.model.conversation import IGNORE, IMAGE_TOKEN, TEMPLATES, Piece, Tokens, pieces, tokenize
from rllava.model.llava import Connector, spliced_labels
from tests.golden.llava.awkward import CONVERSATIONS

FOLDER = Path(__file__).parent.parent / "golden" / "llava"
GOLDEN = json.loads((FOLDER / "golden.json").read_text())
VISUAL = 5


def sentencepiece_like() -> Any:
    """The rules that Llama 2's tokenizer.json writes down: a blank before every text, even before one with a blank."""
    backend = Tokenizer.from_file(str(FOLDER / "tokenizer" / "tokenizer.json"))
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    # name: (tokenizer, what LLaMA's slow tokenizer calls "legacy")
    "transformers, legacy": (transformers.AutoTokenizer.from_pretrained(FOLDER / "tokenizer", legacy=True), True),
    "transformers": (transformers.AutoTokenizer.from_pretrained(FOLDER / "tokenizer", legacy=False), False),
    "tokenizer.json of Llama 2": (sentencepiece_like(), True),
}

IGNORED_BY_LLAVA = {
    "empty question": "the question is left out of the text and the count fails: ours asks it",
    "an answer that quotes the roles": "the text is split at the role and the whole conversation loses its loss",
    "an answer with the end token": "the text is split at the end token and the whole conversation loses its loss",
    "a question with the unknown token": "LLaVA pads with it and does not count it, so the whole conversation is lost",
}
DIFFERENT = {
    "blanks around an answer": "ours strips answers, as it strips those of a benchmark: LLaVA learns the blanks",
    "image in an answer": "LLaVA moves the marker to the front of the answer: ours leaves it, unlabelled, where it is",
    **IGNORED_BY_LLAVA,
}
# transformers 5 puts no blank before a text that begins with one; sentencepiece and LLaVA do. It matters only where
# text goes on with a blank after an image, which LLaVA's line break after the marker otherwise prevents.
DIFFERENT_IN_TRANSFORMERS = {"the image alone": "' ASSISTANT' follows the image", **DIFFERENT}


def small_connector(vocabulary: int) -> Connector:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.LlamaConfig(vocab_size=vocabulary, **sizes)
    return Connector([nn.Linear(3, 8)], transformers.LlamaForCausalLM(config))


def spans(labels: tuple[int, ...] | list[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for place, label in enumerate(labels):
        if label != IGNORE:
            if found and found[-1][1] == place:
                found[-1][1] += 1
            else:
                found.append([place, place + 1])
    return found


def conversation(tokenizer: Any, template: str, name: str) -> Tokens:
    return tokenize(tokenizer, pieces(TEMPLATES.get(template), CONVERSATIONS[name]))


def prompt(tokenizer: Any, template: str, name: str) -> list[int]:
    *before, (question, _) = CONVERSATIONS[name]
    return list(tokenize(tokenizer, pieces(TEMPLATES.get(template), [*before, (question, None)])).ids)


def rows(template: str, legacy: bool) -> list[dict[str, Any]]:
    return [row for row in GOLDEN["conversations"] if row["template"] == template and row["legacy"] == legacy]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", ["plain", "vicuna_v1", "llava_llama_2"])
def test_ids_labels_and_prompts_are_those_of_llava_but_for_the_named_conversations(template: str, kind: str) -> None:
    tokenizer, legacy = TOKENIZERS[kind]
    differing = set()
    for row in rows(template, legacy):
        sample = conversation(tokenizer, template, row["name"])
        assert all(label in (IGNORE, token) for token, label in zip(sample.ids, sample.labels, strict=True))
        same = list(sample.ids) == row["ids"] and spans(sample.labels) == row["loss"]
        if template != "plain":
            same = same and prompt(tokenizer, template, row["name"]) == row["prompt"]
        if not same:
            differing.add(row["name"])
    named = DIFFERENT if kind == "tokenizer.json of Llama 2" else DIFFERENT_IN_TRANSFORMERS
    if template == "plain":
        named = {name: reason for name, reason in named.items() if name == "image in an answer"}
    assert differing == set(named)


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_llama_2"])
@pytest.mark.parametrize("name", IGNORED_BY_LLAVA)
def test_conversations_that_llava_drops_teach_their_answers(name: str, template: str) -> None:
    for kind, (tokenizer, legacy) in TOKENIZERS.items():
        (row,) = [row for row in rows(template, legacy) if row["name"] == name]
        assert row["loss"] == []
        assert "mismatch" in row["printed"] or "AssertionError" in row["printed"]
        labels = [label for label in conversation(tokenizer, template, name).labels if label != IGNORE]
        end = " </s>" if template == "llava_llama_2" else "</s>"
        expected = "".join(f" {answer}{end}" for _, answer in CONVERSATIONS[name])
        written = "".join(tokenizer.convert_ids_to_tokens(labels)).replace("▁", " ")
        assert written.replace(" ", "") == expected.replace(" ", ""), kind


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_image_markers_anywhere_split_the_text_as_in_llava(kind: str) -> None:
    tokenizer, legacy = TOKENIZERS[kind]
    for row in [row for row in GOLDEN["texts"] if row["legacy"] == legacy]:
        ids = list(tokenize(tokenizer, [Piece(row["text"])]).ids)
        begins_with_a_blank = any(part.startswith(" ") for part in row["text"].split("<image>"))
        if begins_with_a_blank and kind != "tokenizer.json of Llama 2":
            continue
        assert ids == row["ids"], row["text"]


def test_cutting_at_the_context_length_keeps_the_loss_that_llava_keeps() -> None:
    tokenizer, _ = TOKENIZERS["tokenizer.json of Llama 2"]
    connector = small_connector(len(tokenizer))
    cut = 0
    for row in GOLDEN["cut"]:
        sample = conversation(tokenizer, row["template"], row["name"])
        labels = spliced_labels(sample, VISUAL)
        kept = labels[: row["limit"]]
        assert len(kept) == row["length"]
        assert spans(kept) == row["loss"]
        cut += len(kept) < len(labels)
        with torch.no_grad():
            _, count_1 = connector([torch.zeros(1, VISUAL, 3)], [sample], max_length=row["limit"])
        assert int(count_1) == sum(last - first for first, last in row["loss"])
    assert cut > len(GOLDEN["cut"]) // 2


def test_several_images_are_several_markers_and_one_clear_refusal() -> None:
    tokenizer, _ = TOKENIZERS["transformers"]
    sample = conversation(tokenizer, "vicuna_v1", "an image in each round")
    assert sample.ids.count(IMAGE_TOKEN) == 2
    connector = small_connector(len(tokenizer))
    with pytest.raises(UserError, match=r"shows 2 images.*one image per conversation"):
        connector([torch.zeros(1, VISUAL, 3)], [sample], max_length=100)
