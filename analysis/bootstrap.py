"""Resampling statistics on score matrices, in numpy: bootstrap means, BCa intervals, the sign-flip test, Holm.

Shape legend: B bootstrap draws, S samples, K columns: quantities that are averaged over the same samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri  # scipy.stats.norm is these, and takes a second to import

FloatArray = npt.NDArray[np.float64]

_CHUNK = 1000  # draws at a time: bounds memory at _CHUNK x S floats
_TOLERANCE = 1e-9  # two means closer than this, relative to max(1, |mean|), are equal


@dataclass(frozen=True)
class Resampling:
    """How uncertainty is computed.

    Attributes:
        draws: bootstrap draws, and sign flips of a paired test.
        seed: the same seed gives the same intervals, whatever else is computed.
    """

    draws: int = 10_000
    seed: int = 0
    level: float = 0.95


DEFAULT_RESAMPLING = Resampling()


@dataclass(frozen=True)
class Bootstrap:
    """Means over samples, and how they vary when the samples are drawn anew.

    Attributes:
        mean: (K) the means over the samples that have a value.
        draws: (B, K) the means of the bootstrap draws. All columns of a draw use the same samples.
        influence: (S, K) each sample's influence on the mean (zero where it has no value); NaN columns where there are
            fewer than two values, which tell nothing about their spread.
        beside: (K) what the means are shares of: those of the clean column over the same samples; None: nothing is.
        beside_draws: (B, K) the same in the draws.
    """

    mean: FloatArray
    draws: FloatArray
    influence: FloatArray
    n: npt.NDArray[np.int64]
    beside: FloatArray | None = None
    beside_draws: FloatArray | None = None


def bootstrap_means(values_SK: FloatArray, draws: int, seed: Sequence[int]) -> Bootstrap:
    """Bootstraps column means by drawing samples (rows) with replacement, the same rows for all columns.

    Args:
        values_SK: values; NaN where a sample has none.
        seed: entropy of the generator; the same rows are drawn for the same seed and number of samples.

    Returns:
        The means and their draws. A draw without any value of a column is NaN there.
    """
    present_SK = np.isfinite(values_SK)
    filled_SK = np.where(present_SK, values_SK, 0.0)
    n_K = present_SK.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_K = filled_SK.sum(axis=0) / n_K
        draws_BK = np.concatenate(
            [
                (counts_BS @ filled_SK) / (counts_BS @ present_SK)
                for counts_BS in resampled_counts(len(values_SK), draws, seed)
            ]
        )
        influence_SK = np.where(present_SK, (values_SK - mean_K) / n_K, 0.0)
    influence_SK[:, n_K < 2] = np.nan
    return Bootstrap(mean_K, draws_BK, influence_SK, n_K.astype(np.int64))


def average_bootstraps(parts: Sequence[Bootstrap]) -> Bootstrap:
    """Averages means over strata (benchmarks), each of which was resampled within itself.

    Args:
        parts: one bootstrap per stratum, all of the same K and number of draws.

    Returns:
        The plain mean over the strata, NaN where one of them has no value; ``n`` is the total over the strata.
    """
    return Bootstrap(
        mean=np.mean([part.mean for part in parts], axis=0),
        draws=np.mean([part.draws for part in parts], axis=0),
        influence=np.concatenate([part.influence / len(parts) for part in parts]),
        n=np.sum([part.n for part in parts], axis=0),
        beside=_averaged([part.beside for part in parts]),
        beside_draws=_averaged([part.beside_draws for part in parts]),
    )


def _averaged(parts: Sequence[FloatArray | None]) -> FloatArray | None:
    known = [part for part in parts if part is not None]
    return np.asarray(np.mean(known, axis=0)) if len(known) == len(parts) else None


def bca_interval(bootstrap: Bootstrap, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Computes bias-corrected and accelerated (BCa) intervals of bootstrapped means.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, section 14.3; the acceleration of a stratified mean
    uses its empirical influence values (section 22.6), which for one stratum equals the jackknife's.

    Returns:
        ``low_K`` and ``high_K``; NaN where a mean has fewer than two values in some stratum. The interval has no width
        where all values are equal.
    """
    mean_K, draws_BK = bootstrap.mean, bootstrap.draws
    margin_K = _TOLERANCE * np.maximum(1.0, np.abs(mean_K))
    known_K = np.maximum(np.isfinite(draws_BK).sum(axis=0), 1)
    below_K = (draws_BK < mean_K - margin_K).sum(axis=0) / known_K
    equal_K = (np.abs(draws_BK - mean_K) <= margin_K).sum(axis=0) / known_K
    bias_K = ndtri(np.clip(below_K + equal_K / 2, 0.5 / known_K, 1 - 0.5 / known_K))
    acceleration_K = _acceleration(bootstrap.influence)
    bounds = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        shifted_K = bias_K + ndtri(tail)
        share_K = ndtr(bias_K + shifted_K / (1 - acceleration_K * shifted_K))
        bounds.append(column_quantiles(draws_BK, share_K))
    return bounds[0], bounds[1]


