"""Table of mean scores with intervals, per benchmark and on average over the benchmarks.

Shape legend: B bootstrap draws, S samples of one benchmark, C candidates, E budgets, K = C*E columns.
"""

import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.bootstrap import (
    DEFAULT_RESAMPLING,
    Bootstrap,
    FloatArray,
    Resampling,
    average_bootstraps,
    bca_interval,
    bootstrap_means,
    column_quantiles,
)
from analysis.scores import AVERAGE, Scores
from rllava.errors import UserError

SUMMARY_COLUMNS = ("candidate", "benchmark", "epsilon", "mean", "low", "high", "n", "seeds", "training_sd")
"""Columns of summary.csv."""


def bootstrap_scores(scores: Scores, resampling: Resampling = DEFAULT_RESAMPLING) -> dict[str, Bootstrap]:
    """Bootstraps the mean score of every candidate and budget, per benchmark and on average.

    In a draw, all candidates and budgets see the same samples, so differences, ratios and fronts can be taken draw by
    draw. Benchmarks are resampled independently. Where a candidate was trained several times, its trainings are drawn
    too, the same ones for all benchmarks and budgets: the spread is that of training and of samples.

    Returns:
        Per benchmark, and for AVERAGE, a bootstrap whose columns are candidate x budget (K = C*E, budgets fastest).
        Where there are clean scores, each column has their mean over its own samples beside it: not every sample has a
        score everywhere, and a share of what other samples score would be none.
    """
    picks = draw_trainings(scores, resampling)
    parts = {name: _bootstrap_benchmark(scores, name, picks, resampling) for name in scores.benchmarks}
    if not parts:
        raise UserError("no records: there is nothing to analyse; run the sweep first")
    return {**parts, AVERAGE: average_bootstraps(list(parts.values()))}


def draw_trainings(scores: Scores, resampling: Resampling) -> npt.NDArray[np.float64] | None:
    """How often each training of a candidate is in each draw.

    Returns:
        Shares [B, T, C], which sum to 1 over the trainings; None where every candidate was trained once.
    """
    if scores.trainings is None:
        return None
    most = max(map(int, scores.seeds))
    share_BTC = np.zeros((resampling.draws, most, len(scores.candidates)))
    for c, (name, count) in enumerate(zip(scores.candidates, scores.seeds, strict=True)):
        rng = np.random.default_rng(benchmark_seed(resampling, f"trainings of {name}"))
        share_BTC[:, :count, c] = rng.multinomial(count, np.full(count, 1 / count), resampling.draws) / count
    return share_BTC


def _bootstrap_benchmark(
    scores: Scores, name: str, share_BTC: npt.NDArray[np.float64] | None, resampling: Resampling
) -> Bootstrap:
    seed = benchmark_seed(resampling, name)
    trainings = None if share_BTC is None else scores.trainings
    values_SCE, clean = scores.values[name], scores.clean if scores.has_clean else None
    own = bootstrap_means(flatten_cells(values_SCE), resampling.draws, seed)
    draws_BK = own.draws
    if trainings is not None and share_BTC is not None:
        draws_BK = _over_trainings(trainings[name], share_BTC, resampling.draws, seed)
    if clean is None:
        return replace(own, draws=draws_BK)
    shape = (len(scores.candidates), len(scores.epsilons))
    if np.array_equal(np.isfinite(values_SCE), np.isfinite(values_SCE[:, :, [clean]]) & np.ones(shape, bool)):
        beside_K = np.repeat(own.mean.reshape(shape)[:, clean], shape[1])
        beside_BK = np.repeat(draws_BK.reshape(-1, *shape)[:, :, clean], shape[1], axis=1)
        return replace(own, draws=draws_BK, beside=beside_K, beside_draws=beside_BK)
    beside = bootstrap_means(flatten_cells(_clean_beside(values_SCE, clean)), resampling.draws, seed)
    beside_BK = beside.draws
    if trainings is not None and share_BTC is not None:
        shown = [_clean_beside(own_SCE, clean) for own_SCE in trainings[name]]
        beside_BK = _over_trainings(np.stack(shown), share_BTC, resampling.draws, seed)
    return replace(own, draws=draws_BK, beside=beside.mean, beside_draws=beside_BK)


def _over_trainings(
    values_TSCE: FloatArray, share_BTC: npt.NDArray[np.float64], draws: int, seed: tuple[int, int]
) -> FloatArray:
    """Draws [B, K] of means over trainings, each of which has its share in a draw."""
    # The same seed draws the same samples for all trainings.
    shape = values_TSCE.shape[2:]
    draws_BCE = np.zeros((draws, *shape))
    for t, values_SCE in enumerate(values_TSCE):
        drawn_BCE = bootstrap_means(flatten_cells(values_SCE), draws, seed).draws.reshape(-1, *shape)
        share_BC1 = share_BTC[:, t, :, np.newaxis]
        draws_BCE += np.where(share_BC1 > 0, share_BC1 * drawn_BCE, 0.0)
    return draws_BCE.reshape(draws, -1)


def _clean_beside(values_SCE: FloatArray, clean: int) -> FloatArray:
    """Clean scores in every column, of the samples alone that have a score there."""
    return np.where(np.isfinite(values_SCE), values_SCE[:, :, [clean]], np.nan)


