"""Whole image towers of open_clip: its vision transformers, residual networks, and those it takes from timm.

Shapes: B batch, C channel, H/W image, E embedding.
"""

from pathlib import Path

import torch
from torch import Tensor

from rllava.encoders.base import EncoderSpec
from rllava.encoders.towers.open_clip import read_tower, tower
from rllava.encoders.whole import WholeTower


class WholeOpenClip(WholeTower):
    """open_clip's ``visual``: its pooling and projection are those of its configuration."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self.tower = tower(spec)

    def pooled(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class."""
        found: Tensor | tuple[Tensor, Tensor] = self.tower(normalised_BCHW)
        return found[0] if isinstance(found, tuple) else found  # CoCa's give their tokens along

    def load_weights(self, path: Path) -> None:
        """Loads a checkpoint of the image tower, or of both towers."""
        with torch.device("meta"):
            expected = tower(self.spec).state_dict()
        self.tower.load_state_dict(read_tower(self.spec, expected, path))

    def open_clip_weights(self) -> dict[str, Tensor]:
        """See the base class."""
        return self.weights()
