"""Checkpoints of LLaVAs made elsewhere, as data: formats, and how they are read, are in :mod:`rllava.model.checkpoint`.

It stands beside that package, not in it: specs of other steps hold this one, and one format is read by way of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from rllava.encoders import EncoderSpec
from rllava.fingerprint import PinnedBy
from rllava.model.conversation import TEMPLATES
from rllava.weights import pin_weights

Format = Literal["original", "projector", "hugging_face", "trained"]


@dataclass(frozen=True)
class CheckpointSpec:
    """A trained LLaVA that was made elsewhere.

    Attributes:
        format: see :mod:`rllava.model.checkpoint`.
        weights: where it is: a folder or ``hub:ORG/NAME``; after it, where the language model is a folder of its
            own, that folder.
        sha256: of all files that are read, in whichever of those places: configuration, weights, tokenizer; checked
            whenever they are. One hash for several places is why this is not a :class:`rllava.pinned.Pinned`.
        encoders: that it was trained with.
        projectors: name of each encoder's projector in the weights.
    """

    name: str
    format: Format
    weights: Annotated[tuple[str, ...], PinnedBy("sha256")]
    sha256: str
    encoders: tuple[EncoderSpec, ...]
    projectors: tuple[str, ...]
    projector: str
    conversation: str

    def versions(self) -> Mapping[str, int]:
        """Of the conversation template."""
        return {"conversation": TEMPLATES.get(self.conversation).version}


def pin_checkpoint(spec: CheckpointSpec) -> CheckpointSpec:
    """A spec that means one set of weights, its encoders' included.

    Returns:
        The spec with its encoders' hashes.

    Raises:
        UserError: if an encoder's weights are missing.
    """
    return replace(spec, encoders=tuple(pin_weights(encoder) for encoder in spec.encoders))
