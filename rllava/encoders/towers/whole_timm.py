"""Whole models of timm: what its classifier would take, and CLIP's projection where a checkpoint has one.

Shapes: B batch, C channel, H/W image, E embedding.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rllava.encoders.base import EncoderSpec
from rllava.encoders.towers.timm import read_native, tower, tower_weights
from rllava.encoders.whole import WholeTower

_HEAD, _BIAS = "head.weight", "head.bias"


class WholeTimm(WholeTower):
    """A model of timm up to its classifier, with its own pooling and norms."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self.tower = tower(spec)
        self._projects = False

    def pooled(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class."""
        features = self.tower.forward_features(normalised_BCHW)
        pooled_BE: Tensor = self.tower.forward_head(features, pre_logits=not self._projects)
        return pooled_BE

    def load_weights(self, path: Path) -> None:
        """Loads a checkpoint of timm or of a training script; a classifier is left out, CLIP's projection is not."""
        state = read_native(self.spec, self.tower, path)
        if _is_projection(self.spec, state):
            self.tower.reset_classifier(state[_HEAD].shape[0])
            self._projects = True
        self.tower.load_state_dict(tower_weights(self.spec, self.tower, state, path))
        if self._projects:
            self.tower.head.bias.requires_grad_(False)  # CLIP has none


def _is_projection(spec: EncoderSpec, state: Mapping[str, Tensor]) -> bool:
    """Whether the last layer is CLIP's projection, to which timm adds a bias of zeros, and no classifier."""
    return "_clip_" in spec.architecture and _HEAD in state and not bool(state[_BIAS].any())
