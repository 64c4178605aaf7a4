"""A benchmark's fixed list without its images, for what depends on what the others are asked and answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Listed:
    """A sample of a benchmark's fixed list, without its image."""

    sample_id: str
    prompt: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class SampleList:
    """The fixed list of a benchmark, whose answers are wrong ones for others.

    Attributes:
        score: of a text for a sample, in the metric's units.
        drops: at which scores nothing is left of an answer, see ``rllava.tasks.task.Task.drops``.
        bank: answers that are common in it.
    """

    samples: tuple[Listed, ...]
    score: Callable[[str, Sequence[str]], float]
    drops: Callable[[float], bool]
    bank: tuple[str, ...]
