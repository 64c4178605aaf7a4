"""Checkpoints as LLaVA and Robust-LLaVA write them: what ``config.json`` says about encoders and projectors.

Sources: LLaVA ``llava/model/builder.py``, ``llava_arch.py``, ``multimodal_encoder/clip_encoder.py``; Robust-LLaVA
``llava/model/llava_arch.py:37-74, 238-243, 553-614`` and ``builder.py:171-247``. Robust-LLaVA feeds every encoder
images normalised by CLIP's statistics, so its checkpoints are read with encoders that do.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rllava.encoders import EncoderSpec, encoder_spec
from rllava.errors import UserError
from rllava.model.checkpoint.layout import FACTS, Layout
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.inner_tower import chosen_tower
from rllava.weights import find_weights, weights_path

LANGUAGE_MODELS = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}
"""Family of the language model, by the ``model_type`` of the checkpoint."""

NOT_READ = re.compile(r"(^|\.)\w*_tower\.|\.rotary_emb\.inv_freq$")
"""Keys beside a language model's: frozen towers, and buffers of older releases."""

_MULTI_MODAL = re.compile(rf"^(mm_|use_mm_|use_\w+_encoder$|tune_mm|freeze_mm|unfreeze_mm|tokenizer_|image_|{FACTS})")
"""Entries of ``config.json`` that are not the language model's."""


@dataclass(frozen=True)
class Slot:
    """One of the towers a checkpoint may have.

    Attributes:
        flag: in ``config.json``, that says it is used.
        projector: attribute of the model that holds its projector.
        encoder: registered name; empty: what ``mm_vision_tower`` names.
    """

    flag: str
    projector: str
    encoder: str


CLIP = Slot("use_clip_encoder", "mm_projector", "")
DINO = Slot("use_dino_encoder", "dino_mm_projector", "dinov2-l")
GIANT = Slot("use_advxl_giant_encoder", "advxl_giant_mm_projector", "advxl-g")
HUGE = Slot("use_advxl_huge_encoder", "advxl_huge_mm_projector", "advxl-h")
VIT_L = Slot("use_ares_vitl_21k_encoder", "ares_vitl_21k_mm_projector", "vit-l-21k")
VIT_B = Slot("use_ares_vitb_at_encoder", "ares_vitb_at_mm_projector", "ares-vit-b-at")
SLOTS = (CLIP, DINO, GIANT, HUGE, VIT_L, VIT_B)
PAIRS = (
    (CLIP, DINO), (CLIP, GIANT), (CLIP, HUGE), (GIANT, HUGE), (CLIP, VIT_L), (CLIP, VIT_B), (GIANT, DINO), (HUGE, DINO),
)  # fmt: skip
"""Pairs that Robust-LLaVA interleaves; the first one's tokens come first."""

_CLIPS = {"clip-vit-large-patch14-336": "clip-l-336", "clip-vit-large-patch14": "clip-l-224"}

_NOT_SUPPORTED = (
    ("s2", (None, False), "multi-scale features (s2)"),
    ("mm_patch_merge_type", (None, "flat"), "several tiles per image (mm_patch_merge_type)"),
    ("image_aspect_ratio", (None, "pad", "square"), "several tiles per image (image_aspect_ratio)"),
    ("mm_vision_select_feature", (None, "patch"), "class tokens among the visual ones (mm_vision_select_feature)"),
    ("mm_use_im_start_end", (None, False), "image start and end tokens (mm_use_im_start_end)"),
    ("mm_resampler_type", (None,), "a resampler (mm_resampler_type)"),
)


def slots(config: Mapping[str, Any], what: str) -> tuple[Slot, ...]:
    """The towers a checkpoint uses, in the order of their tokens.

    Raises:
        UserError: if the published code would leave out one of them.
    """
    used = tuple(slot for slot in SLOTS if config.get(slot.flag))
    if len(used) <= 1:
        return used or (CLIP,)
    for pair in PAIRS:
        if set(pair) == set(used):
            return pair
    pairs = ", ".join("+".join(slot.projector.removesuffix("_mm_projector") for slot in pair) for pair in PAIRS)
    raise UserError(
        f"{what}: {', '.join(slot.flag for slot in used)} are set together, but the published code interleaves only "
        f"these pairs of projectors: {pairs}; correct the flags in config.json"
    )


def check_supported(config: Mapping[str, Any], what: str) -> None:
    """Refuses checkpoints that do more than put one set of patch tokens per encoder before the language model.

    Raises:
        UserError: which names what is not supported.
    """
    for key, good, described in _NOT_SUPPORTED:
        if config.get(key) not in good:
            raise UserError(f"{what}: {described} = {config[key]!r} is not supported; LLaVA 1 and 1.5 checkpoints are")
    if config.get("model_type") not in LANGUAGE_MODELS:
        raise UserError(
            f"{what}: unknown model_type '{config.get('model_type')}'; known: {', '.join(sorted(LANGUAGE_MODELS))}, "
            "and folders that transformers' LlavaForConditionalGeneration wrote"
        )


