"""Statistics of a robustness card: candidates x columns, each column a benchmark under a condition."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.beside import find_beside
from analysis.bootstrap import DEFAULT_RESAMPLING, Resampling, holm
from analysis.card_check import read_submitted
from analysis.card_columns import (
    MEAN_OF,
    Column,
    columns_of_rows,
    columns_of_sweep,
    grouped,
    headings,
    own_rows,
    shown,
)
from analysis.card_found import found_rows, jailbreaks_beside, signature
from analysis.card_schema import CARD, CARD_SCHEMA, OURS, SCORE
from analysis.conditions import NO_SEVERITY, group_means
from analysis.judgements import JudgementStatistics, analyse_judgements
from analysis.loading import SweepResults
from analysis.manifest import ConditionEntry, Manifest
from analysis.paper_numbers import beside_paper
from analysis.rank_correlation import rank_correlation
from analysis.scores import AVERAGE, arrange_scores
from analysis.summary import bootstrap_scores, summarise
from rllava.errors import UserError
from rllava.fronts import non_dominated
from rllava.records import CLEAN

_Row = Mapping[Any, Any]
_Spent = dict[tuple[str, str, str, float | None], float]
_Spending = tuple[_Spent, _Spent]

ENOUGH = 10
"""Candidates below which no verdict is given on whether two columns go together."""

CORRELATION_COLUMNS = ("first", "second", "rho", "p", "p_holm", "n", "permutations", "exact")
"""Columns of correlations.csv; columns of the card are named by their headings."""

COST_COLUMNS = ("column", "steps", "seconds", "reused", "evaluations")
"""Columns of cost.csv; ``reused`` of the evaluations were in storage before."""


@dataclass(frozen=True)
class CardStatistics:
    """A robustness card.

    Attributes:
        results: the manifest and records it comes from.
        resampling: draws, seed and level of all intervals and tests.
        table: columns of CARD_SCHEMA; also rows at single severities.
        columns: of the page, in order; those found in storage after the sweep's own.
        submitted: rows of others, columns of CARD_SCHEMA.
        correlations: CORRELATION_COLUMNS, of all pairs of columns that are no detail, over our candidates.
        cost: COST_COLUMNS, a row per column that the sweep asked.
        paper: see ``paper_numbers.beside_paper``.
        beside: signature of what it shows of other sweeps and of others.
        judged: see ``judgements.analyse_judgements``.
    """

    results: SweepResults
    resampling: Resampling
    table: pd.DataFrame
    columns: tuple[Column, ...]
    submitted: pd.DataFrame
    correlations: pd.DataFrame
    cost: pd.DataFrame
    paper: pd.DataFrame
    beside: str
    judged: JudgementStatistics | None = None

    @property
    def main_columns(self) -> list[Column]:
        """Those that are no detail of another."""
        return [column for column in self.columns if not column.detail]

    @property
    def headings(self) -> dict[Column, str]:
        """What stands above each column."""
        return headings(self.columns)


def is_about_cards(manifest: Manifest) -> bool:
    """Whether a sweep's report is a robustness card."""
    return manifest.sweep == CARD


def analyse_card(results: SweepResults, resampling: Resampling = DEFAULT_RESAMPLING) -> CardStatistics:
    """Computes a card.

    Args:
        results: from ``loading.load_sweep``.

    Raises:
        UserError: if there are no records, or no clean ones, or a submitted file is no card.
    """
    beside, jailbreaks = find_beside(results), jailbreaks_beside(results)
    models = set(map(str, results.records["model"]))
    found = [_completed(row) for row in found_rows(beside, jailbreaks, models, resampling)]
    rows = [*own_card_rows(results, resampling), *found]
    table = as_card(rows, results, resampling)
    others = columns_of_rows(table.tail(len(found)).to_dict("records"))
    columns = (*columns_of_sweep(results.manifest), *others)
    submitted, signed = read_submitted(results.storage)
    return CardStatistics(
        results=results,
        resampling=resampling,
        table=table,
        columns=columns,
        submitted=submitted,
        correlations=correlate(table, columns, resampling),
        cost=costs(table, columns, results.manifest),
        paper=beside_paper(table[(table["measure"] == SCORE) & table["severity"].isna()]),
        beside=f"{signature(beside, jailbreaks)} {signed}",
        judged=analyse_judgements(results, resampling),
    )


def as_card(rows: Sequence[dict[str, Any]], results: SweepResults, resampling: Resampling) -> pd.DataFrame:
    """Rows as a card: columns of CARD_SCHEMA, with the models' fingerprints."""
    models = results.records.groupby("candidate")["model"].agg(lambda own: " ".join(sorted(set(own))))
    table = pd.DataFrame(rows, columns=[name for name in CARD_SCHEMA.names if name != "model"])
    table = table.assign(source=OURS, level=resampling.level, model=table["candidate"].map(models))
    table = table.astype({"severity": "Int64", "n": "int64", "errors": "int64", "seeds": "int64", "adaptive": bool})
    card: pd.DataFrame = table[CARD_SCHEMA.names]
    return card


