"""Counts of answers by image, prompt and draw, and the bootstrap over all three.

Shape legend: B bootstrap draws, R restarts (images of one cell), S prompts, D drawn answers.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.bootstrap import FloatArray, Resampling, resampled_counts

CONDITION = ("condition", "kind", "epsilon")
CELL = ("candidate", "benchmark", *CONDITION)
"""Columns that say of which answers a row is."""


@dataclass(frozen=True)
class Counts:
    """What was found in a cell.

    Attributes:
        found: (R, S, D) answers of each restart, prompt and draw that have what is looked for. Of several samples that
            stand for one prompt, as the steps of HADES, the sum.
        decided: (R, S, D) answers of which it is known.
    """

    found: FloatArray
    decided: FloatArray

    @property
    def share(self) -> float:
        """Of the known ones."""
        n = self.decided.sum()
        return float(self.found.sum() / n) if n else np.nan


def cells(rows: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Groups rows; what has no budget has None for it, so that keys compare."""
    key: Any
    for key, own in rows.groupby(list(columns), sort=False, dropna=False):
        yield tuple(None if pd.isna(value) else value for value in key), own


def count(rows: pd.DataFrame, prompts: Sequence[str] | None = None) -> Counts:
    """Counts a cell.

    Args:
        rows: with ``value`` (1, 0 or NaN), ``unit``, ``seed``, ``restart`` and ``draw``. Images made for several
            trainings of a candidate are restarts like others.
        prompts: those to count, in order; by default all.
    """
    order = sorted(set(rows["unit"])) if prompts is None else list(prompts)
    number = {name: index for index, name in enumerate(order)}
    rows = rows[rows["unit"].isin(number)]
    r, d = (
        rows.groupby(list(axis), dropna=False).ngroup().to_numpy(dtype=np.int64)
        for axis in (("seed", "restart"), ("draw",))
    )
    s = rows["unit"].map(number).to_numpy(dtype=np.int64)
    value = rows["value"].to_numpy(dtype=np.float64)
    found_RSD, decided_RSD = np.zeros((2, r.max(initial=-1) + 1, len(order), d.max(initial=-1) + 1))
    np.add.at(found_RSD, (r, s, d), np.nan_to_num(value))
    np.add.at(decided_RSD, (r, s, d), np.isfinite(value))
    return Counts(found_RSD, decided_RSD)


def shares(counts: Counts, resampling: Resampling, side: int = 0) -> FloatArray:
    """Bootstraps the share that was found.

    Restarts, prompts and draws are resampled independently of each other, and an answer counts as often as all three
    of its own are drawn (the pigeonhole bootstrap: Owen, Annals of Applied Statistics 1(2), 2007), which is on the safe
    side. An axis of one is not resampled: its interval says nothing about another image or draw.

    Args:
        side: two sides share the prompts of a draw, and neither its restarts nor its drawn answers.

    Returns:
        share_B; NaN where a draw has no decided answer.
    """
    restarts, prompts, draws = counts.found.shape
    times_BS = _times(prompts, resampling.draws, (resampling.seed, 0))
    times_BR = _times(restarts, resampling.draws, (resampling.seed, 1, side))
    times_BD = _times(draws, resampling.draws, (resampling.seed, 2, side))
    times_BRD = times_BR[:, :, np.newaxis] * times_BD[:, np.newaxis, :]
    sums = []
    for of_RSD in (counts.found, counts.decided):
        of_SX = (
            of_RSD.transpose(1, 0, 2).reshape(prompts, restarts * draws).astype(np.float32)
        )  # whole numbers: sums are exact
        of_BRD = (times_BS @ of_SX).reshape(resampling.draws, restarts, draws)
        sums.append((of_BRD.astype(np.float64) * times_BRD).sum(axis=(1, 2)))
    with np.errstate(invalid="ignore", divide="ignore"):
        share_B: FloatArray = sums[0] / sums[1]
    return share_B


@functools.lru_cache(maxsize=8)
def _times(size: int, draws: int, seed: tuple[int, ...]) -> Any:
    """How often each of so many is in each bootstrap draw: times_BX, float32."""
    chunks = [chunk.astype(np.float32) for chunk in resampled_counts(size, draws, seed)]
    return np.concatenate(chunks)


def share_of(counts: Counts, resampling: Resampling) -> tuple[int, int, float, float, float]:
    """Decided answers, found ones, their share, and the bounds of its interval."""
    prompts = int((counts.decided.sum(axis=(0, 2)) > 0).sum())
    low, high = np.nan, np.nan
    if prompts > 1:
        low, high = interval(shares(counts, resampling), prompts, resampling.level)
    return int(counts.decided.sum()), int(counts.found.sum()), counts.share, low, high


def interval(values_B: FloatArray, prompts: int, level: float) -> tuple[float, float]:
    """Percentiles; NaN for fewer than two prompts, which tell nothing about others."""
    known = values_B[np.isfinite(values_B)]
    if prompts < 2 or not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sizes(rows: pd.DataFrame) -> tuple[int, int, int]:
    """Prompts, restarts (0: the condition has none) and draws of a cell."""
    made = rows[rows["restart"].notna()].drop_duplicates(["seed", "restart"])
    return rows["unit"].nunique(), len(made), rows["draw"].nunique()