def training_spread(scores: Scores, benchmark: str) -> FloatArray:
    """How far the trainings of each candidate differ: the standard deviation of their mean scores.

    Args:
        benchmark: one of them, or AVERAGE.

    Returns:
        [C, E]; NaN where a candidate was trained once.
    """
    shape = (len(scores.candidates), len(scores.epsilons))
    if scores.trainings is None:
        return np.full(shape, np.nan)
    names = scores.benchmarks if benchmark == AVERAGE else (benchmark,)
    means_TCE = np.mean([[_means_SCE(values) for values in scores.trainings[name]] for name in names], axis=0)
    spread_CE = np.full(shape, np.nan)
    for c, count in enumerate(scores.seeds):
        if count > 1:
            spread_CE[c] = np.std(means_TCE[:count, c], axis=0, ddof=1)
    return spread_CE


def _means_SCE(values_SCE: FloatArray) -> FloatArray:  # noqa: N802 (a shape)
    present_SCE = np.isfinite(values_SCE)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(present_SCE, values_SCE, 0.0).sum(axis=0) / present_SCE.sum(axis=0))


def summarise(
    scores: Scores, bootstraps: Mapping[str, Bootstrap], resampling: Resampling = DEFAULT_RESAMPLING
) -> pd.DataFrame:
    """Tabulates the means, per benchmark and on average over the benchmarks.

    Args:
        bootstraps: from :func:`bootstrap_scores`.

    Returns:
        Rows (candidate, benchmark or AVERAGE, epsilon) with ``mean, low, high`` in the paper's units, ``n`` scores,
        ``errors``, and ``retained, retained_low, retained_high``: the score as a share of the clean one (budget 0) of
        the same samples, with its percentile interval; ``seeds``, trainings of the candidate, and ``training_sd``, see
        :func:`training_spread`.
    """
    cells = [(candidate, epsilon) for candidate in scores.candidates for epsilon in scores.epsilons]
    tables = []
    for benchmark, bootstrap in bootstraps.items():
        low_K, high_K = bca_interval(bootstrap, resampling.level)
        retained_K, retained_low_K, retained_high_K = _retained(scores, bootstrap, resampling.level)
        columns = {
            "candidate": [candidate for candidate, _ in cells],
            "benchmark": benchmark,
            "epsilon": [epsilon for _, epsilon in cells],
            "mean": bootstrap.mean,
            "low": low_K,
            "high": high_K,
            "n": bootstrap.n,
            "errors": _errors(scores, benchmark).ravel(),
            "retained": retained_K,
            "retained_low": retained_low_K,
            "retained_high": retained_high_K,
            "seeds": np.repeat(scores.seeds, len(scores.epsilons)),
            "training_sd": training_spread(scores, benchmark).ravel(),
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def best_candidate(scores: Scores, epsilon: float) -> str:
    """Names the candidate with the best average score at a budget; the first one on ties or without any score."""
    e = scores.epsilons.index(epsilon)
    with np.errstate(invalid="ignore"):
        means_C = np.mean([_means(scores.values[name][:, :, e]) for name in scores.benchmarks], axis=0)
    return scores.candidates[int(np.argmax(np.nan_to_num(means_C, nan=-np.inf)))]


def flatten_cells(values_SCE: FloatArray) -> FloatArray:
    """Flattens scores to ``values_SK``: a column per candidate and budget, budgets fastest."""
    samples, candidates, budgets = values_SCE.shape
    return values_SCE.reshape(samples, candidates * budgets)


def benchmark_seed(resampling: Resampling, name: str) -> tuple[int, int]:
    """Gives each benchmark a random stream of its own, which does not depend on the benchmarks beside it."""
    return resampling.seed, zlib.crc32(name.encode())


def _retained(scores: Scores, bootstrap: Bootstrap, level: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Score over clean score, with its percentile interval; NaN without clean scores or where they are 0."""
    shape = (len(scores.candidates), len(scores.epsilons))
    if bootstrap.beside is None or bootstrap.beside_draws is None:
        missing_K = np.full(shape[0] * shape[1], np.nan)
        return missing_K, missing_K, missing_K
    with np.errstate(invalid="ignore", divide="ignore"):
        share_K = bootstrap.mean / bootstrap.beside
        share_BK = bootstrap.draws / bootstrap.beside_draws
    share_K = np.where(np.isfinite(share_K), share_K, np.nan)
    usable_K = np.isfinite(share_K) & np.isfinite(bootstrap.influence).all(axis=0)
    low_K = column_quantiles(share_BK, np.where(usable_K, (1 - level) / 2, np.nan))
    high_K = column_quantiles(share_BK, np.where(usable_K, (1 + level) / 2, np.nan))
    return share_K, low_K, high_K


def _errors(scores: Scores, benchmark: str) -> FloatArray:
    names = scores.benchmarks if benchmark == AVERAGE else (benchmark,)
    return np.asarray(np.sum([scores.errors[name] for name in names], axis=0))


def _means(values_SC: FloatArray) -> FloatArray:
    present_SC = np.isfinite(values_SC)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(present_SC, values_SC, 0.0).sum(axis=0) / present_SC.sum(axis=0))
