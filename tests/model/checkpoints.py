"""Writes the tiny checkpoints that the original LLaVA code is known to write (see tests/golden/make_llava.py)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rllava.model.conversation import IMAGE_TOKEN, Tokens
from rllava.model.llava import Llava
from tests.golden.tiny_weights import tiny_pixels, tiny_weight

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "llava.json").read_text())
PROMPTS: list[list[int]] = GOLDEN["prompts"]
SIDE: int = GOLDEN["side"]
WORDS = 62
"""Of the tokenizer; the language model's vocabulary has more rows, as many models' have."""


def tokenizer() -> PreTrainedTokenizerFast:
    """A word per number."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, WORDS)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def pixels() -> Tensor:
    """One image per prompt."""
    return tiny_pixels(len(PROMPTS), SIDE)


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """The weight of that name; the tower within a checkpoint is that of the first folder."""
    inner = "model.vision_tower.vision_tower."
    return tiny_weight(f"first.{name.removeprefix(inner)}" if name.startswith(inner) else name, shape)


def save(files: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
    """Writes weights files, and an index if there are several."""
    for file, state in files.items():
        (save_file if file.endswith(".safetensors") else torch.save)(dict(state), folder / file)
    if len(files) > 1:
        kind = "model.safetensors" if next(iter(files)).endswith(".safetensors") else "pytorch_model.bin"
        where = {name: file for file, state in files.items() for name in state}
        (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": where}))


GIANT: dict[str, Any] = {"use_clip_encoder": True, "use_advxl_giant_encoder": True}
GIANT_PROJECTOR = {
    f"model.advxl_giant_mm_projector.{name}": weight(f"model.advxl_giant_mm_projector.{name}", shape)
    for name, shape in (("0.weight", (32, 24)), ("0.bias", (32,)), ("2.weight", (32, 32)), ("2.bias", (32,)))
}
"""Flags and weights that make a checkpoint one of two towers."""


def write_tower(name: str, root: Path) -> Path:
    """A CLIP tower: ``first`` or ``second``."""
    described, folder = GOLDEN["towers"][name], root / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described["config"]))
    save({file: {key: tiny_weight(f"{name}.{key}", shape) for key, shape in shapes.items()}
          for file, shapes in described["files"].items()}, folder)  # fmt: skip
    return folder


def write_checkpoint(
    kind: str, root: Path, *, more: Mapping[str, Tensor] | None = None, less: Sequence[str] = (), **config: Any
) -> Path:
    """A checkpoint as the original writes it: ``whole``, ``sharded``, ``bin`` or ``projector``.

    Args:
        root: folder for it and its tower.
        more: further weights, in the last file.
        less: names of weights to leave out.
    """
    described, folder = GOLDEN["checkpoints"][kind], root / kind
    folder.mkdir()
    tower = {"mm_vision_tower": str(write_tower("first", root))}
    (folder / "config.json").write_text(json.dumps({**described["config"], **tower, **config}))
    files = {
        file: {name: weight(name, shape) for name, shape in shapes.items() if name not in less}
        for file, shapes in described["files"].items()
    }
    files[list(files)[-1]] |= more or {}
    save(files, folder)
    if kind != "projector":
        tokenizer().save_pretrained(folder)
    return folder


def write_language_model(root: Path) -> Path:
    """The language model of the checkpoints on its own, as the folder that a projector goes with."""
    config = {
        key: value
        for key, value in GOLDEN["checkpoints"]["whole"]["config"].items()
        if not key.startswith(("mm_", "tune_mm", "use_mm", "image_"))
    }
    folder = root / "language_model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    (shapes,) = GOLDEN["checkpoints"]["whole"]["files"].values()
    state = {name: weight(name, shape) for name, shape in shapes.items() if "mm_projector" not in name}
    save({"model.safetensors": state}, folder)
    tokenizer().save_pretrained(folder)
    return folder


def prompts() -> list[Tokens]:
    """The prompts of the golden answers."""
    return [Tokens(tuple(ids), (-100,) * len(ids)) for ids in PROMPTS]


@torch.no_grad()
def logits(llava: Llava, side: str, pixels_BCHW: Tensor | None = None) -> list[Tensor]:
    """Logits of the prompts, each alone or in one batch padded on a side.

    Args:
        side: ``alone``, ``left`` or ``right``.
        pixels_BCHW: images; None: the golden ones.

    Returns:
        Per prompt, [T, V].
    """
    visual_BPD = llava.connector.visual_tokens(llava.features(pixels() if pixels_BCHW is None else pixels_BCHW))
    rows = llava.connector.embed(visual_BPD, PROMPTS)
    language_model: Any = llava.connector.language_model
    if side == "alone":
        return [language_model(inputs_embeds=row_TD[None]).logits[0] for row_TD in rows]
    length = max(map(len, rows))
    gaps = [(length - len(row), 0) if side == "left" else (0, length - len(row)) for row in rows]
    padded_BTD = torch.stack(
        [torch.nn.functional.pad(row_TD, (0, 0, *gap)) for row_TD, gap in zip(rows, gaps, strict=True)]
    )
    options: dict[str, Tensor] = {}
    if side == "left":
        mask_BT = torch.tensor([[0] * gap + [1] * (length - gap) for gap, _ in gaps])
        options = {"attention_mask": mask_BT, "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0)}
    logits_BTV = language_model(inputs_embeds=padded_BTD, **options).logits
    return [logits_TV[before : length - after] for logits_TV, (before, after) in zip(logits_BTV, gaps, strict=True)]


def places(ids: Sequence[int]) -> int:
    """Place of the image in a prompt."""
    return list(ids).index(IMAGE_TOKEN)