def encoder_of(slot: Slot, config: Mapping[str, Any], what: str) -> EncoderSpec:
    """The encoder a checkpoint was trained with.

    Returns:
        Its spec; weights are not looked at.

    Raises:
        UserError: if ``mm_vision_tower`` names none that is known or present.
    """
    if slot.encoder:
        return encoder_spec(f"{slot.encoder}[normalization=as_released]")
    named = config.get("mm_vision_tower")
    if not isinstance(named, str):
        raise UserError(f"{what}: config.json names no mm_vision_tower; add it, e.g. openai/clip-vit-large-patch14-336")
    layer = config.get("mm_vision_select_layer", -2)
    if not isinstance(layer, int) or layer >= 0:
        raise UserError(f"{what}: mm_vision_select_layer {layer} has to be a negative number")
    known = _CLIPS.get(Path(named).name)
    source = named if Path(named).is_absolute() else f"hub:{named}"
    if known is None or Path(named).is_absolute():
        if find_weights(source) is not None:
            known = source
        elif known is None:
            raise UserError(
                f"{what}: its vision tower {named} is not here; copy that folder (config.json, weights, "
                f"preprocessor_config.json) to {weights_path(source)}"
            )
    spec = encoder_spec(known)
    return spec if spec.layer == layer else encoder_spec(f"{known}[layer={layer}]")


def used_slots(config: dict[str, Any], folder: Path, what: str) -> tuple[Slot, ...]:
    """The towers of a folder in LLaVA's own format, whole or of projectors alone, if it is one that can be read.

    Raises:
        UserError: if it does what is not supported.
    """
    check_supported(config, what)
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{what} holds LoRA weights; merge them first (LLaVA scripts/merge_lora_weights.py)")
    used = slots(config, what)
    if config.get("image_aspect_ratio") != "pad":
        logging.getLogger(__name__).warning(
            "%s was trained with images cropped to a square (image_aspect_ratio is not pad); here they are padded", what
        )
    return used


def original_spec(
    config: dict[str, Any], folder: Path, what: str, used: Sequence[Slot], vision_tower: str | None
) -> CheckpointSpec:
    """What a whole LLaVA or Robust-LLaVA says about itself.

    Args:
        used: see :func:`used_slots`.
        vision_tower: see :func:`rllava.model.inner_tower.chosen_tower`.

    Returns:
        The spec; name, place, template and hash are left open.

    Raises:
        UserError: if a tower is unknown or missing, or has to be chosen.
    """
    encoders = [encoder_of(slot, config, what) for slot in used]
    return described(used, _with_towers(used, encoders, config, folder, what, vision_tower), config)


def described(used: Sequence[Slot], encoders: Sequence[EncoderSpec], config: Mapping[str, Any]) -> CheckpointSpec:
    """The spec of a whole LLaVA in its own format.

    Returns:
        The spec; name, place, template and hash are left open.
    """
    return CheckpointSpec(
        name="",
        format="original",
        weights=(),
        sha256="",
        encoders=tuple(encoders),
        projectors=tuple(slot.projector for slot in used),
        projector=config.get("mm_projector_type", "linear"),
        conversation="",
    )


def _with_towers(
    used: Sequence[Slot], encoders: Sequence[EncoderSpec], config: dict[str, Any], folder: Path, what: str,
    choice: str | None,
) -> list[EncoderSpec]:  # fmt: skip
    """The encoders of a checkpoint, its CLIP being the one within it where that is meant."""
    trained = bool(config.get("unfreeze_mm_vision_tower"))
    return [
        encoder if slot.encoder else chosen_tower(encoder, folder, what, choice, trained)
        for slot, encoder in zip(used, encoders, strict=True)
    ]


def _language_model(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    own = {key: value for key, value in config.items() if not _MULTI_MODAL.match(key)}
    return LANGUAGE_MODELS[str(config.get("model_type"))], own


def name_of(name: str, spec: CheckpointSpec, language_model: Any) -> str | None:
    """A weight's name in a :class:`rllava.model.llava.Connector`.

    Returns:
        The name; None: it is not read.
    """
    for index, projector in enumerate(spec.projectors):
        head, _, rest = name.partition(f"{projector}.")
        if rest and head in ("model.", ""):
            return f"projectors.{index}.{rest}"
    unused = tuple(f"model.{slot.projector}." for slot in SLOTS)
    return None if NOT_READ.search(name) or name.startswith(unused) else f"language_model.{name}"


LAYOUT = Layout(_language_model, name_of)
