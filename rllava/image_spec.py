"""An image that is made once and shown to many: the spec of a step of kind ``images``."""

from collections.abc import Mapping
from dataclasses import dataclass

from rllava.data.images import PREPROCESSING_VERSION
from rllava.encoders.base import EncoderSpec
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.specs import ModelSpec
from rllava.universal_spec import Making


@dataclass(frozen=True)
class ImageSpec:
    """One image, made for one model.

    Attributes:
        restart: its number; another one starts at other noise and draws other targets.
    """

    model: ModelSpec | CheckpointSpec
    encoders: tuple[EncoderSpec, ...]
    making: Making
    restart: int = 0

    @property
    def name(self) -> str:
        """Readable name of the artifact."""
        encoders = "+".join(encoder.name for encoder in self.encoders)
        return f"{encoders}-{self.making.recipe.name}-eps{self.making.epsilon:g}-{self.restart}"

    def versions(self) -> Mapping[str, int]:
        """Of what is done to the clean picture."""
        return {"preprocessing": PREPROCESSING_VERSION}
