"""The columns of a robustness card: which there are, and how they are headed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.card_schema import SCORE, measure_of
from analysis.evidence import ATTACK
from analysis.manifest import UNIVERSAL, ConditionEntry, Manifest
from rllava.records import CLEAN, SMALLEST

LEFT_OUT = (SMALLEST, UNIVERSAL)
"""Kinds whose answers are no column of scores: they have reports of their own."""

MEAN_OF = "mean of "
"""What the condition of a mean over all conditions of a kind begins with; the kind follows."""


@dataclass(frozen=True)
class Column:
    """A column of the card, over all severities.

    Attributes:
        epsilon: budget in 1/255; None where there is none.
        found: whether another sweep asked it.
        detail: whether it is part of a mean that is a column too.
    """

    benchmark: str
    condition: str
    kind: str
    epsilon: float | None = None
    measure: str = SCORE
    adaptive: bool = True
    found: bool = False
    detail: bool = False

    @property
    def key(self) -> tuple[str, str, float | None, str]:
        """What its rows have in common."""
        return self.benchmark, self.condition, self.epsilon, self.measure

    @property
    def good(self) -> bool:
        """Whether larger is better."""
        measure = measure_of(self.measure)
        return measure is None or measure.good


def shown(manifest: Manifest) -> tuple[ConditionEntry, ...]:
    """The conditions of a sweep that make columns, each label and budget once."""
    entries = {(entry.label, entry.epsilon): entry for entry in manifest.conditions if entry.kind not in LEFT_OUT}
    return tuple(entries.values())


def grouped(entries: Iterable[ConditionEntry]) -> dict[str, list[ConditionEntry]]:
    """Conditions of the kinds that have severities, by kind, where a kind has several."""
    kinds: dict[str, list[ConditionEntry]] = {}
    for entry in entries:
        if entry.severities:
            kinds.setdefault(entry.kind, []).append(entry)
    return {kind: own for kind, own in kinds.items() if len(own) > 1}


def columns_of_sweep(manifest: Manifest) -> list[Column]:
    """The columns of a sweep's own benchmarks: per benchmark the conditions in their order, then means over a kind."""
    entries = shown(manifest)
    groups = grouped(entries)
    found = []
    for benchmark in manifest.benchmarks:
        found += [
            Column(benchmark, entry.label, entry.kind, entry.epsilon, adaptive=entry.adaptive,
                   detail=entry in groups.get(entry.kind, ()))
            for entry in entries
        ]  # fmt: skip
        found += [
            Column(benchmark, MEAN_OF + kind, kind, adaptive=all(entry.adaptive for entry in own))
            for kind, own in groups.items()
        ]
    return found


def headings(columns: Sequence[Column]) -> dict[Column, str]:
    """What stands above each column; an attack's protocol is named where there are several."""
    protocols = sorted({column.condition for column in columns if column.kind == ATTACK})
    only = protocols[0] if len(protocols) == 1 else ""
    return {column: f"{column.benchmark} · {_condition(column, only)}" for column in columns}


def _condition(column: Column, only: str) -> str:
    budget = "" if column.epsilon is None or column.kind == CLEAN else f"ε = {column.epsilon:g}"
    plain = column.kind == ATTACK and budget and only and column.measure == SCORE
    name = "" if plain else column.condition.replace(f"{only},", "") if only else column.condition
    what = "" if column.measure == SCORE else column.measure
    said = " ".join(filter(None, (what, name, budget)))
    return said if column.adaptive or "non-adaptive" in said else f"{said} (non-adaptive)"


def own_rows(table: pd.DataFrame, column: Column) -> pd.DataFrame:
    """The rows of a card that are in a column, those at single severities left out."""
    benchmark, condition, epsilon, measure = column.key
    budget = table["epsilon"].isna() if epsilon is None else table["epsilon"] == epsilon
    same = (table["benchmark"] == benchmark) & (table["condition"] == condition) & (table["measure"] == measure)
    return table[same & budget & table["severity"].isna()]


def columns_of_rows(rows: Iterable[Mapping[Any, Any]]) -> list[Column]:
    """The columns that some rows of a card are in, each once."""
    found: dict[Any, Column] = {}
    for row in rows:
        if pd.isna(row["severity"]):
            epsilon = None if pd.isna(row["epsilon"]) else float(row["epsilon"])
            column = Column(
                row["benchmark"], row["condition"], row["kind"], epsilon, row["measure"], bool(row["adaptive"]), True
            )
            found.setdefault(column.key, column)
    return list(found.values())
