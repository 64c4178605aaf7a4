"""What a search may be asked to make better: columns that a storage can have, each with its direction.

A new one is one :class:`Kind` in :data:`OBJECTIVES`. How a column is computed from records is the analysis's matter
(``analysis.objectives``).
"""

from dataclasses import dataclass
from typing import Literal

from rllava.errors import UserError
from rllava.registry import Registry

MOST = 3
"""Objectives at a time: fronts of more hold nearly every point."""


@dataclass(frozen=True)
class Kind:
    """A kind of objective.

    Attributes:
        direction: ``max`` or ``min``.
        about: one line.
        at: what stands behind an ``@``; empty: nothing does.
        worst: value that everything is better than; None: the worst that was seen.
    """

    direction: Literal["max", "min"]
    about: str
    at: str = ""
    worst: float | None = None


OBJECTIVES: Registry[Kind] = Registry("objective", "rllava.objectives")

OBJECTIVES.register("clean", Kind("max", "mean score on clean images", worst=0.0))
OBJECTIVES.register("robust", Kind("max", "mean score under attack at a budget", at="budget in 1/255", worst=0.0))
OBJECTIVES.register("corruption", Kind("max", "mean score over corruptions and severities", worst=0.0))
OBJECTIVES.register(
    "jailbreak", Kind("min", "percent of requests to refuse that a judge flags", at="budget in 1/255", worst=100.0)
)
OBJECTIVES.register("gpu_hours", Kind("min", "hours of one worker, training and evaluation"))
OBJECTIVES.register("parameters", Kind("min", "millions, encoders included"))


@dataclass(frozen=True)
class Objective:
    """A column to make better.

    Attributes:
        kind: name in :data:`OBJECTIVES`.
        budget: in 1/255, of kinds that have one.
    """

    kind: str
    budget: float | None = None

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.kind if self.budget is None else f"{self.kind}@{self.budget:g}"

    @property
    def direction(self) -> Literal["max", "min"]:
        """``max`` or ``min``."""
        return OBJECTIVES.get(self.kind).direction

    @property
    def sign(self) -> float:
        """What values are multiplied by, so that larger is better."""
        return 1.0 if self.direction == "max" else -1.0


def read_objectives(texts: tuple[str, ...]) -> tuple[Objective, ...]:
    """Reads objectives: ``clean``, ``robust@8``.

    Raises:
        UserError: if one is unknown, is asked for twice, or there are too few or too many.
    """
    found = tuple(map(_read, texts))
    if not 2 <= len(found) <= MOST or len(set(found)) < len(found):
        raise UserError(
            f"--objectives {' '.join(texts)}: give two or three different ones; known: {', '.join(OBJECTIVES)}"
        )
    return found


def _read(text: str) -> Objective:
    name, at, number = text.partition("@")
    kind = OBJECTIVES.get(name)
    if bool(at) != bool(kind.at):
        wanted = f"{name}@8 ({kind.at})" if kind.at else name
        raise UserError(f"--objectives {text}: write {wanted}")
    if not at:
        return Objective(name)
    try:
        budget = float(number)
    except ValueError:
        budget = -1.0
    if not 0 < budget <= 255:
        raise UserError(f"--objectives {text}: expected a budget in 1/255, above 0 and up to 255, e.g. {name}@8")
    return Objective(name, budget)