def _completed(row: dict[str, Any]) -> dict[str, Any]:
    return {"severity": None, "adaptive": True, "steps": np.nan, "seconds": np.nan} | row


_Cells = Sequence[tuple[ConditionEntry, int]]
"""Conditions, each at its severities: NO_SEVERITY where it has none."""


def own_card_rows(results: SweepResults, resampling: Resampling) -> Iterator[dict[str, Any]]:
    """Rows of the sweep's own answers: every condition, each severity, means over severities and over a kind.

    Raises:
        UserError: if there are no clean answers.
    """
    entries = shown(results.manifest)
    cells = [(entry, severity) for entry in entries for severity in entry.severities or (NO_SEVERITY,)]
    cells.sort(key=lambda cell: cell[0].kind != CLEAN)
    if not cells or cells[0][0].kind != CLEAN:
        raise UserError("records: no clean answers to compare with; run the sweep again")
    names = results.manifest.candidates, results.manifest.benchmarks
    scores = arrange_scores(_numbered(results, cells), *names, range(len(cells)))
    bootstraps = bootstrap_scores(scores, resampling)
    summary = summarise(scores, bootstraps, resampling)
    known = summary[(summary["benchmark"] != AVERAGE) & (summary["n"] + summary["errors"] > 0)].to_dict("records")
    spent = _spent(results)
    yield from _single_rows(known, cells, spent)
    groups = {entry.label: [entry] for entry in entries if entry.severities}
    groups |= {MEAN_OF + kind: own for kind, own in grouped(entries).items()}
    if groups:
        numbers = {name: [e for e, cell in enumerate(cells) if cell[0] in own] for name, own in groups.items()}
        means = group_means(scores, bootstraps, numbers, resampling.level)
        yield from _mean_rows(means[means["benchmark"] != AVERAGE].to_dict("records"), known, cells, groups, spent)


def _single_rows(known: Sequence[_Row], cells: _Cells, spent: _Spending) -> Iterator[dict[str, Any]]:
    for row in known:
        entry, severity = cells[int(row["epsilon"])]
        key = (row["candidate"], row["benchmark"], entry.label, entry.epsilon)
        steps, seconds = (np.nan, np.nan) if severity else (one.get(key, np.nan) for one in spent)
        measured = ("candidate", "benchmark", "mean", "low", "high", "n", "errors", "seeds")
        yield {
            **{name: row[name] for name in measured},
            "condition": entry.label, "kind": entry.kind, "epsilon": entry.epsilon, "severity": severity or None,
            "measure": SCORE, "adaptive": entry.adaptive, "relative": row["retained"],
            "relative_low": row["retained_low"], "relative_high": row["retained_high"],
            "steps": steps, "seconds": seconds,
        }  # fmt: skip


def _mean_rows(
    means: Sequence[_Row],
    known: Sequence[_Row],
    cells: _Cells,
    groups: Mapping[str, Sequence[ConditionEntry]],
    spent: _Spending,
) -> Iterator[dict[str, Any]]:
    for mean in means:
        entries = groups[mean["condition"]]
        of = (mean["candidate"], mean["benchmark"])
        rows = [
            row for row in known
            if (row["candidate"], row["benchmark"]) == of and cells[int(row["epsilon"])][0] in entries
        ]  # fmt: skip
        if not rows:
            continue
        steps, seconds = (sum(one.get((*of, e.label, e.epsilon), np.nan) for e in entries) for one in spent)
        measured = ("candidate", "benchmark", "condition", "mean", "low", "high", "n")
        yield {
            **{name: mean[name] for name in measured},
            "kind": entries[0].kind, "epsilon": None, "severity": None, "measure": SCORE,
            "adaptive": all(entry.adaptive for entry in entries), "relative": 1 - mean["drop"],
            "relative_low": 1 - mean["drop_high"], "relative_high": 1 - mean["drop_low"],
            "errors": sum(row["errors"] for row in rows), "seeds": rows[0]["seeds"],
            "steps": steps, "seconds": seconds,
        }  # fmt: skip


def _numbered(results: SweepResults, cells: _Cells) -> pd.DataFrame:
    """Records of the columns, with the number of each where an attack has its budget."""
    numbers = {(entry.label, _budget(entry.epsilon), severity): n for n, (entry, severity) in enumerate(cells)}
    records = results.records
    severities = records["severity"].fillna(NO_SEVERITY).astype(int)
    keys = zip(records["condition"], map(_budget, records["epsilon"]), severities, strict=True)
    numbered = records.assign(epsilon=[numbers.get(key, np.nan) for key in keys], severity=0)
    return numbered[numbered["epsilon"].notna()]


