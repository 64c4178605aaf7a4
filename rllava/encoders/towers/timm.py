"""Encoders of timm: vision transformers, Swin transformers and convolutional networks.

A token is a position of the last feature map taken; class and register tokens are left out.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from rllava.encoders.base import Encoder, EncoderSpec, measured
from rllava.errors import UserError
from rllava.pinned import Pinned
from rllava.registry import unknown
from rllava.weights import fitting, read_weights

POSITIONS = ("pos_embed", "positional_embedding", "relative_position_bias_table")
"""Endings of the names of parameters whose size goes with the image's."""

CLASSIFIERS = ("head", "head_dist", "fc", "classifier")
"""Parts of a checkpoint that belong to its training."""

PATCHES = ("patch_embed.proj.weight", "visual.conv1.weight")
"""Endings of the names of the first convolution of vision transformers, whose size goes with the patches'."""

QUICK_GELU = frozenset({"vit_base_patch16_clip_224.dfn2b"})
"""Weights that were trained with QuickGELU (says open_clip, ``pretrained.py``), which timm's notes leave out."""

VARIANTS = frozenset({"activation", "layer", "resized", "ema"})
"""What of a spec this family honours beside its size and statistics."""

WHOLE_TOWER = "rllava.encoders.towers.whole_timm:WholeTimm"


class TimmEncoder(Encoder):
    """A timm model up to one of its blocks.

    Args:
        spec: its ``architecture`` is a name of timm, its ``arguments`` go to ``timm.create_model``.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self.tower = tower(spec)
        try:
            self._layer: int = self.tower.prune_intermediate_layers([spec.layer], prune_norm=False, prune_head=True)[0]
        except (AttributeError, AssertionError, IndexError) as error:
            raise UserError(
                f"encoder '{spec.name}': timm's {spec.architecture} gives no output of layer {spec.layer}"
            ) from error

    def features(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class.

        Returns:
            [B, P, D].
        """
        (map_BDHW,) = self.tower.forward_intermediates(
            normalised_BCHW, indices=[self._layer], norm=False, intermediates_only=True, output_fmt="NCHW"
        )
        tokens_BPD: Tensor = map_BDHW.flatten(2).transpose(1, 2)
        return tokens_BPD

    def load_weights(self, path: Path) -> None:
        """Loads a checkpoint of timm or of a training script; only the classifier is left out."""
        with torch.device("meta"):
            whole = tower(self.spec)  # every key is checked, those of unused blocks too: a wrong file must not pass
        kept, mine = tower_weights(self.spec, whole, read_native(self.spec, whole, path), path), self.tower.state_dict()
        self.tower.load_state_dict({key: value for key, value in kept.items() if key in mine})


def read_native(spec: EncoderSpec, whole: nn.Module, path: Path) -> dict[str, Tensor]:
    """A checkpoint's weights under timm's present names, those of a classifier too.

    Raises:
        UserError: if the file is damaged, or its patches or position embeddings are of another size.
    """
    return native(read_weights(path, spec.label, spec.ema), whole, spec.resized, f"{spec.label}: {path}")


