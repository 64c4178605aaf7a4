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
from torch import Tensor, nn

from rllava.encoders.base import Encoder, EncoderSpec, measured
from rllava.errors import UserError
from rllava.registry import unknown
from rllava.weights import fitting, read_weights

POSITIONS = ("pos_embed", "positional_embedding", "relative_position_bias_table")
"""Endings of the names of parameters whose size goes with the image's."""

CLASSIFIERS = ("head", "head_dist", "fc", "classifier")
"""Parts of a checkpoint that belong to its training."""


VARIANTS = frozenset({"activation", "layer", "resized", "ema"})
"""What of a spec this family honours beside its size and statistics."""


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

        Args:
            normalised_BCHW: images after normalisation.

        Returns:
            [B, P, D].
        """
        (map_BDHW,) = self.tower.forward_intermediates(
            normalised_BCHW, indices=[self._layer], norm=False, intermediates_only=True, output_fmt="NCHW"
        )
        tokens_BPD: Tensor = map_BDHW.flatten(2).transpose(1, 2)
        return tokens_BPD

    def load_weights(self, path: Path) -> None:
        """Loads a checkpoint of timm or of a training script; only the classifier is left out.

        Args:
            path: of the file.
        """
        what = f"encoder '{self.spec.name}'"
        with torch.device("meta"):
            whole = tower(self.spec)  # every key is checked, those of unused blocks too: a wrong file must not pass
        expected = whole.state_dict()
        state = native(read_weights(path, what, self.spec.ema), whole, self.spec.resized, f"{what}: {path}")
        dropped = [key for key in state if key.split(".")[0] in CLASSIFIERS and key not in expected]
        kept = fitting(expected, state, f"{what}: {path}", dropped)
        mine = self.tower.state_dict()
        self.tower.load_state_dict({key: value for key, value in kept.items() if key in mine})


def tower(spec: EncoderSpec) -> Any:
    """The whole model of timm, without its classifier.

    Args:
        spec: of the encoder.

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
    except TypeError as error:
        raise UserError(f"encoder '{spec.name}': timm's {spec.architecture} does not take that ({error})") from error


def native(state: Mapping[str, Tensor], whole: nn.Module, resized: bool, what: str) -> dict[str, Tensor]:
    """A checkpoint with timm's present names: those of older releases and of the models' authors are translated.

    Args:
        state: as read.
        whole: the model.
        resized: whether position embeddings may be interpolated.
        what: whose weights, for messages.

    Returns:
        The state.

    Raises:
        UserError: if position embeddings are of another size and must not be interpolated.
    """
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(state)
    try:
        converted: dict[str, Tensor] = convert(dict(state), whole)
    except Exception:  # it expects certain keys; that they are missing is said better by the list of keys
        return dict(state)
    before, after = _positions(state), _positions(converted)
    if before != after and not resized:
        raise UserError(
            f"{what} has position embeddings of {before} values, the encoder of {after} at its image size; give the "
            "size it was trained with, or resized=true to interpolate them"
        )
    return {key: value for key, value in converted.items() if isinstance(value, Tensor)}


def _positions(state: Mapping[str, Tensor]) -> int:
    visual = {key: value for key, value in state.items() if key.startswith("visual.")} or state
    return sum(value.numel() for key, value in visual.items() if key.endswith(POSITIONS))


def build(spec: EncoderSpec) -> TimmEncoder:
    """Builder of the family.

    Args:
        spec: what to build.

    Returns:
        The encoder without its weights.
    """
    return TimmEncoder(spec)


def timm_spec(name: str) -> EncoderSpec:
    """The spec of any model of timm, with the weights timm has for it.

    Args:
        name: ``MODEL`` or ``MODEL.TAG``, as ``timm.create_model`` takes it.

    Returns:
        The spec; its weights are those of timm's page on the hub.

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
    return measured(
        EncoderSpec(
            name=f"timm:{name}",
            builder="rllava.encoders.towers.timm:build",
            weights=f"hub:{defaults.hf_hub_id}/{file}",
            sha256=None,
            image_size=defaults.input_size[-1],
            tokens=0,
            width=0,
            mean=defaults.mean,
            std=defaults.std,
            training=f"timm's {name}",
            licence=defaults.license or "",
            architecture=architecture,
            origin=f"the hub's {defaults.hf_hub_id}",
        )
    )
