"""The embedded encoders: one small convolutional architecture, four ways to train it.

Made by ``sweeps/pretrain_encoders.py`` (see :mod:`rllava.training.pretraining`); the architecture is the same for all,
so that only the training differs. 64 x 64 pixels in, 16 visual tokens of width 128 out.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from rllava.encoders.base import Encoder, EncoderSpec
from rllava.encoders.whole import WholeTower, on_cpu
from rllava.pinned import Pinned, Weights
from rllava.weights import fitting, read_weights, weights_path

CHANNELS = (32, 64, 64, 128)
STRIDES = (4, 2, 1, 2)
EMBEDDING = 64
"""Width of the space that they share with the texts of their training."""

WHOLE_TOWER = "rllava.encoders.tiny:WholeTiny"

CARD = "asset:tiny_encoders.json"
"""What made the shipped weights: spec, seed, hash, measured accuracies."""


class _Block(nn.Module):
    """Depthwise 3x3 convolution, normalisation, pointwise expansion, residual (after ConvNeXt, with GroupNorm)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(4, width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.contract = nn.Conv2d(2 * width, width, 1)
        self.activation = nn.GELU()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden_BCHW = self.expand(self.norm(self.depthwise(x_BCHW)))
        summed_BCHW: Tensor = x_BCHW + self.contract(self.activation(hidden_BCHW))
        return summed_BCHW


class TinyConvEncoder(Encoder):
    """Four stages of depthwise-separable blocks.

    Args:
        spec: its name, weights and normalisation.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        layers: list[nn.Module] = [
            nn.Conv2d(3, CHANNELS[0], STRIDES[0], stride=STRIDES[0]),
            nn.GroupNorm(4, CHANNELS[0]),
        ]
        for stage, width in enumerate(CHANNELS):
            if stage > 0:
                layers += [nn.Conv2d(CHANNELS[stage - 1], width, STRIDES[stage], stride=STRIDES[stage])]
            layers += [_Block(width)]
        self.trunk = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(CHANNELS[-1])

    def features(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class.

        Args:
            normalised_BCHW: images of 64 x 64 pixels after normalisation.

        Returns:
            [B, 16, 128].
        """
        # Channels last: depthwise convolutions on a CPU are a third faster that way.
        maps_BDHW = self.trunk(normalised_BCHW.contiguous(memory_format=torch.channels_last))
        tokens_BPD: Tensor = maps_BDHW.flatten(2).transpose(1, 2)
        normed_BPD: Tensor = self.norm(tokens_BPD)
        return normed_BPD


class WholeTiny(WholeTower):
    """The encoder with the head of its training: the embedding is that of :class:`rllava.encoders.dual.DualEncoder`."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self.tower = TinyConvEncoder(spec)
        self.head = nn.Linear(spec.width, EMBEDDING)

    def pooled(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class."""
        embedding_BE: Tensor = self.head(self.tower.features(normalised_BCHW).mean(1))
        return embedding_BE

    def load_weights(self, path: Path) -> None:
        """Loads the encoder and its head; the text tower is left out."""
        state = read_weights(path, self.spec.label)
        dropped = [key for key in state if key.startswith("text.")]
        mine = fitting(self.weights(), state, f"{self.spec.label}: {path}", dropped)
        self.load_state_dict({key if key.startswith("head.") else f"tower.{key}": value for key, value in mine.items()})

    def weights(self) -> dict[str, Tensor]:
        """See the base class."""
        return {key.removeprefix("tower."): value for key, value in on_cpu(self.state_dict()).items()}


def build(spec: EncoderSpec) -> TinyConvEncoder:
    """Builder of the family.

    Returns:
        The encoder without its weights.
    """
    return TinyConvEncoder(spec)


def tiny_spec(name: str, *, weights: Weights | None = None, training: str = "") -> EncoderSpec:
    """Spec of an encoder of this architecture.

    Args:
        weights: see :class:`EncoderSpec`.
        training: one line on how it was trained.
    """
    return EncoderSpec(
        name=name,
        builder="rllava.encoders.tiny:build",
        weights=weights,
        image_size=64,
        tokens=16,
        width=CHANNELS[-1],
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        training=training,
        licence="Apache-2.0",
    )


def shipped_specs() -> list[EncoderSpec]:
    """The encoders whose weights come with the package, as its card lists them.

    Returns:
        One spec per shipped weights file.
    """
    card = json.loads(weights_path(CARD).read_text())
    return [
        tiny_spec(name, weights=Pinned(f"asset:{name}.safetensors", entry["sha256"]), training=entry["training"])
        for name, entry in card["encoders"].items()
    ]


def register_encoders(register: Callable[[EncoderSpec], EncoderSpec]) -> None:
    """Registers the shipped encoders.

    Args:
        register: see :func:`rllava.encoders.register`.
    """
    for spec in shipped_specs():
        register(spec)
