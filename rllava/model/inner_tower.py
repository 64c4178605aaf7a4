"""The vision tower within a folder of ``LlavaForConditionalGeneration``, or of LLaVA's own format, as an encoder.

So it can be plugged into other LLaVAs, and others into its place.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPVisionConfig

from rllava.encoders import EncoderSpec
from rllava.encoders.towers import hugging_face
from rllava.encoders.towers.hugging_face import MODELS, HuggingFaceEncoder, described_spec
from rllava.errors import UserError
from rllava.pinned import Pinned
from rllava.weights import files_of, find_weights, is_safetensors, load_pickle, read_weights, readable, weights_of

PREFIXES = ("model.vision_tower.vision_tower.", "model.vision_tower.", "vision_tower.")
"""Before the tower's keys: in LLaVA's own format, and in transformers', the older one last."""

VARIANTS = hugging_face.VARIANTS

_NO_CLASS_TOKEN = ("siglip", "siglip_vision_model")


class InnerTower(HuggingFaceEncoder):
    """A tower of transformers whose weights are a part of a LLaVA's.

    Args:
        spec: as :func:`inner_tower_spec` gives it.
    """

    def load_weights(self, path: Path) -> None:
        """Reads the tower's weights and leaves the others where they are."""
        self.read(path, tower_state(path, f"encoder '{self.spec.name}': {path}"))


def tower_state(folder: Path, what: str) -> dict[str, Tensor]:
    """The vision tower's part of a LLaVA's weights; the others stay where they are.

    Returns:
        Tensors by the tower's own names; none if it is not inside.
    """
    state: dict[str, Tensor] = {}
    for file in files_of(folder):
        with readable(file, what):
            state |= _selected(file)
    return state


def _selected(file: Path) -> Iterator[tuple[str, Tensor]]:
    if is_safetensors(file):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                if (name := _within_tower(key)) is not None:
                    yield name, opened.get_tensor(key)
        return
    found = load_pickle(file)
    for key, value in found.items() if isinstance(found, Mapping) else ():
        if (name := _within_tower(key)) is not None:
            yield name, value


def _within_tower(key: str) -> str | None:
    return next((key.removeprefix(prefix) for prefix in PREFIXES if key.startswith(prefix)), None)


def chosen_tower(named: EncoderSpec, folder: Path, what: str, choice: str | None, trained: bool) -> EncoderSpec:
    """Which tower a folder in LLaVA's own format is read with: the one its configuration names, or the one within it.

    LLaVA's own code takes the one within only if ``unfreeze_mm_vision_tower`` is set (``clip_encoder.py``), and leaves
    out any other without a word; but not every training that changed the tower sets it.

    Args:
        choice: ``"own"`` or ``"named"``; None: none was made, and none is needed where both are the same.
        trained: whether the configuration says that the tower was trained.

    Raises:
        UserError: if there is none within, or a choice is needed.
    """
    inside = tower_state(folder, what)
    if choice == "named" or (choice is None and not inside and not trained):
        return named
    if not inside:
        held = "says that it has a trained vision tower (unfreeze_mm_vision_tower), but " if trained else ""
        raise UserError(f"{what} {held}holds no weights of one; --vision-tower named takes {named.name}")
    if choice is None:
        differs = _difference(inside, named)
        if not trained and not differs:
            return named
        held = (
            "a trained vision tower (unfreeze_mm_vision_tower)" if trained else f"a vision tower of its own ({differs})"
        )
        raise UserError(
            f"{what} holds {held}; say which one is attacked: --vision-tower own, or --vision-tower named for the "
            f"{named.name} that config.json names"
        )
    if named.architecture not in MODELS:
        raise UserError(f"{what}: its own vision tower cannot be read in the place of {named.name}")
    return replace(
        named,
        name=f"{folder.name}-tower",
        builder="rllava.model.inner_tower:build",
        weights=Pinned(str(folder)),
        training=f"the vision tower within {folder.name}",
        licence="",
        origin="",
    )


def _difference(inside: Mapping[str, Tensor], named: EncoderSpec) -> str:
    """What the tower within has other than the named one, rounded as it is; empty: nothing."""
    weights = weights_of(named)
    path = None if weights is None else find_weights(weights)
    if path is None:
        return f"{named.name} is not here to compare it with"
    outside = {_bare(key): value for key, value in read_weights(path, named.label).items()}
    mine = {_bare(key): value for key, value in inside.items() if not key.endswith("position_ids")}
    changed = sum(key not in outside or not _same(value, outside[key]) for key, value in mine.items())
    return f"{changed} of {len(mine)} tensors are not {named.name}'s" if changed else ""


def _bare(key: str) -> str:
    return key.removeprefix("vision_model.")


def _same(stored: Tensor, original: Tensor) -> bool:
    """Whether a tensor is another one as a training keeps it: a frozen tower is cast to bfloat16 or float16."""
    roundings = (original, original.to(torch.bfloat16), original.to(torch.float16))
    return any(torch.equal(stored, rounded.to(stored.dtype)) for rounded in roundings)


def build(spec: EncoderSpec) -> InnerTower:
    """Builder of the family.

    Returns:
        The encoder without its weights.
    """
    return InnerTower(spec)


def inner_tower_spec(config: Mapping[str, Any], folder: Path, what: str) -> EncoderSpec:
    """The tower of a LLaVA as an encoder.

    Returns:
        Its spec; the weights are the whole folder.

    Raises:
        UserError: if the tower or the tokens taken from it are of a kind that is not supported.
    """
    vision = dict(config.get("vision_config") or {})
    kind = vision.get("model_type", "clip_vision_model")
    if kind not in MODELS:
        raise UserError(f"{what}: its vision tower is a '{kind}'; known: {', '.join(sorted(MODELS))}")
    if kind == "clip_vision_model":
        # transformers' LLaVA has defaults of its own, and a configuration lists only what differs from them.
        vision = {**_CLIP_DEFAULTS, **vision}
    layer, strategy = config.get("vision_feature_layer", -2), config.get("vision_feature_select_strategy", "default")
    if not isinstance(layer, int) or layer >= 0:
        raise UserError(f"{what}: vision_feature_layer {layer} is not supported; a single negative layer is")
    if strategy != ("full" if kind in _NO_CLASS_TOKEN else "default"):
        raise UserError(f"{what}: vision_feature_select_strategy {strategy} of a {kind} is not supported; take patches")
    spec = described_spec(vision, kind, folder, f"{folder.name}-tower", layer)
    return replace(spec, builder="rllava.model.inner_tower:build")


_CLIP_DEFAULTS = {
    **{key: getattr(CLIPVisionConfig(), key) for key in ("hidden_act", "layer_norm_eps")},
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "patch_size": 14, "image_size": 336,
}  # fmt: skip
