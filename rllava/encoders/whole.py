"""Whole image towers: the embedding of an image behind all blocks, by its library's own module, with all its weights.

LLaVA takes tokens some blocks earlier, and an :class:`rllava.encoders.base.Encoder` keeps nothing behind them. What
fine-tunes an encoder in the space that it shares with texts needs the rest. A family says in the module of its builder,
as ``WHOLE_TOWER``, which class is its whole tower; one that does not has none.

Shapes: B batch, C channel, H/W image, E embedding.
"""

import dataclasses
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rllava.encoders.base import EncoderSpec, Normalising, constructed
from rllava.errors import UserError
from rllava.pinned import WEIGHTS, Pinned
from rllava.weights import check_weights, digest


class WholeTower(Normalising):
    """Base class of whole towers. Which weights learn is what the library says: fixed position embeddings stay fixed.

    Attributes:
        tower: the library's module. Weights in it that no embedding depends on (a mask token, queries for captions) are
            held, and written back as they came.
    """

    tower: Any

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """:meth:`embed`, for what wraps modules."""
        return self.embed(pixels_BCHW)

    def embed(self, pixels_BCHW: Tensor) -> Tensor:
        """The image embedding as the library gives it, not normalised: FARE keeps this one where it is.

        Args:
            pixels_BCHW: RGB in [0, 1], of side ``spec.image_size``; see :meth:`Normalising.normalised`.

        Returns:
            [B, E], in the precision of the weights.
        """
        return self.pooled(self.normalised(pixels_BCHW))

    def pooled(self, normalised_BCHW: Tensor) -> Tensor:
        """What a family implements: :meth:`embed` of normalised images."""
        raise NotImplementedError

    def load_weights(self, path: Path) -> None:
        """Loads all weights of the tower strictly; what a family implements.

        Args:
            path: file or folder, as ``spec.weights`` names it.
        """
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """All weights under the names that the family's encoders and whole towers read, on the CPU."""
        return on_cpu(self.tower.state_dict())

    def open_clip_weights(self) -> dict[str, Tensor]:
        """The weights as open_clip's ``visual`` has them: the layout in which FARE, TeCoA and Sim-CLIP are released.

        Returns:
            On the CPU. Activation and normalisation are not among weights: open_clip has to be told.

        Raises:
            UserError: if open_clip has no such tower.
        """
        raise UserError(f"{self.spec.label}: open_clip has no tower like it; take its safetensors and its spec")


def on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of weights that can be written to a file, with no memory in common."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def build_whole(spec: EncoderSpec) -> WholeTower:
    """Builds a whole tower with all its weights, in evaluation mode.

    Returns:
        The tower, float32, on the CPU.

    Raises:
        UserError: if the family has no embedding of an image, or the weights are missing, have another hash, or do not
            fit.
    """
    _check_pooled(spec)
    path = check_weights(spec)
    whole = bare_whole(spec)
    if path is not None:
        whole.load_weights(path)
    return whole.float().eval()


def bare_whole(spec: EncoderSpec) -> WholeTower:
    """Builds a whole tower without reading its weights; see :func:`rllava.encoders.base.bare_encoder`.

    Raises:
        UserError: if the family has none.
    """
    module = importlib.import_module(spec.builder.partition(":")[0])
    kind: str | None = getattr(module, "WHOLE_TOWER", None)
    if kind is None:
        raise UserError(
            f"{spec.label}: its family gives visual tokens and no embedding of an image, so it cannot be fine-tuned in "
            "one; take a CLIP, a SigLIP, or a model of timm"
        )
    whole = constructed(kind, spec)
    assert isinstance(whole, WholeTower)
    return whole


def _check_pooled(spec: EncoderSpec) -> None:
    """Refuses a tower without an embedding before any weights are read."""
    try:
        with torch.device("meta"), torch.no_grad():
            shape = bare_whole(spec).eval()(torch.empty(1, 3, spec.image_size, spec.image_size)).shape
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(
            f"{spec.label}: {spec.architecture} gives no embedding of an image of {spec.image_size} pixels ({reason})"
        ) from error
    if len(shape) != 2:
        raise UserError(
            f"{spec.label}: {spec.architecture} is not pooled (it gives {list(shape[1:])} per image, not one vector); "
            "take a pooling that gives one, e.g. its class token"
        )


def save_whole(whole: WholeTower, folder: Path, name: str, training: str) -> EncoderSpec:
    """Writes a whole tower as safetensors, which its family's encoders read too.

    Args:
        folder: where to; the file is :data:`rllava.pinned.WEIGHTS`.
        name: of the encoder that it is now.
        training: one line on how it came about.

    Returns:
        The spec of that encoder, for LLaVAs and for :func:`build_whole`.
    """
    path = folder / WEIGHTS
    save_file(whole.weights(), path)
    os.chmod(path, 0o644)
    made = Pinned(str(path), digest(path))
    return dataclasses.replace(whole.spec, name=name, weights=made, training=training, origin="")
