"""What an encoder is: pixels in [0, 1] in, visual tokens out, its own normalisation and weights inside.

Shapes: B batch, C channel (3), H/W image, P visual tokens, D width.
"""

import dataclasses
import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllava.errors import UserError
from rllava.fingerprint import Described
from rllava.pinned import Weights
from rllava.weights import check_weights, fitting, read_weights

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Activation = Literal["", "gelu", "quick_gelu", "relu"]


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that decides what an encoder computes; part of the fingerprint of every model built on it.

    Attributes:
        builder: ``"package.module:function"``; the function takes this spec and returns an :class:`Encoder` without
            weights. An import path rather than a function, so that a spec can be stored and sent to workers.
        weights: a file or folder somewhere, or what a step of the sweep makes. None: random ones from ``seed``.
        image_size: side of the square input, in pixels.
        tokens: visual tokens per image (P).
        width: of a visual token (D).
        mean: per channel, subtracted from pixels in [0, 1].
        training: one line on how the weights came about.
        architecture: name in the library that builds the encoder.
        arguments: further keyword arguments of that library's constructor.
        layer: block whose output is taken, before any final norm; -1 is the last one, -2 the one before.
        activation: of the MLPs, where it is not the architecture's own.
        resized: whether position embeddings of another image size are interpolated; else they are refused.
        ema: of a training checkpoint that holds averaged weights too, take those.
        origin: where the weights can be had.
        parameters: published number, without the classifier, in millions.
        version: of the family that builds it; raised when its encoders compute something else from the same weights.
    """

    name: str
    builder: str
    weights: Weights | None
    image_size: int
    tokens: int
    width: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    training: Described[str] = ""
    licence: Described[str] = ""
    seed: int = 0
    architecture: str = ""
    arguments: tuple[tuple[str, str | int | float | bool], ...] = ()
    layer: int = -1
    activation: Activation = ""
    resized: bool = False
    ema: bool = True
    origin: Described[str] = ""
    parameters: Described[float | None] = None
    version: int = 1

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"encoder '{self.name}'"


def check_together(specs: Sequence[EncoderSpec], what: str) -> None:
    """Refuses encoders whose tokens cannot be interleaved.

    Args:
        what: they are for, for the message.

    Raises:
        UserError: if token counts differ.
    """
    if len({spec.tokens for spec in specs}) > 1:
        described = ", ".join(f"{spec.name} {spec.tokens}" for spec in specs)
        raise UserError(
            f"{what}: encoders of an ensemble are interleaved token by token, and their token counts differ "
            f"({described}); combine encoders of equal ones, or change an image_size"
        )


def check_swap(used: Sequence[EncoderSpec], trained: Sequence[EncoderSpec], what: str) -> None:
    """Refuses encoders that cannot stand in for those that projectors were trained with.

    Args:
        used: to use, in the same order.
        trained: that the projectors take tokens of.
        what: they are for, for the message.

    Raises:
        UserError: if there are more or fewer, or their widths differ.
    """
    if [spec.width for spec in used] != [spec.width for spec in trained]:
        widths = [" and ".join(f"{spec.name} {spec.width}" for spec in specs) for specs in (used, trained)]
        raise UserError(
            f"{what}: {widths[0]} does not fit the projectors trained for {widths[1]}; only encoders of equal widths "
            "can be swapped"
        )


class Normalising(nn.Module):
    """What takes pixels in [0, 1] and normalises them inside."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        # No buffers: those would be rounded with the weights when the encoder goes to half precision.
        self._statistics: tuple[Tensor, Tensor] | None = None

    def normalised(self, pixels_BCHW: Tensor) -> Tensor:
        """Images as the tower takes them.

        Args:
            pixels_BCHW: RGB in [0, 1]. Normalised in their own precision, then cast to that of the weights, so that a
                float32 perturbation is not rounded before the division.
        """
        mean_1C11, std_1C11 = self.statistics(pixels_BCHW)
        return ((pixels_BCHW - mean_1C11) / std_1C11).to(next(self.parameters()).dtype)

    def statistics(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the encoder's training, whatever the precision of its weights.

        Returns:
            Both [1, C, 1, 1].
        """
        cached = self._statistics
        if cached is None or (cached[0].dtype, cached[0].device) != (pixels_BCHW.dtype, pixels_BCHW.device):
            like = {"dtype": pixels_BCHW.dtype, "device": pixels_BCHW.device}
            mean, std = (torch.tensor(values, **like) for values in (self.spec.mean, self.spec.std))  # type: ignore[arg-type]
            self._statistics = cached = (mean[None, :, None, None], std[None, :, None, None])
        return cached


class Encoder(Normalising):
    """Base class of encoders: normalises, then calls :meth:`features`."""

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Encodes images.

        Args:
            pixels_BCHW: RGB in [0, 1], of side ``spec.image_size``; see :meth:`normalised`.

        Returns:
            Visual tokens, [B, P, D], in the precision of the weights.
        """
        return self.features(self.normalised(pixels_BCHW))

    def features(self, normalised_BCHW: Tensor) -> Tensor:
        """Visual tokens of normalised images; what a family implements.

        Args:
            normalised_BCHW: images after mean and standard deviation.

        Returns:
            [B, P, D].
        """
        raise NotImplementedError

    def load_weights(self, path: Path) -> None:
        """Loads weights strictly; a family with formats of its own overrides it.

        Args:
            path: file or folder, as ``spec.weights`` names it.
        """
        state = read_weights(path, self.spec.label, self.spec.ema)
        dropped = [key for key in state if key.split(".")[0] in TRAINING_ONLY]
        self.load_state_dict(fitting(self.state_dict(), state, f"{self.spec.label}: {path}", dropped))


def input_size(specs: Sequence[EncoderSpec]) -> int:
    """Side of the images that the members of an ensemble share, and that attacks perturb.

    Returns:
        The largest, in pixels.
    """
    return max(spec.image_size for spec in specs)


def encode(encoders: Sequence[Encoder], pixels_BCHW: Tensor) -> list[Tensor]:
    """Tokens of every encoder of an ensemble.

    Args:
        pixels_BCHW: RGB in [0, 1]; scaled down, with gradient, for a member that takes smaller images.

    Returns:
        Per encoder, [B, P, D].
    """
    tokens = []
    for encoder in encoders:
        side = encoder.spec.image_size
        fits = pixels_BCHW.shape[-1] == side
        scaled_BCHW = pixels_BCHW if fits else F.interpolate(pixels_BCHW, (side, side), mode="bilinear", antialias=True)
        tokens.append(encoder(scaled_BCHW))
    return tokens


TRAINING_ONLY = frozenset({"text", "head"})
"""Parts of a weights file that belong to its training, not to the encoder."""


def bare_encoder(spec: EncoderSpec) -> Encoder:
    """Builds an encoder without reading its weights.

    Returns:
        The encoder with the library's initial weights from ``spec.seed``; on the meta device within
        ``with torch.device("meta")``.
    """
    encoder = constructed(spec.builder, spec)
    assert isinstance(encoder, Encoder)
    return encoder


def constructed(builder: str, spec: EncoderSpec) -> Any:
    """What a function named by its import path builds of a spec, with initial weights from ``spec.seed``."""
    module_name, _, function_name = builder.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return getattr(importlib.import_module(module_name), function_name)(spec)


def build_encoder(spec: EncoderSpec) -> Encoder:
    """Builds an encoder with its weights, frozen and in evaluation mode.

    Returns:
        The encoder, float32, on the CPU.

    Raises:
        UserError: if the weights are missing, have another hash, or do not fit the architecture.
    """
    if spec.weights is None:
        return bare_encoder(spec).requires_grad_(False).eval()
    path = check_weights(spec)
    assert path is not None
    encoder = bare_encoder(spec)
    encoder.load_weights(path)
    return encoder.float().requires_grad_(False).eval()


def check_encoder(spec: EncoderSpec) -> None:
    """Reads an encoder's weights and compares them with its architecture, which gets no memory.

    Raises:
        UserError: if the weights are missing, damaged, or do not fit.
    """
    path = check_weights(spec)
    if path is None:
        return
    with torch.device("meta"):
        encoder = bare_encoder(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing is copied to the meta device
        encoder.load_weights(path)


def measured(spec: EncoderSpec) -> EncoderSpec:
    """A spec with the number and width of tokens that its architecture gives, found on the meta device.

    Args:
        spec: its ``tokens`` and ``width`` are not looked at.

    Raises:
        UserError: if the architecture takes no images of that size.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            tokens_BPD = bare_encoder(spec).eval()(torch.empty(1, 3, spec.image_size, spec.image_size))
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(
            f"encoder '{spec.name}': {spec.architecture} takes no images of {spec.image_size} pixels ({reason})"
        ) from error
    return dataclasses.replace(spec, tokens=tokens_BPD.shape[1], width=tokens_BPD.shape[2])
