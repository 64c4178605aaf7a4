"""Paired comparisons of the candidates with a baseline, on the same samples.

Shape legend: S samples of one benchmark, C candidates, E budgets, K = C*E columns.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.bootstrap import (
    DEFAULT_RESAMPLING,
    Bootstrap,
    FloatArray,
    Resampling,
    average_bootstraps,
    bca_interval,
    bootstrap_means,
    holm,
    sign_flip_p_values,
)
from analysis.scores import AVERAGE, Scores
from analysis.summary import benchmark_seed, bootstrap_scores, flatten_cells

COMPARISON_COLUMNS = ("baseline", "candidate", "benchmark", "epsilon", "difference", "low", "high", "p", "p_holm", "n")
"""Columns of comparisons.csv."""


def compare(scores: Scores, baseline: str, resampling: Resampling = DEFAULT_RESAMPLING) -> pd.DataFrame:
    """Compares every candidate with a baseline on the samples that both scored.

    Args:
        baseline: name of the candidate to compare with.

    Returns:
        Rows (baseline, candidate, benchmark or AVERAGE, epsilon) with ``difference`` (candidate minus baseline), its
        BCa interval ``low, high``, the sign-flip test's ``p``, ``p_holm`` and ``n`` pairs. A Holm family is the
        candidates at one benchmark and budget. Of candidates that were trained several times, the interval covers
        training and samples; the test is about the means over their trainings, and covers samples alone.

    Raises:
        UserError: if the baseline is unknown.
    """
    base, _ = scores.cell(baseline, scores.epsilons[0])
    others = [c for c in range(len(scores.candidates)) if c != base]
    if not others:
        return pd.DataFrame(columns=list(COMPARISON_COLUMNS))
    strata = {
        name: flatten_cells(scores.values[name][:, others, :] - scores.values[name][:, [base], :])
        for name in scores.benchmarks
    }
    parts = {
        name: bootstrap_means(part, resampling.draws, benchmark_seed(resampling, name)) for name, part in strata.items()
    }
    if scores.trainings is not None:
        shape = (resampling.draws, len(scores.candidates), len(scores.epsilons))
        for name, drawn in bootstrap_scores(scores, resampling).items():
            if name in parts:
                draws_BCE = drawn.draws.reshape(shape)
                differences_BK = (draws_BCE[:, others] - draws_BCE[:, [base]]).reshape(resampling.draws, -1)
                parts[name] = replace(parts[name], draws=differences_BK)

    def scope(name: str, own: Mapping[str, FloatArray]) -> pd.DataFrame:
        bootstrap = average_bootstraps([parts[benchmark] for benchmark in own])
        return _compare_scope(scores, name, own, bootstrap, baseline, others, resampling)

    return pd.concat(
        [*(scope(name, {name: strata[name]}) for name in strata), scope(AVERAGE, strata)], ignore_index=True
    )


def _compare_scope(
    scores: Scores,
    scope: str,
    strata: Mapping[str, FloatArray],
    bootstrap: Bootstrap,
    baseline: str,
    others: list[int],
    resampling: Resampling,
) -> pd.DataFrame:
    low_K, high_K = bca_interval(bootstrap, resampling.level)
    seed = benchmark_seed(resampling, f"sign flips of {scope}")
    p_K = sign_flip_p_values(list(strata.values()), resampling.draws, seed)
    shape = (len(others), len(scores.epsilons))
    table = pd.DataFrame(
        {
            "baseline": baseline,
            "candidate": [scores.candidates[c] for c in others for _ in scores.epsilons],
            "benchmark": scope,
            "epsilon": [epsilon for _ in others for epsilon in scores.epsilons],
            "difference": bootstrap.mean,
            "low": low_K,
            "high": high_K,
            "p": p_K,
            "p_holm": np.apply_along_axis(holm, 0, p_K.reshape(shape)).ravel(),
            "n": bootstrap.n,
        }
    )
    return table[list(COMPARISON_COLUMNS)]
