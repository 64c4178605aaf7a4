"""What an encoder is: pixels in [0, 1] in, visual tokens out, its own normalisation and weights inside.

Shapes: B batch, C channel (3), H/W image, P visual tokens, D width.
"""

import hashlib
import importlib
import importlib.resources
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rllava.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that decides what an encoder computes; part of the fingerprint of every model built on it.

    Attributes:
        name: as registered.
        builder: ``"package.module:function"``; the function takes this spec and returns an :class:`Encoder` without
            weights. An import path rather than a function, so that a spec can be stored and sent to workers.
        weights: safetensors file: a path, or ``asset:NAME`` for a file shipped in ``rllava/assets``. None: random
            weights from ``seed``.
        sha256: of the weights file; checked whenever it is read.
        image_size: side of the square input, in pixels.
        tokens: visual tokens per image (P).
        width: of a visual token (D).
        mean: per channel, subtracted from pixels in [0, 1].
        std: per channel, divided by.
        training: one line on how the weights came about.
        licence: of the weights.
        seed: of random weights.
    """

    name: str
    builder: str
    weights: str | None
    sha256: str | None
    image_size: int
    tokens: int
    width: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    training: str = ""
    licence: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.weights is not None and self.sha256 is None:
            raise ValueError(f"encoder '{self.name}': give the sha256 of its weights (sha256sum FILE prints it)")


class Encoder(nn.Module):
    """Base class of encoders: normalises, then calls :meth:`features`.

    Args:
        spec: what it is.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        # No buffers: those would be rounded with the weights when the encoder goes to half precision.
        self._statistics: tuple[Tensor, Tensor] | None = None

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Encodes images.

        Args:
            pixels_BCHW: RGB in [0, 1], of side ``spec.image_size``. Normalised in their own precision, then cast to
                that of the weights, so that a float32 perturbation is not rounded before the division.

        Returns:
            Visual tokens, [B, P, D], in the precision of the weights.
        """
        mean_1C11, std_1C11 = self.statistics(pixels_BCHW)
        return self.features(((pixels_BCHW - mean_1C11) / std_1C11).to(next(self.parameters()).dtype))

    def statistics(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the encoder's training, whatever the precision of its weights.

        Args:
            pixels_BCHW: gives precision and device.

        Returns:
            Both [1, C, 1, 1].
        """
        cached = self._statistics
        if cached is None or (cached[0].dtype, cached[0].device) != (pixels_BCHW.dtype, pixels_BCHW.device):
            like = {"dtype": pixels_BCHW.dtype, "device": pixels_BCHW.device}
            mean, std = (torch.tensor(values, **like) for values in (self.spec.mean, self.spec.std))  # type: ignore[arg-type]
            self._statistics = cached = (mean[None, :, None, None], std[None, :, None, None])
        return cached

    def features(self, normalised_BCHW: Tensor) -> Tensor:
        """Visual tokens of normalised images; what a family implements.

        Args:
            normalised_BCHW: images after mean and standard deviation.

        Returns:
            [B, P, D].
        """
        raise NotImplementedError


def weights_path(weights: str) -> Path:
    """Where a weights file lies on this machine.

    Args:
        weights: a path, or ``asset:NAME``.

    Returns:
        Its path; existence is not checked.
    """
    if weights.startswith("asset:"):
        return Path(str(importlib.resources.files("rllava"))) / "assets" / weights.removeprefix("asset:")
    return Path(weights).expanduser()


def build_encoder(spec: EncoderSpec) -> Encoder:
    """Builds an encoder with its weights, frozen and in evaluation mode.

    Args:
        spec: what to build.

    Returns:
        The encoder, float32, on the CPU.

    Raises:
        UserError: if the weights file is missing, has another hash, or does not fit the architecture.
    """
    module_name, _, function_name = spec.builder.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        encoder = getattr(importlib.import_module(module_name), function_name)(spec)
    assert isinstance(encoder, Encoder)
    if spec.weights is not None:
        load_weights(encoder, spec)
    return encoder.requires_grad_(False).eval()


def check_weights(spec: EncoderSpec) -> None:
    """Checks presence and hash of the weights file, without building the encoder.

    Args:
        spec: whose weights.

    Raises:
        UserError: if the file is missing or has another hash.
    """
    if spec.weights is None:
        return
    path = weights_path(spec.weights)
    if not path.is_file():
        raise UserError(f"encoder '{spec.name}': weights file {path} does not exist; put it there or correct its path")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if spec.sha256 is not None and found != spec.sha256:
        raise UserError(
            f"encoder '{spec.name}': weights file {path} has sha256 {found[:12]}…, expected {spec.sha256[:12]}…; "
            "fetch the file again, or register the new weights under a new name"
        )


def load_weights(encoder: nn.Module, spec: EncoderSpec) -> None:
    """Loads a safetensors file strictly.

    Args:
        encoder: to load into.
        spec: says which file.

    Raises:
        UserError: if the file is missing, damaged, of another hash, or a key is missing, extra or mis-shaped.
    """
    check_weights(spec)
    assert spec.weights is not None
    path = weights_path(spec.weights)
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own error class, OSError and others
        raise UserError(f"encoder '{spec.name}': {path} is no readable safetensors file ({error})") from error
    expected = encoder.state_dict()
    state = {key: value for key, value in state.items() if key.split(".")[0] not in IGNORED_PREFIXES}
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} has shape {list(state[key].shape)}, expected {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise UserError(f"encoder '{spec.name}': {path} does not fit the architecture: {shown}")
    encoder.load_state_dict({key: value.float() for key, value in state.items()})


IGNORED_PREFIXES = frozenset({"text", "head"})
"""Parts of a weights file that belong to its training, not to the encoder."""
