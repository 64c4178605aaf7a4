"""Means, intervals and tests against scipy, closed forms, and by simulation."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.bootstrap import (
    average_bootstraps,
    bca_interval,
    bootstrap_means,
    holm,
    sign_flip_p_values,
)


def skewed(samples: int, columns: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(40.0, size=(samples, columns))


def test_means_and_counts_leave_missing_values_out() -> None:
    values_SK = np.array([[1.0, 10.0], [3.0, np.nan], [8.0, 20.0]])
    result = bootstrap_means(values_SK, 2000, [0])
    np.testing.assert_allclose(result.mean, [4.0, 15.0])
    np.testing.assert_array_equal(result.n, [3, 2])
    assert set(np.unique(result.draws[np.isfinite(result.draws[:, 1]), 1].round(6))) <= {
        10.0, 15.0, 20.0, round(40 / 3, 6), round(50 / 3, 6),
    }  # fmt: skip


def test_draws_have_the_spread_of_a_mean() -> None:
    values_SK = skewed(400)
    draws = bootstrap_means(values_SK, 4000, [0]).draws[:, 0]
    assert draws.mean() == pytest.approx(values_SK.mean(), rel=0.005)
    assert draws.std() == pytest.approx(values_SK.std() / np.sqrt(400), rel=0.05)


def test_columns_of_a_draw_use_the_same_samples() -> None:
    values_SK = skewed(50)
    draws = bootstrap_means(np.hstack([values_SK, values_SK + 7.0]), 500, [0]).draws
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 7.0)


@pytest.mark.parametrize("samples", [15, 96])
def test_bca_agrees_with_scipy(samples: int) -> None:
    values_SK = skewed(samples, seed=samples)
    low, high = bca_interval(bootstrap_means(values_SK, 20_000, [1]))
    theirs = scipy.stats.bootstrap((values_SK[:, 0],), np.mean, n_resamples=20_000, method="BCa", rng=2)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)
    percentile = np.quantile(bootstrap_means(values_SK, 20_000, [1]).draws[:, 0], [0.025, 0.975])
    assert samples > 15 or abs(percentile[1] - high[0]) > 0.05 * width  # the correction is not idle


def test_interval_of_an_average_is_that_of_independent_means() -> None:
    parts = [np.random.default_rng(seed).normal(50, 10 * (1 + seed), size=(200, 1)) for seed in (0, 1)]
    average = average_bootstraps([bootstrap_means(part, 8000, [seed]) for seed, part in enumerate(parts)])
    low, high = bca_interval(average)
    error = np.sqrt(sum(part.var() / len(part) for part in parts)) / 2
    centre = np.mean([part.mean() for part in parts])
    assert average.mean[0] == pytest.approx(centre)
    assert average.n[0] == 400
    np.testing.assert_allclose([low[0], high[0]], [centre - 1.96 * error, centre + 1.96 * error], atol=0.12 * error)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    values_SK = np.where(np.random.default_rng(3).random((96, 400)) < 0.3, 100.0, 0.0)
    low, high = bca_interval(bootstrap_means(values_SK, 1000, [0]))
    coverage = np.mean((low <= 30.0) & (high >= 30.0))
    assert 0.91 <= coverage <= 0.98


def test_interval_is_unknown_for_one_value_and_has_no_width_for_equal_ones() -> None:
    low, high = bca_interval(bootstrap_means(np.array([[5.0, 0.1], [np.nan, 0.1], [np.nan, 0.1]]), 500, [0]))
    assert np.isnan([low[0], high[0]]).all()
    np.testing.assert_allclose([low[1], high[1]], 0.1)


def test_no_value_at_all_gives_nan_and_no_warning() -> None:
    result = bootstrap_means(np.full((4, 1), np.nan), 100, [0])
    assert np.isnan(result.mean).all()
    assert np.isnan(bca_interval(result)).all()
    assert np.isnan(bca_interval(bootstrap_means(np.empty((0, 1)), 100, [0]))).all()


def test_draws_do_not_depend_on_other_columns() -> None:
    values_SK = skewed(30, 3)
    alone = bootstrap_means(values_SK[:, [1]], 1500, [0, 5]).draws[:, 0]
    np.testing.assert_allclose(bootstrap_means(values_SK, 1500, [0, 5]).draws[:, 1], alone)


@pytest.mark.parametrize("shift", [0.0, 4.0, 9.0])
def test_sign_flips_agree_with_scipy(shift: float) -> None:
    rng = np.random.default_rng(5)
    differences_S = rng.normal(shift, 15.0, size=40)
    ours = sign_flip_p_values([differences_S[:, None]], 20_000, [0])[0]
    theirs = scipy.stats.permutation_test(
        (differences_S, np.zeros(40)), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=20_000, rng=1,
    ).pvalue  # fmt: skip
    assert ours == pytest.approx(theirs, abs=4 * np.sqrt(2 * theirs * (1 - theirs) / 20_000) + 2e-4)


def test_sign_flips_of_several_strata_agree_with_the_joint_enumeration() -> None:
    first, second = np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    null = (signs[:, :3] @ first / 3 + signs[:, 3:] @ second / 2) / 2
    observed = (first.mean() + second.mean()) / 2
    exact = np.mean(np.abs(null) >= observed - 1e-12)
    assert sign_flip_p_values([first[:, None], second[:, None]], 40_000, [0])[0] == pytest.approx(exact, abs=0.01)


def test_p_values_are_uniform_without_a_difference_and_never_zero() -> None:
    differences_SK = np.random.default_rng(7).normal(size=(40, 400))
    p_values = sign_flip_p_values([differences_SK], 999, [0])
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.001
    assert sign_flip_p_values([np.full((60, 1), 1.0)], 999, [0])[0] == pytest.approx(0.001)
    assert sign_flip_p_values([np.zeros((6, 1))], 99, [0])[0] == 1.0
    assert np.isnan(sign_flip_p_values([np.full((6, 1), np.nan)], 99, [0])[0])


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(
        holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005])), [0.03, 0.06, np.nan, 0.06, 0.02], equal_nan=True
    )


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_keeps_the_order(values: list[float]) -> None:
    p_values = np.array(values)
    adjusted = holm(p_values)
    assert np.all(adjusted >= p_values - 1e-15)
    assert np.all(adjusted <= 1.0)
    assert np.all(np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= 0)
    assert adjusted.min() == pytest.approx(min(1.0, p_values.min() * len(values)))
