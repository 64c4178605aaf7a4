"""The vision tower within a folder of ``LlavaForConditionalGeneration``, as an encoder of its own.

So it can be plugged into other LLaVAs, and others into its place.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig

from rllava.encoders import EncoderSpec
from rllava.encoders.towers import hugging_face
from rllava.encoders.towers.hugging_face import MODELS, HuggingFaceEncoder, described_spec
from rllava.errors import UserError
from rllava.weights import files_of, read_weights

PREFIXES = ("model.vision_tower.", "vision_tower.")
"""Before the tower's keys; the older one last."""

VARIANTS = hugging_face.VARIANTS

_NO_CLASS_TOKEN = ("siglip", "siglip_vision_model")


class InnerTower(HuggingFaceEncoder):
    """A tower of transformers whose weights are a part of a LLaVA's.

    Args:
        spec: as :func:`inner_tower_spec` gives it.
    """

    def load_weights(self, path: Path) -> None:
        """Reads the tower's weights and leaves the others where they are.

        Args:
            path: folder of the LLaVA.
        """
        what = f"encoder '{self.spec.name}': {path}"
        state = {}
        for file in files_of(path):
            for key, value in read_weights(file, what).items():
                for prefix in PREFIXES:
                    if key.startswith(prefix):
                        state[key.removeprefix(prefix)] = value
        self.read(path, state)


def build(spec: EncoderSpec) -> InnerTower:
    """Builder of the family.

    Args:
        spec: what to build.

    Returns:
        The encoder without its weights.
    """
    return InnerTower(spec)


def inner_tower_spec(config: Mapping[str, Any], folder: Path, what: str) -> EncoderSpec:
    """The tower of a LLaVA as an encoder.

    Args:
        config: of the LLaVA.
        folder: of the LLaVA.
        what: for messages.

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