def _budget(epsilon: Any) -> float | None:
    return None if pd.isna(epsilon) else float(epsilon)


def _spent(results: SweepResults) -> _Spending:
    """Gradient steps and seconds by candidate, benchmark, condition and budget, over all trainings of a candidate."""
    keys = ["candidate", "benchmark", "condition", "epsilon"]
    sums = results.records.groupby(keys, dropna=False)["steps"].sum(min_count=0)
    rows = sums.reset_index().to_dict("records")
    steps: _Spent = {
        (row["candidate"], row["benchmark"], row["condition"], _budget(row["epsilon"])): float(row["steps"])
        for row in rows
    }
    seconds: _Spent = {}
    for entry in results.manifest.records:
        key = (entry.candidate, entry.benchmark, entry.condition, _budget(entry.epsilon))
        seconds[key] = seconds.get(key, 0.0) + entry.seconds
    return steps, seconds


def correlate(table: pd.DataFrame, columns: Sequence[Column], resampling: Resampling) -> pd.DataFrame:
    """Rank correlations between columns over candidates; of what is better when smaller, ranks are turned round."""
    kept = [column for column in columns if not column.detail]
    names = headings(columns)
    values = signed_means(table, kept)
    rows = []
    for i, j in itertools.combinations(range(len(kept)), 2):
        found = rank_correlation(values[:, i], values[:, j], resampling.seed)
        rows.append((names[kept[i]], names[kept[j]], found.rho, found.p, found.n, found.permutations, found.exact))
    columns_ = [name for name in CORRELATION_COLUMNS if name != "p_holm"]
    pairs = pd.DataFrame(rows, columns=columns_)
    return pairs.assign(p_holm=holm(pairs["p"].to_numpy(dtype=np.float64)))[list(CORRELATION_COLUMNS)]


def signed_means(table: pd.DataFrame, columns: Sequence[Column]) -> Any:
    """Means by candidate and column, turned round where smaller is better.

    Returns:
        [C, K] in the order of the candidates in the table; NaN where there is none.
    """
    candidates = list(dict.fromkeys(table["candidate"]))
    found_CK = np.full((len(candidates), len(columns)), np.nan)
    for k, column in enumerate(columns):
        own = own_rows(table, column).set_index("candidate")["mean"]
        found_CK[:, k] = own.reindex(candidates).to_numpy(dtype=np.float64) * (1 if column.good else -1)
    return found_CK


def fronts(table: pd.DataFrame, columns: Sequence[Column]) -> Any:
    """Who is on the front of every two columns.

    Returns:
        [K, K, C], bool.
    """
    values_CK = signed_means(table, columns)
    count = len(columns)
    pairs_KKC2 = np.stack(
        [np.broadcast_to(values_CK.T[:, None], (count, count, len(values_CK))),
         np.broadcast_to(values_CK.T[None], (count, count, len(values_CK)))], axis=-1,
    )  # fmt: skip
    return non_dominated(pairs_KKC2)


def costs(table: pd.DataFrame, columns: Sequence[Column], manifest: Manifest) -> pd.DataFrame:
    """What each column took, over all candidates; what was in storage before took its time then."""
    names = headings(columns)
    rows = []
    for column in columns:
        if column.found or column.condition.startswith(MEAN_OF):
            continue
        own = own_rows(table, column)
        entries = [
            entry
            for entry in manifest.records
            if (entry.benchmark, entry.condition, _budget(entry.epsilon)) == column.key[:3]
        ]
        reused = sum(entry.reused for entry in entries)
        rows.append((names[column], own["steps"].sum(), own["seconds"].sum(), reused, len(entries)))
    return pd.DataFrame(rows, columns=list(COST_COLUMNS))


def card_answer(statistics: CardStatistics) -> str:
    """States in a sentence who is ahead in how many columns."""
    columns = [column for column in statistics.main_columns if column.good]
    values_CK = signed_means(statistics.table, columns)
    known = np.isfinite(values_CK).any(axis=0)
    if not known.any():
        return "No candidate has a score yet."
    candidates = list(dict.fromkeys(statistics.table["candidate"]))
    best = np.nanargmax(values_CK[:, known], axis=0)
    first, count = max(((name, int((best == c).sum())) for c, name in enumerate(candidates)), key=lambda pair: pair[1])
    if len(candidates) == 1:
        return f"{first} alone, in {count} columns."
    return f"{first} is ahead in {count} of {int(known.sum())} columns, of {len(candidates)} candidates."
