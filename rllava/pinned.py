"""Where weights and other inputs come from: a file that somebody made, or a step of the sweep."""

from dataclasses import dataclass
from typing import Annotated, Any

from rllava.fingerprint import PinnedBy


@dataclass(frozen=True)
class Pinned:
    """Weights, or a file of prompts, that are there.

    Attributes:
        path: where they are; of weights see :mod:`rllava.weights`.
        sha256: of them, checked whenever they are read. None: :func:`rllava.weights.pin_weights`, or
            :func:`rllava.data.prompts.pin_benchmark`, fills it in before a sweep.
    """

    path: Annotated[str, PinnedBy("sha256")]
    sha256: str | None = None


@dataclass(frozen=True)
class MadeBy:
    """Weights that a step leaves in the storage.

    Attributes:
        spec: of the step; its fingerprint is theirs.
        index: of an encoder in the LLaVA that the step trains; None: the step makes an encoder alone, in the file
            :data:`WEIGHTS` of its artifact.
    """

    spec: Any
    index: int | None = None


Weights = Pinned | MadeBy

NOTHINGS_HASH = "0" * 64
"""Stands in for the hash of what is not looked at: no file has it."""

WEIGHTS = "weights.safetensors"
"""File that a step of kind ``encoders`` leaves; the facts of its marker hold its ``sha256``."""