def column_quantiles(draws_BK: FloatArray, share_K: FloatArray) -> FloatArray:
    """Takes one quantile of each column, NaN draws left out; NaN where the share is NaN or no draw is finite."""
    quantiles_K = np.full(len(share_K), np.nan)
    for k, share in enumerate(share_K):
        finite_B = draws_BK[np.isfinite(draws_BK[:, k]), k]
        if np.isfinite(share) and len(finite_B):
            quantiles_K[k] = np.quantile(finite_B, share)
    return quantiles_K


def sign_flip_p_values(strata: Sequence[FloatArray], flips: int, seed: Sequence[int]) -> FloatArray:
    """Tests paired differences against zero by flipping their signs at random, two-sided.

    Under the null hypothesis the two candidates' scores of a sample are exchangeable. The statistic is the mean over
    strata of the mean difference; p = (1 + #{|flipped| >= |observed|}) / (1 + flips), which never is zero.

    Args:
        strata: per stratum (benchmark), ``differences_SK``; NaN where a sample lacks one of the two scores.
        flips: number of random sign patterns; one pattern serves all columns.

    Returns:
        ``p_K``; NaN where a stratum has no difference.
    """
    rng = np.random.default_rng(list(seed))
    columns = strata[0].shape[1]
    observed_K, flipped_BK = np.zeros(columns), np.zeros((flips, columns))
    for differences_SK in strata:
        n_K = np.isfinite(differences_SK).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled_SK = np.nan_to_num(differences_SK) / n_K / len(strata)
        observed_K += scaled_SK.sum(axis=0) if len(scaled_SK) else np.nan
        for start in range(0, flips, _CHUNK):
            rows = min(_CHUNK, flips - start)
            signs_BS = rng.integers(0, 2, size=(rows, len(scaled_SK)), dtype=np.int8) * 2.0 - 1.0
            flipped_BK[start : start + rows] += signs_BS @ scaled_SK
    margin_K = _TOLERANCE * np.maximum(1.0, np.abs(observed_K))
    p_K = (1 + (np.abs(flipped_BK) >= np.abs(observed_K) - margin_K).sum(axis=0)) / (1 + flips)
    return np.where(np.isfinite(observed_K), p_K, np.nan)


def holm(p_values: FloatArray) -> FloatArray:
    """Adjusts p values of one family by Holm's step-down method; NaN are no members and stay NaN."""
    adjusted = np.full(len(p_values), np.nan)
    order = [int(index) for index in np.argsort(p_values) if np.isfinite(p_values[index])]
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, float(p_values[index]) * (len(order) - rank)))
        adjusted[index] = running
    return adjusted


def resampled_counts(samples: int, draws: int, seed: Sequence[int]) -> Iterator[FloatArray]:
    """Yields, chunk by chunk, how often each sample is in each draw: ``counts_BS``, every row sums to S."""
    rng = np.random.default_rng(list(seed))
    for start in range(0, draws, _CHUNK):
        rows = min(_CHUNK, draws - start)
        picks_BS = rng.integers(0, max(samples, 1), size=(rows, samples))
        flat = (picks_BS + np.arange(rows)[:, None] * samples).ravel()
        yield np.bincount(flat, minlength=rows * samples).reshape(rows, samples).astype(np.float64)


def _acceleration(influence_SK: FloatArray) -> FloatArray:
    """Third moment of the influence values over 6 x second moment^1.5; 0 where all values are equal."""
    second_K = np.sum(influence_SK**2, axis=0)
    third_K = np.sum(influence_SK**3, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(second_K > 1e-24, third_K / (6 * second_K**1.5), 0.0 * second_K))
