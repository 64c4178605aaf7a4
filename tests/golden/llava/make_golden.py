"""Writes golden.json: the token ids and loss masks of LLaVA's own code for awkward conversations.

    PYTHONPATH=PATH_TO_A_CHECKOUT_OF_haotian-liu/LLaVA python tests/golden/llava/make_golden.py

In an environment of LLaVA's: torch, transformers 4.37.2, numpy < 2, accelerate 0.21, sentencepiece, protobuf, requests.
Of this project two neighbouring files are read and nothing is imported. The tokenizer is LLaMA's slow one, as in
LLaVA's training, on a sentencepiece model that is written from our vocabulary. Another vocabulary: ``--tokenizer``.
Made from LLaVA's commit c121f0432da2.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import itertools
import json
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from llava import conversation as conversation_lib
from llava.mm_utils import tokenizer_image_token
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.train import train
from transformers import LlamaTokenizer
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model_pb2

HERE = Path(__file__).parent
TEMPLATES = ("plain", "vicuna_v1", "llava_llama_2")
VISUAL = 5
"""Visual tokens of an image."""

LIMITS = (40, 100, 150, 250)
"""Context lengths at which the long conversations are cut."""


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_sentencepiece(model: dict[str, Any], path: Path) -> None:
    """A sentencepiece model with LLaMA's settings; a piece scores by the place of its first merge."""
    vocabulary: dict[str, int] = model["vocab"]
    score: dict[str, float] = {}
    for rank, pair in enumerate(model["merges"]):
        score.setdefault("".join(pair), -float(rank))
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = proto.SentencePiece
    for piece in sorted(vocabulary, key=lambda piece: vocabulary[piece]):
        added = proto.pieces.add(piece=piece, score=score.get(piece, -1e6))
        if piece == "<unk>":
            added.type = kinds.UNKNOWN
        elif piece in ("<s>", "</s>"):
            added.type = kinds.CONTROL
        elif len(piece) == 6 and piece.startswith("<0x"):
            added.type = kinds.BYTE
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = len(vocabulary)
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id, proto.trainer_spec.eos_id = 0, 1, 2
    proto.trainer_spec.pad_id = -1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(proto.SerializeToString())


class Spliced(LlavaMetaForCausalLM):  # type: ignore[misc]
    """LLaVA's own splice, with nothing around it."""

    def __init__(self, limit: int) -> None:
        self.config = SimpleNamespace(tokenizer_model_max_length=limit)
        self.device = torch.device("cpu")
        self.inner = SimpleNamespace(embed_tokens=lambda ids: torch.zeros(len(ids), 1), get_vision_tower=lambda: True)

    def get_model(self) -> Any:
        return self.inner

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), VISUAL, 1)


def sources_of(rounds: list[tuple[str, str]]) -> list[dict[str, str]]:
    turns = []
    for user, answer in rounds:
        turns += [{"from": "human", "value": user}, {"from": "gpt", "value": answer}]
    return turns


def preprocessed(tokenizer: Any, template: str, rounds: list[tuple[str, str]]) -> tuple[list[int], list[int], str]:
    """Ids, labels and what was printed."""
    conversation_lib.default_conversation = conversation_lib.conv_templates[template]
    sources = [sources_of(rounds)]
    has_image = any("<image>" in user for user, _ in rounds)
    if has_image:
        options = SimpleNamespace(is_multimodal=True, mm_use_im_start_end=False)
        sources = train.preprocess_multimodal(copy.deepcopy(sources), options)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        done = train.preprocess(sources, tokenizer, has_image=has_image)
    return done["input_ids"][0].tolist(), done["labels"][0].tolist(), printed.getvalue()


def cut(tokenizer: Any, ids: list[int], labels: list[int], limit: int) -> list[int]:
    """Labels after LLaVA's collation, splice and cut at a context length."""
    images = ids.count(train.IMAGE_TOKEN_INDEX)
    row = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
    batch = train.DataCollatorForSupervisedDataset(tokenizer=tokenizer)([row])
    spliced = Spliced(limit).prepare_inputs_labels_for_multimodal(
        batch["input_ids"], None, batch["attention_mask"], None, batch["labels"], torch.zeros(max(images, 1), 3, 1, 1)
    )
    rows: list[int] = spliced[-1][0].tolist()
    return rows


def spans(labels: list[int]) -> list[list[int]]:
    """[first, past the last) of each stretch with loss."""
    found: list[list[int]] = []
    for place, label in enumerate(labels):
        if label == train.IGNORE_INDEX:
            continue
        if found and found[-1][1] == place:
            found[-1][1] += 1
        else:
            found.append([place, place + 1])
    return found


def prompt_of(template: str, rounds: list[tuple[str, str]]) -> str:
    """As LLaVA's evaluation scripts make it, the last answer left out."""
    conversation = conversation_lib.conv_templates[template].copy()
    options = SimpleNamespace(is_multimodal=True, mm_use_im_start_end=False)
    (turns,) = train.preprocess_multimodal([sources_of(rounds)], options)
    for place, turn in enumerate(turns):
        last = place == len(turns) - 1
        conversation.append_message(conversation.roles[place % 2], None if last else turn["value"])
    text: str = conversation.get_prompt()
    return text


def conversation_row(tokenizer: Any, template: str, rounds: list[tuple[str, str]]) -> dict[str, Any]:
    try:
        ids, labels, printed = preprocessed(tokenizer, template, rounds)
    except AssertionError as error:
        return {"ids": [], "loss": [], "prompt": [], "printed": f"AssertionError: {error}"}
    assert all(label in (token, train.IGNORE_INDEX) for token, label in zip(ids, labels, strict=True))
    prompt = [] if template == "plain" else tokenizer_image_token(prompt_of(template, rounds), tokenizer)
    return {"ids": ids, "loss": spans(labels), "prompt": prompt, "printed": printed.strip()}


def main(tokenizer_json: Path, output: Path) -> None:
    awkward = load("awkward")
    golden: dict[str, list[dict[str, Any]]] = {"conversations": [], "cut": [], "texts": []}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tokenizer.model"
        write_sentencepiece(json.loads(tokenizer_json.read_text())["model"], model)
        for legacy in (True, False):
            # As LLaVA's train() makes it: right padding, the unknown token pads.
            made = partial(LlamaTokenizer, str(model), legacy=legacy, padding_side="right", pad_token="<unk>")
            tokenizer = made(model_max_length=4096)
            for text in awkward.TEXTS:
                ids = tokenizer_image_token(text, tokenizer)
                golden["texts"].append({"legacy": legacy, "text": text, "ids": ids})
            for template, (name, rounds) in itertools.product(TEMPLATES, awkward.CONVERSATIONS.items()):
                if template == "plain" and (len(rounds) > 1 or "<image>" not in rounds[0][0]):
                    continue  # refused there
                key = {"template": template, "legacy": legacy, "name": name}
                golden["conversations"].append({**key, **conversation_row(tokenizer, template, rounds)})
                for limit in LIMITS if name.startswith("long") and legacy else ():
                    short = made(model_max_length=limit)
                    kept = cut(short, *preprocessed(short, template, rounds)[:2], limit)
                    golden["cut"].append({**key, "limit": limit, "length": len(kept), "loss": spans(kept)})
    parts = [f'"{kind}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for kind, rows in golden.items()]
    output.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", type=Path, default=HERE / "tokenizer" / "tokenizer.json")
    parser.add_argument("--output", type=Path, default=HERE / "golden.json")
    arguments = parser.parse_args()
    main(arguments.tokenizer, arguments.output)
