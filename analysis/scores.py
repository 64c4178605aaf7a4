"""Records as arrays: per benchmark, the score of each sample, candidate and budget.

Shape legend: S samples of one benchmark, C candidates, E budgets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.cells import require_one_evaluation
from analysis.loading import SweepResults
from rllava.errors import UserError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

AVERAGE = "average"
"""Name of the plain mean over the benchmarks, where a table or plot shows it beside them."""


@dataclass(frozen=True)
class Scores:
    """Scores of a sweep on the same samples.

    Attributes:
        candidates: names, in the sweep's order (C).
        benchmarks: names, in the sweep's order.
        epsilons: budgets in 1/255, increasing (E).
        samples: per benchmark, the sample ids, sorted (S).
        values: per benchmark, ``scores_SCE`` in the paper's units; NaN where there is no record or no score.
        errors: per benchmark, ``errors_CE``: records without a score.
    """

    candidates: tuple[str, ...]
    benchmarks: tuple[str, ...]
    epsilons: tuple[float, ...]
    samples: Mapping[str, tuple[str, ...]]
    values: Mapping[str, FloatArray]
    errors: Mapping[str, IntArray]

    def cell(self, candidate: str, epsilon: float) -> tuple[int, int]:
        """Returns the indices (C, E) of a candidate and a budget.

        Args:
            candidate: name of the candidate.
            epsilon: budget in 1/255.

        Returns:
            The two indices into the arrays of ``values``.

        Raises:
            UserError: if the sweep has no such candidate or budget.
        """
        if candidate not in self.candidates:
            raise UserError(f"candidate '{candidate}' is not in the results; choose from {', '.join(self.candidates)}")
        if epsilon not in self.epsilons:
            budgets = ", ".join(f"{budget:g}" for budget in self.epsilons)
            raise UserError(f"budget ε = {epsilon:g}/255 is not in the results; choose from {budgets}")
        return self.candidates.index(candidate), self.epsilons.index(epsilon)


def sweep_scores(results: SweepResults) -> Scores:
    """Arranges the scores of a sweep; the manifest gives the order, and candidates without records stay in (as NaN)."""
    manifest = results.manifest
    return arrange_scores(results.records, manifest.candidates, manifest.benchmarks, manifest.budgets)


def arrange_scores(
    records: pd.DataFrame,
    candidates: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    epsilons: Sequence[float] = (),
) -> Scores:
    """Arranges records as arrays.

    Args:
        records: rows of RECORD_SCHEMA; those of conditions without a budget are passed over.
        candidates: names that come first; names found only in the records follow, sorted. So for the other two.
        benchmarks: see candidates.
        epsilons: budgets in 1/255; sorted together with those found in the records.

    Returns:
        The scores; a record with an error, or without a score, counts as an error and is NaN.

    Raises:
        UserError: if the records mix evaluations (see ``cells``), e.g. those of two protocols or trainings.
    """
    records = records[records["epsilon"].notna()]
    all_candidates = _ordered(candidates, records["candidate"])
    all_benchmarks = _ordered(benchmarks, records["benchmark"])
    all_epsilons = tuple(sorted({*map(float, epsilons), *records["epsilon"].astype(float)}))
    require_one_evaluation(records)
    samples: dict[str, tuple[str, ...]] = {}
    values: dict[str, FloatArray] = {}
    errors: dict[str, IntArray] = {}
    for benchmark in all_benchmarks:
        rows = records[records["benchmark"] == benchmark]
        samples[benchmark] = tuple(sorted(set(rows["sample_id"])))
        s = pd.Index(samples[benchmark], dtype=object).get_indexer(pd.Index(rows["sample_id"], dtype=object))
        c = pd.Index(all_candidates, dtype=object).get_indexer(pd.Index(rows["candidate"], dtype=object))
        e = pd.Index(all_epsilons, dtype=float).get_indexer(pd.Index(rows["epsilon"], dtype=float))
        failed = is_error(rows)
        values[benchmark] = np.full((len(samples[benchmark]), len(all_candidates), len(all_epsilons)), np.nan)
        values[benchmark][s, c, e] = np.where(failed, np.nan, rows["score"].to_numpy(dtype=np.float64))
        errors[benchmark] = np.zeros((len(all_candidates), len(all_epsilons)), dtype=np.int64)
        np.add.at(errors[benchmark], (c, e), failed.astype(np.int64))
    return Scores(all_candidates, all_benchmarks, all_epsilons, samples, values, errors)


def is_error(records: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Tells which records have no score: their ``error`` is set or their score is missing."""
    return (records["error"].notna() | records["score"].isna()).to_numpy(dtype=bool)


def default_epsilon(epsilons: Sequence[float]) -> float:
    """Chooses the budget of the headline numbers: 8/255 where it was run (as in the paper), else the largest."""
    return 8.0 if 8.0 in epsilons else max(epsilons, default=0.0)


def _ordered(first: Sequence[str], found: "pd.Series[Any]") -> tuple[str, ...]:
    return (*first, *sorted(set(found) - set(first)))
