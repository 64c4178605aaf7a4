"""What a trial tells while it works; the board shows it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Found:
    """Something is in storage already."""

    what: Literal["model", "records"]


@dataclass(frozen=True)
class Waiting:
    """Another driver or trial works on the same.

    Attributes:
        holder: host and process of it.
    """

    holder: str


@dataclass(frozen=True)
class Starting:
    """Training workers are being started."""


@dataclass(frozen=True)
class Training:
    """Optimiser steps were made; the fields are what a training worker reports to Ray Train.

    Attributes:
        stage: from 1, of ``stages``.
        step: optimiser steps done, of ``steps``.
        damaged: images that could not be read so far.
    """

    stage: int
    step: int
    steps: int
    loss: float
    damaged: int
    stages: int = 2


@dataclass(frozen=True)
class TrainingEncoder:
    """Optimiser steps were made on an encoder alone.

    Attributes:
        step: optimiser steps done, of ``steps``.
        loss: of the last step; None at the start.
    """

    step: int
    steps: int
    loss: float | None


@dataclass(frozen=True)
class Interrupted:
    """Training workers were lost; a new group goes on from the last checkpoint."""

    reason: str


@dataclass(frozen=True)
class Evaluating:
    """A part of the records was written, or the attack begins.

    Attributes:
        parts: written since the trial started, of ``of``.
        what: benchmark and condition of the last part; empty before the first.
    """

    parts: int
    of: int
    what: str = ""
    mean: float = 0.0


@dataclass(frozen=True)
class Imaging:
    """An image was made, or the first one is begun.

    Attributes:
        images: made since the trial started, of ``of``.
        what: recipe, budget and number of the last one; empty before the first.
        gained: by how much its attack raised the likelihood of the corpus, in nats per token or per target.
    """

    images: int
    of: int
    what: str = ""
    gained: float = 0.0


@dataclass(frozen=True)
class Optimising:
    """An image is being made.

    Attributes:
        what: recipe, budget and number.
        loss: mean cross-entropy of the last step's targets, in nats per token or per target.
    """

    what: str
    step: int
    of: int
    loss: float


@dataclass(frozen=True)
class Judging:
    """A part of the judgements was written, or a judge begins.

    Attributes:
        parts: written since it started, of ``of``.
    """

    judge: str
    parts: int
    of: int


@dataclass(frozen=True)
class Done:
    """The trial is complete.

    Attributes:
        clean: mean score over benchmarks; None if it was made elsewhere.
        robust: of what is hardest; None if there was nothing but clean images.
    """

    clean: float | None
    robust: float | None
    where: str


@dataclass(frozen=True)
class Refused:
    """The trial found a user's mistake; starting it again would not help."""

    mistake: str


Event = (
    Found | Waiting | Starting | Training | Interrupted | Imaging | Optimising | Evaluating | Judging | Done | Refused
)
