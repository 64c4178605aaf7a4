"""The trade-off between clean score and jailbreaks: which candidates no other one beats in both.

Shape legend: B bootstrap draws, C candidates; the last axis of points is (clean score, share that is not flagged).
"""

import numpy as np
import pandas as pd

from analysis.bootstrap import FloatArray, Resampling
from analysis.jailbreak_counts import CELL, CONDITION, cells, count, share_of, shares
from analysis.scores import AVERAGE, arrange_scores
from analysis.summary import bootstrap_scores, summarise
from rllava.fronts import non_dominated

FRONT_COLUMNS = (
    "judge", *CELL, "clean", "clean_low", "clean_high", "rate", "low", "high", "on_front", "front_probability",
)  # fmt: skip
"""Columns of front.csv."""


def front_of(verdicts: pd.DataFrame, clean: pd.DataFrame, resampling: Resampling) -> pd.DataFrame:
    """Places candidates by the mean of their clean scores over benchmarks and by the share that a judge flags.

    A draw of the bootstrap uses the same samples, and the same prompts, for all candidates.

    Args:
        verdicts: from ``jailbreak.verdicts_of``.
        clean: of ``beside.Beside``; a candidate that lacks a benchmark has no place.

    Returns:
        FRONT_COLUMNS, a row per judge, benchmark of forbidden requests, condition and candidate with a clean score and
        decided answers. ``front_probability``: the share of draws in which it is on the front.
    """
    if clean.empty or verdicts.empty:
        return pd.DataFrame(columns=list(FRONT_COLUMNS))
    scores = arrange_scores(clean)
    bootstraps = bootstrap_scores(scores, resampling)
    table = summarise(scores, bootstraps, resampling)
    means = table[table["benchmark"] == AVERAGE].set_index("candidate")
    known = means["mean"]
    draws_BC = bootstraps[AVERAGE].draws
    rows = []
    for (judge, benchmark, *where), group in cells(verdicts, ("judge", "benchmark", *CONDITION)):
        prompts = sorted(set(group["unit"]))
        own = {name[0]: count(rows, prompts) for name, rows in cells(group, ("candidate",))}
        names = [name for name in scores.candidates if name in own and np.isfinite(float(known[name]))]
        if not names:
            continue
        passed_BC = np.stack([1 - shares(own[name], resampling) for name in names], axis=1)
        drawn_BC2 = np.stack([draws_BC[:, list(map(scores.candidates.index, names))], passed_BC], axis=-1)
        point_C2 = [(means.loc[name, "mean"], 1 - own[name].share) for name in names]
        on_front = non_dominated(np.array([point_C2]))[0]
        probability = _share_of_known(drawn_BC2)
        for c, name in enumerate(names):
            _, _, rate, low, high = share_of(own[name], resampling)
            clean_score = (means.loc[name, bound] for bound in ("mean", "low", "high"))
            rows.append((
                judge, name, benchmark, *where, *clean_score, rate, low, high, bool(on_front[c]), probability[c],
            ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(FRONT_COLUMNS))


def _share_of_known(drawn_BC2: FloatArray) -> FloatArray:
    """In which share of the draws each candidate is on the front, of those in which all their points are known."""
    known_B = np.isfinite(drawn_BC2).all(axis=(1, 2))
    if not known_B.any():
        return np.full(drawn_BC2.shape[1], np.nan)
    share_C: FloatArray = non_dominated(drawn_BC2[known_B]).mean(axis=0)
    return share_C
