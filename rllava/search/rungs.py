"""Asynchronous multi-objective successive halving: who goes on to a larger rung.

Of the configurations that have finished a rung, the best share goes on, best by non-dominated rank and, within a rank,
by crowding distance (Schmucker et al. 2021, arXiv 2106.12639); nobody waits for a rung to be full (ASHA: Li et al.
2018). A promotion is never taken back.
"""

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from rllava.errors import UserError
from rllava.fronts import best_first


@dataclass(frozen=True)
class Rung:
    """How much is spent on a configuration.

    Attributes:
        samples: of each benchmark's list, from its start, rounded up to whole shards. A larger rung goes on from them.
        share: of the training steps. A training of fewer steps is one of its own, none that a larger rung goes on from.
    """

    samples: int
    share: float = 1.0


def check_rungs(rungs: Sequence[Rung]) -> None:
    """Refuses rungs that do not rise.

    Raises:
        UserError: naming the option.
    """
    told = " ".join(str(rung.samples) for rung in rungs)
    if not rungs:
        raise UserError("--rungs: give at least one number of samples")
    if any(rung.samples < 1 or not 0 < rung.share <= 1 for rung in rungs):
        raise UserError(f"--rungs {told}: expected at least 1 sample, and shares of the training above 0, up to 1")
    if any(b.samples < a.samples or b.share < a.share or a == b for a, b in itertools.pairwise(rungs)):
        raise UserError(f"--rungs {told}: expected each to be larger than the one before")
    if rungs[-1].share != 1:
        raise UserError(f"--rung-steps: the last rung trains {rungs[-1].share:g} of the steps; expected 1")


Point = Sequence[float]
"""Values of the objectives, larger is better."""


def to_promote(
    finished: Sequence[Mapping[int, Point]], promoted: Set[tuple[int, int]], one_in: int
) -> tuple[int, int] | None:
    """Who goes on to a larger rung, the largest first.

    Args:
        finished: per rung, the points of the configurations that have finished it, by number.
        promoted: (configuration, rung) of all that were begun.
        one_in: one in so many goes on.

    Returns:
        A configuration and the rung that it is to begin; None: nobody yet.
    """
    for rung in reversed(range(len(finished) - 1)):
        numbers = list(finished[rung])
        best = leaders(finished[rung])[: len(numbers) // one_in]
        for number in best:
            if (number, rung + 1) not in promoted:
                return number, rung + 1
    return None


def leaders(points: Mapping[int, Point]) -> list[int]:
    """Configurations, the best first."""
    numbers = list(points)
    if not numbers:
        return []
    return [numbers[n] for n in best_first(np.array([points[number] for number in numbers], dtype=np.float64))]
