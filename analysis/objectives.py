"""Columns that a search makes better, computed from records and judgements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.judgements import ANSWER
from analysis.manifest import UNIVERSAL
from rllava.errors import UserError
from rllava.records import CLEAN, KEY

ATTACK, CORRUPTION = "attack", "corruption"

SAMPLE = ["candidate", "seed", "benchmark", "sample_id"]
"""Columns that a value belongs to."""


@dataclass(frozen=True)
class Column:
    """What a search was asked to make better.

    Attributes:
        name: as on its command line.
        kind: what :data:`MEASURES` knows, or a number of the whole candidate (``gpu_hours``, ``parameters``).
        sign: 1 where larger is better, -1 where smaller is.
        budget: in 1/255, of kinds that have one.
        worst: that everything is better than; None: the worst that was seen.
    """

    name: str
    kind: str
    sign: float = 1.0
    budget: float | None = None
    worst: float | None = None

    @property
    def per_sample(self) -> bool:
        """Whether it is a mean over samples, rather than a number of the candidate."""
        return self.kind in MEASURES


def _scores(records: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each sample over what it was shown."""
    return records.groupby(SAMPLE, dropna=False, sort=False)["score"].mean().rename("value").reset_index()


def _clean(records: pd.DataFrame, judgements: pd.DataFrame, column: Column) -> pd.DataFrame:
    return _scores(records[records["kind"] == CLEAN])


def _robust(records: pd.DataFrame, judgements: pd.DataFrame, column: Column) -> pd.DataFrame:
    return _scores(records[(records["kind"] == ATTACK) & (records["epsilon"] == column.budget)])


def _corruption(records: pd.DataFrame, judgements: pd.DataFrame, column: Column) -> pd.DataFrame:
    return _scores(records[records["kind"] == CORRUPTION])


def _jailbreak(records: pd.DataFrame, judgements: pd.DataFrame, column: Column) -> pd.DataFrame:
    """Percent of a sample's answers that the first judge flags, over the images of a budget."""
    shown = records[(records["kind"] == UNIVERSAL) & (records["epsilon"] == column.budget)]
    said = judgements[judgements["answer"] == ANSWER]
    said = said[said["judge"] == said["judge"].iloc[0]] if len(said) else said
    both = said[[*KEY, "flagged"]].merge(shown[list(KEY)], on=list(KEY))
    both = both[both["flagged"].notna()].assign(value=lambda rows: 100.0 * rows["flagged"].astype(float))
    return both.groupby(SAMPLE, dropna=False, sort=False)["value"].mean().reset_index()


MEASURES: dict[str, Callable[[pd.DataFrame, pd.DataFrame, Column], pd.DataFrame]] = {
    "clean": _clean,
    "robust": _robust,
    "corruption": _corruption,
    "jailbreak": _jailbreak,
}
"""From records and judgements to one value per candidate, seed, benchmark and sample; NaN where it has no score."""


def sample_values(records: pd.DataFrame, judgements: pd.DataFrame, column: Column) -> pd.DataFrame:
    """Values of a column, sample by sample.

    Returns:
        Columns candidate, seed, benchmark, sample_id, value.

    Raises:
        UserError: if the records hold nothing of it.
    """
    found = MEASURES[column.kind](records, judgements, column)
    if found.empty:
        raise UserError(f"objective {column.name}: the records hold nothing that it could be computed from")
    return found


def mean_over_benchmarks(values: pd.DataFrame, benchmarks: Sequence[str] | None = None) -> float:
    """The plain mean over benchmarks of the means over their samples, as everywhere in the analysis.

    Args:
        values: from :func:`sample_values`.
        benchmarks: that count; None: all.

    Returns:
        NaN if one of them has no value.
    """
    if benchmarks is not None:
        values = values[values["benchmark"].isin(list(benchmarks))]
    means = values.groupby("benchmark")["value"].mean()
    return float(np.mean(means.to_numpy())) if len(means) else float("nan")
