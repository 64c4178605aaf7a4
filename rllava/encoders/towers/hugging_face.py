"""Image encoders of transformers: CLIP, SigLIP, DINOv2, ViT, from a folder or the hub.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from rllava.encoders.base import CLIP_MEAN, CLIP_STD, Encoder, EncoderSpec, measured
from rllava.errors import UserError
from rllava.pinned import Pinned
from rllava.pretrained import read_pretrained
from rllava.weights import read_weights, readable

MODELS = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "vit": "ViTModel",
}
"""Class that reads the image tower, by ``model_type`` of ``config.json``."""

VARIANTS = frozenset({"activation", "layer"})
"""What of a spec this family honours beside its size and statistics."""

WHOLE_TOWER = "rllava.encoders.towers.whole_hugging_face:WholeHuggingFace"

UNUSED: dict[str, dict[str, bool]] = {"vit": {"add_pooling_layer": False}}
"""Parts of a tower that its class builds only on demand and that no token depends on."""

_NOT_THE_TOWER = re.compile(
    r"(text_model|text_projection|visual_projection|logit_scale|logit_bias|classifier|(vit\.)?pooler)(\.|$)"
)
"""What a whole CLIP or a classifier holds beside its image tower."""

_BEFORE_LAST = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
"""Where LLaVA takes the layer before the last."""


class HuggingFaceEncoder(Encoder):
    """An image tower of transformers up to one of its blocks.

    Args:
        spec: its ``architecture`` is a ``model_type`` of :data:`MODELS`, its ``arguments`` those of the configuration.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        kind, config = described_model(spec)
        if not -config.num_hidden_layers <= spec.layer < 0:
            raise UserError(
                f"encoder '{spec.name}': there is no layer {spec.layer}; its tower has {config.num_hidden_layers}, "
                "counted from -1"
            )
        # Class token and patches alone are taken; classifiers come without the pooling layer.
        self.tower = self._cut(kind(config, **UNUSED.get(spec.architecture, {})))

    def _cut(self, tower: nn.Module) -> Any:
        (layers,) = (module for module in tower.modules() if isinstance(module, nn.ModuleList))
        del layers[len(layers) + 1 + self.spec.layer :]
        return tower

    def features(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class.

        Returns:
            [B, P, D].
        """
        # Hidden states come before any final norm; class and register tokens come first.
        tokens_BPD: Tensor = self.tower(pixel_values=normalised_BCHW, output_hidden_states=True).hidden_states[-1]
        count = (normalised_BCHW.shape[-1] // self.tower.config.patch_size) ** 2
        return tokens_BPD[:, tokens_BPD.shape[1] - count :]

    def load_weights(self, path: Path) -> None:
        """Loads a folder in Hugging Face format, of the image tower or of a whole CLIP."""
        check_described(self.spec, path)
        self.read(path, read_weights(path, self.spec.label))

    def read(self, path: Path, state: Mapping[str, Tensor]) -> None:
        """Takes over weights, all of which have to fit; names of older releases are understood.

        Args:
            path: where they are from, for messages.
            state: of the tower, or of a whole CLIP or classifier.
        """
        kind, config = type(self.tower), self.tower.config
        whole = image_tower(state)
        unused = UNUSED.get(self.spec.architecture, {})
        read = read_pretrained(kind, self.spec.label, path, whole, config=config, dtype=torch.float32, **unused)
        self.tower = self._cut(read)


def image_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's part of a checkpoint, in float32."""
    return {key: value.float() for key, value in state.items() if not _NOT_THE_TOWER.match(key)}


def described_model(spec: EncoderSpec) -> tuple[Any, Any]:
    """Class and configuration of a spec's image tower.

    Raises:
        UserError: if it takes no other activation.
    """
    kind = getattr(transformers, MODELS[spec.architecture])
    arguments: dict[str, Any] = {**dict(spec.arguments), "image_size": spec.image_size}
    if spec.activation:
        if arguments.get("use_swiglu_ffn"):
            raise UserError(f"encoder '{spec.name}': its gated MLPs have an activation of their own")
        arguments["hidden_act"] = spec.activation
    return kind, kind.config_class(**arguments)


def check_described(spec: EncoderSpec, folder: Path) -> None:
    """Compares a registered architecture with the folder's: shapes do not tell an activation or a head's width.

    Raises:
        UserError: if the folder's configuration is of another tower, or not readable.
    """
    file = folder / "config.json"
    if not file.exists():
        return
    with readable(file, spec.label):
        described = json.loads(file.read_text())
    vision = described.get("vision_config", described)
    usual = getattr(transformers, MODELS[spec.architecture]).config_class()
    given = {key: vision.get(key, getattr(usual, key, value)) for key, value in spec.arguments}
    wrong = [f"{key} {value}, not {given[key]}" for key, value in spec.arguments if given[key] != value]
    if wrong:
        raise UserError(
            f"{spec.label}: {file} describes another tower (expected {'; '.join(wrong)}); name the folder, or "
            "hub:ORG/NAME, to take it as it is"
        )


def build(spec: EncoderSpec) -> HuggingFaceEncoder:
    """Builder of the family.

    Returns:
        The encoder without its weights.
    """
    return HuggingFaceEncoder(spec)


def hugging_face_spec(folder: Path, name: str) -> EncoderSpec:
    """The spec of an image tower in a Hugging Face folder.

    Args:
        folder: with ``config.json``, weights, and ``preprocessor_config.json`` if the statistics are not CLIP's.

    Returns:
        The spec. CLIP and SigLIP give the layer before the last, as LLaVA takes it, the others the last one.

    Raises:
        UserError: if the folder holds no image tower that is known here.
    """
    try:
        described = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"encoder '{name}': {folder} has no readable config.json; copy the whole folder") from error
    kind = described.get("model_type", "")
    if kind not in MODELS:
        raise UserError(f"encoder '{name}': {folder} holds a '{kind}'; known: {', '.join(sorted(MODELS))}")
    return described_spec(described.get("vision_config", described), kind, folder, name)


