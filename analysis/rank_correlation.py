"""Spearman's rank correlation of few points, with a permutation test that is exact where all orders can be tried.

Shape legend: N points, P permutations.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.bootstrap import FloatArray

EXACT_UP_TO = 8
"""Points whose 8! = 40 320 orders are all tried."""

PERMUTATIONS = 20_000
"""Random orders that are tried of more points."""

_TOLERANCE = 1e-9  # correlations closer than this are equal


@dataclass(frozen=True)
class RankCorrelation:
    """Of two lists of numbers.

    Attributes:
        rho: in [-1, 1], equal values sharing a mean rank; NaN where it is not defined: fewer than three points, or a
            list of equal values.
        p: two-sided, of orders that correlate at least as much; NaN where ``rho`` is.
        n: points that have both numbers.
        permutations: orders tried; all where ``exact``.
    """

    rho: float
    p: float
    n: int
    permutations: int
    exact: bool


def rank_correlation(x_N: FloatArray, y_N: FloatArray, seed: int = 0) -> RankCorrelation:
    """Correlates the ranks of two lists; points that lack a number are left out.

    Args:
        seed: of the random orders.
    """
    both = np.isfinite(x_N) & np.isfinite(y_N)
    n = int(both.sum())
    exact = n <= EXACT_UP_TO
    if n < 3:
        return RankCorrelation(math.nan, math.nan, n, 0, exact)
    x_n, y_n = _standard(x_N[both]), _standard(y_N[both])
    if not (x_n.any() and y_n.any()):
        return RankCorrelation(math.nan, math.nan, n, 0, exact)
    orders_PN = all_orders(n) if exact else _random_orders(n, seed)
    rho = float(x_n @ y_n)
    as_far = int((np.abs(y_n[orders_PN] @ x_n) >= abs(rho) - _TOLERANCE).sum())
    count = len(orders_PN)
    # The observed order is among all of them; random ones are joined by it.
    p = as_far / count if exact else (1 + as_far) / (1 + count)
    return RankCorrelation(rho, p, n, count, exact)


@functools.cache
def all_orders(n: int) -> npt.NDArray[np.int64]:
    """All n! permutations, [P, N]."""
    return np.array(list(itertools.permutations(range(n))), dtype=np.int64)


@functools.lru_cache(maxsize=8)
def _random_orders(n: int, seed: int) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng([seed, n])
    return np.asarray(rng.permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1), dtype=np.int64)


def _standard(values_N: FloatArray) -> FloatArray:
    """Ranks of mean 0 and length 1; zeros where all are equal."""
    centred_N = pd.Series(values_N).rank().to_numpy(dtype=np.float64) - (len(values_N) + 1) / 2
    length = float(np.linalg.norm(centred_N))
    return np.asarray(centred_N / length if length else centred_N, dtype=np.float64)