def tower_weights(spec: EncoderSpec, whole: nn.Module, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """What of a checkpoint the tower takes: everything but a classifier.

    Raises:
        UserError: if a key does not fit.
    """
    expected = whole.state_dict()
    dropped = [key for key in state if key.split(".")[0] in CLASSIFIERS and key not in expected]
    return fitting(expected, state, f"{spec.label}: {path}", dropped)


def tower(spec: EncoderSpec) -> Any:
    """The whole model of timm, without its classifier.

    Returns:
        The model with initial weights.

    Raises:
        UserError: if timm knows no such model, or it takes no other activation or image size.
    """
    if not timm.is_model(spec.architecture):
        raise UserError(f"encoder '{spec.name}': {unknown('timm model', spec.architecture, timm.list_models())}")
    arguments: dict[str, Any] = dict(spec.arguments)
    if spec.activation:
        arguments["act_layer"] = spec.activation
    defaults = timm.get_pretrained_cfg(spec.architecture)
    if defaults is not None and defaults.fixed_input_size and defaults.input_size[-1] != spec.image_size:
        arguments["img_size"] = spec.image_size
    try:
        return timm.create_model(spec.architecture, pretrained=False, num_classes=0, **arguments)
    except (TypeError, AssertionError) as error:
        raise UserError(f"encoder '{spec.name}': timm's {spec.architecture} does not take that ({error})") from error


def native(state: Mapping[str, Tensor], whole: nn.Module, resized: bool, what: str) -> dict[str, Tensor]:
    """A checkpoint with timm's present names: those of older releases and of the models' authors are translated.

    Args:
        resized: whether position embeddings may be interpolated.

    Raises:
        UserError: if patches are of another size, or position embeddings are and must not be interpolated.
    """
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(state)
    try:
        converted: dict[str, Tensor] = convert(dict(state), whole)
    except Exception:  # it expects certain keys; that they are missing is said better by the list of keys
        return dict(state)
    before, after = _values(state, PATCHES), _values(converted, PATCHES)
    if after and before != after:
        raise UserError(
            f"{what} has patch embeddings of {before} values, the encoder of {after}: its patches are of another size"
        )
    before, after = _values(state, POSITIONS), _values(converted, POSITIONS)
    if before != after and not resized:
        raise UserError(
            f"{what} has position embeddings of {before} values, the encoder of {after} at its image size; give the "
            "size it was trained with, or resized=true to interpolate them"
        )
    return {key: value for key, value in converted.items() if isinstance(value, Tensor)}


def _values(state: Mapping[str, Tensor], endings: tuple[str, ...]) -> int:
    visual = {key: value for key, value in state.items() if key.startswith("visual.")} or state
    return sum(value.numel() for key, value in visual.items() if key.endswith(endings))


def build(spec: EncoderSpec) -> TimmEncoder:
    """Builder of the family.

    Returns:
        The encoder without its weights.
    """
    return TimmEncoder(spec)


def timm_spec(name: str) -> EncoderSpec:
    """The spec of any model of timm, with the weights timm has for it.

    Args:
        name: see :func:`described_spec`.

    Returns:
        The spec, with the tokens that the model gives.
    """
    return measured(described_spec(name))


def described_spec(name: str) -> EncoderSpec:
    """What timm's tables say about a model; nothing is built.

    Args:
        name: ``MODEL`` or ``MODEL.TAG``, as ``timm.create_model`` takes it.

    Returns:
        The spec without tokens and width; its weights are those of timm's page on the hub. CLIPs have the activation
        that they were trained with, and give the layer before the last, as LLaVA takes it.

    Raises:
        UserError: if timm knows no such model, or has no weights for it.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(unknown("timm model", architecture, timm.list_models()))
    if tag and name not in timm.list_pretrained(f"{architecture}*"):
        raise UserError(unknown(f"weights of timm's {architecture}", name, timm.list_pretrained(f"{architecture}*")))
    defaults = timm.get_pretrained_cfg(name)
    if defaults is None or not defaults.hf_hub_id:
        raise UserError(f"timm has no weights for {name} on the hub; give MODEL.TAG of timm.list_pretrained()")
    file = defaults.hf_hub_filename or "model.safetensors"
    return EncoderSpec(
        name=f"timm:{name}",
        builder="rllava.encoders.towers.timm:build",
        weights=Pinned(f"hub:{defaults.hf_hub_id}/{file}"),
        image_size=defaults.input_size[-1],
        tokens=0,
        width=0,
        mean=defaults.mean,
        std=defaults.std,
        training=f"timm's {name}",
        licence=defaults.license or "",
        architecture=architecture,
        layer=-2 if _is_clip(architecture, defaults.tag) else -1,
        activation="quick_gelu" if _needs_quick_gelu(architecture, defaults) else "",
        origin=f"the hub's {defaults.hf_hub_id}",
    )


def _needs_quick_gelu(architecture: str, defaults: PretrainedCfg) -> bool:
    """Whether weights were trained with QuickGELU while timm builds GELU; its ``..._quickgelu_...`` have their own."""
    noted = any("quickgelu" in note.lower() for note in getattr(defaults, "notes", None) or ())
    return "quickgelu" not in architecture and (noted or f"{architecture}.{defaults.tag}" in QUICK_GELU)


def _is_clip(architecture: str, tag: str) -> bool:
    """A vision transformer that CLIP trained and nobody made a classifier of."""
    return architecture.startswith("vit_") and "_clip_" in architecture and "_ft_" not in tag