def described_spec(
    vision: Mapping[str, Any], kind: str, folder: Path, name: str, layer: int | None = None
) -> EncoderSpec:
    """The spec of an image tower whose configuration is known.

    Args:
        kind: one of :data:`MODELS`.
        folder: with the weights, and the image processor's settings if the statistics are not CLIP's.
        layer: whose output is taken; None: the usual one.

    Returns:
        The spec; see :func:`hugging_face_spec`.

    Raises:
        UserError: if mean and standard deviation are not known, or are not all that is done to an image in [0, 1].
    """
    scalars = {key: value for key, value in vision.items() if isinstance(value, str | int | float | bool)}
    arguments = {key: value for key, value in scalars.items() if key not in _NOT_ARCHITECTURE}
    preprocessing = _preprocessing(folder)
    if preprocessing.get("do_normalize") is False or abs(preprocessing.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise UserError(
            f"encoder '{name}': the preprocessor_config.json of {folder} does not normalise from [0, 1] (do_normalize, "
            "rescale_factor); write the image_mean and image_std that come to the same, and leave these out"
        )
    if not preprocessing and kind not in ("clip", "clip_vision_model"):
        raise UserError(
            f"encoder '{name}': {folder} has no preprocessor_config.json, so mean and standard deviation of a '{kind}' "
            "are unknown; copy the whole folder"
        )
    return measured(
        EncoderSpec(
            name=name,
            builder="rllava.encoders.towers.hugging_face:build",
            weights=Pinned(str(folder)),
            image_size=vision.get("image_size", 224),
            tokens=0,
            width=0,
            mean=tuple(preprocessing.get("image_mean", CLIP_MEAN)),
            std=tuple(preprocessing.get("image_std", CLIP_STD)),
            training=f"the weights in {folder.name}",
            architecture=kind,
            arguments=tuple(sorted(arguments.items())),
            layer=layer or (-2 if kind in _BEFORE_LAST else -1),
        )
    )


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Settings of a folder's image processor, which a LLaVA's may have within those of its processor."""
    for file, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / file).exists():
            settings: dict[str, Any] = json.loads((folder / file).read_text())
            found: dict[str, Any] = settings if part is None else settings.get(part, {})
            if found:
                return found
    return {}


_NOT_ARCHITECTURE = frozenset(
    {"image_size", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "projection_dim"}
)
