"""Records as arrays: per benchmark, the score of each sample, candidate and budget.

Shape legend: S samples of one benchmark, C candidates, E budgets, T trainings of a candidate (seeds).
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

CLEAN_COLUMN = 0.0
"""What stands for the clean images among budgets: they are a condition of their own."""

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
        values: per benchmark, ``scores_SCE`` in the paper's units, means over the trainings of a candidate; NaN where
            there is no record or no score.
        errors: per benchmark, ``errors_CE``: records without a score.
        trainings: per benchmark, ``scores_TSCE`` of each training: of each candidate the seeds in rising order, NaN
            beyond them. None: every candidate was trained once.
    """

    candidates: tuple[str, ...]
    benchmarks: tuple[str, ...]
    epsilons: tuple[float, ...]
    samples: Mapping[str, tuple[str, ...]]
    values: Mapping[str, FloatArray]
    errors: Mapping[str, IntArray]
    trainings: Mapping[str, FloatArray] | None = None

    @property
    def seeds(self) -> IntArray:
        """How many trainings there are of each candidate, [C]."""
        if self.trainings is None:
            return np.ones(len(self.candidates), dtype=np.int64)
        found_TC = np.any([np.isfinite(values).any(axis=(1, 3)) for values in self.trainings.values()], axis=0)
        return np.asarray(np.maximum(found_TC.sum(axis=0), 1), dtype=np.int64)

    @property
    def clean(self) -> int:
        """The index (E) of the clean images' column.

        Raises:
            UserError: if there are no clean answers.
        """
        if CLEAN_COLUMN not in self.epsilons:
            raise UserError("records: no clean answers (ε = 0); run the sweep again with 0 among its budgets")
        return self.epsilons.index(CLEAN_COLUMN)

    @property
    def has_clean(self) -> bool:
        """Whether there are clean answers."""
        return CLEAN_COLUMN in self.epsilons

    def cell(self, candidate: str, epsilon: float) -> tuple[int, int]:
        """Returns the indices (C, E) of a candidate and a budget.

        Args:
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
    trainings: dict[str, FloatArray] = {}
    errors: dict[str, IntArray] = {}
    training_of = _trainings(records)
    most = 1 + max(training_of.values(), default=0)
    for benchmark in all_benchmarks:
        rows = records[records["benchmark"] == benchmark]
        samples[benchmark] = tuple(sorted(set(rows["sample_id"])))
        s = pd.Index(samples[benchmark], dtype=object).get_indexer(pd.Index(rows["sample_id"], dtype=object))
        c = pd.Index(all_candidates, dtype=object).get_indexer(pd.Index(rows["candidate"], dtype=object))
        e = pd.Index(all_epsilons, dtype=float).get_indexer(pd.Index(rows["epsilon"], dtype=float))
        failed = is_error(rows)
        t = [training_of[key] for key in zip(rows["candidate"], rows["seed"].fillna(-1), strict=True)]
        found_TSCE = np.full((most, len(samples[benchmark]), len(all_candidates), len(all_epsilons)), np.nan)
        found_TSCE[t, s, c, e] = np.where(failed, np.nan, rows["score"].to_numpy(dtype=np.float64))
        trainings[benchmark] = found_TSCE
        values[benchmark] = found_TSCE[0] if most == 1 else _mean_over_trainings(found_TSCE)
        errors[benchmark] = np.zeros((len(all_candidates), len(all_epsilons)), dtype=np.int64)
        np.add.at(errors[benchmark], (c, e), failed.astype(np.int64))
    return Scores(
        all_candidates, all_benchmarks, all_epsilons, samples, values, errors, trainings if most > 1 else None
    )


def _trainings(records: pd.DataFrame) -> dict[tuple[str, int], int]:
    """The number of each training among those of its candidate, by seed; a model from elsewhere has none (-1)."""
    pairs = records[["candidate", "seed"]].drop_duplicates().fillna({"seed": -1})
    found: dict[tuple[str, int], int] = {}
    for candidate, group in pairs.groupby("candidate"):
        found |= {(str(candidate), int(seed)): t for t, seed in enumerate(sorted(group["seed"]))}
    return found


def _mean_over_trainings(values_TSCE: FloatArray) -> FloatArray:
    present_TSCE = np.isfinite(values_TSCE)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(present_TSCE, values_TSCE, 0.0).sum(axis=0) / present_TSCE.sum(axis=0))


def is_error(records: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Tells which records have no score: their ``error`` is set or their score is missing."""
    return (records["error"].notna() | records["score"].isna()).to_numpy(dtype=bool)


def default_epsilon(epsilons: Sequence[float]) -> float:
    """Chooses the budget of the headline numbers: 8/255 where it was run (as in the paper), else the largest."""
    return 8.0 if 8.0 in epsilons else max(epsilons, default=0.0)


def _ordered(first: Sequence[str], found: "pd.Series[Any]") -> tuple[str, ...]:
    return (*first, *sorted(set(found) - set(first)))
