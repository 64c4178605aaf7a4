"""Spearman's correlation and its permutation test."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from analysis.rank_correlation import PERMUTATIONS, rank_correlation


def test_few_points_are_tested_over_all_orders() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([2.0, 1.0, 4.0, 3.0, 5.0])
    found = rank_correlation(x, y)
    every = [spearmanr(x, y[list(order)]).statistic for order in itertools.permutations(range(5))]
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert found.p == np.mean(np.abs(every) >= abs(found.rho) - 1e-9)
    assert (found.n, found.permutations, found.exact) == (5, 120, True)


def test_ties_share_a_rank_and_missing_numbers_are_left_out() -> None:
    x = np.array([1.0, 1.0, 3.0, 4.0, np.nan, 9.0])
    y = np.array([1.0, 2.0, 3.0, 3.0, 5.0, np.nan])
    found = rank_correlation(x, y)
    assert found.rho == pytest.approx(spearmanr(x[:4], y[:4]).statistic)
    assert found.n == 4


def test_many_points_are_tested_over_random_orders() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    found = rank_correlation(x, y, seed=3)
    assert (found.permutations, found.exact) == (PERMUTATIONS, False)
    # Against the t approximation, which is good to some hundredths at n = 12.
    assert found.p == pytest.approx(spearmanr(x, y).pvalue, abs=0.02)
    assert found == rank_correlation(x, y, seed=3)
    assert rank_correlation(x, x).p == 1 / (PERMUTATIONS + 1)


@pytest.mark.parametrize("y", [[1.0, 2.0], [1.0, 1.0, 1.0], [np.nan, 1.0, 2.0]])
def test_what_has_no_correlation_has_none(y: list[float]) -> None:
    found = rank_correlation(np.arange(len(y), dtype=float), np.array(y))
    assert np.isnan(found.rho)
    assert np.isnan(found.p)
