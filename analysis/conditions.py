"""Statistics of conditions that are no attacks, e.g. corruptions: what each leaves of a candidate's clean score.

Shape legend: B bootstrap draws, S samples of one benchmark, C candidates, E columns (the clean images, then each
condition, at each of its severities if it has any).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.bootstrap import DEFAULT_RESAMPLING, Bootstrap, Resampling, bca_interval, column_quantiles
from analysis.cells import require_one_evaluation
from analysis.comparisons import compare
from analysis.evidence import ATTACK
from analysis.judgements import JudgementStatistics, analyse_judgements
from analysis.loading import SweepResults
from analysis.manifest import ConditionEntry, Manifest
from analysis.scores import AVERAGE, Scores, arrange_scores
from analysis.summary import bootstrap_scores, summarise
from analysis.yes_no import analyse_yes_no
from rllava.errors import UserError
from rllava.records import CLEAN, SMALLEST

NO_SEVERITY = 0
"""Stands for the severity of what has none: the clean image, and conditions that come in one strength."""

ALL = "all conditions"
"""Name of the mean over all conditions at all severities, where it stands beside them."""

CONDITION_COLUMNS = (
    "candidate", "benchmark", "condition", "severity", "mean", "low", "high", "n",
    "drop", "drop_low", "drop_high",
)  # fmt: skip
"""Columns of conditions.csv."""


@dataclass(frozen=True)
class ConditionStatistics:
    """The statistics of a sweep's conditions that are no attacks.

    Attributes:
        results: the manifest and records they come from.
        columns: label and severity of each column of the arrays; the first is the clean image. NO_SEVERITY where there
            is none.
        baseline: candidate that the others are compared with.
        resampling: draws, seed and level of all intervals and tests.
        table: per candidate, benchmark or AVERAGE, condition and severity: ``mean, low, high`` in the paper's units,
            ``n`` scores, and ``drop, drop_low, drop_high``, the share of the candidate's own clean score that is lost,
            with its percentile interval.
        means: the same over the severities of each condition, and over all of them (ALL), severity left out.
        comparisons: see ``comparisons.compare``, with ``condition`` and ``severity`` for the budget.
        judged: see ``judgements.analyse_judgements``.
        yes_no: see ``yes_no.yes_no_table``.
    """

    results: SweepResults
    columns: tuple[tuple[str, int], ...]
    baseline: str
    resampling: Resampling
    table: pd.DataFrame
    means: pd.DataFrame
    comparisons: pd.DataFrame
    judged: JudgementStatistics | None = None
    yes_no: pd.DataFrame = field(default_factory=pd.DataFrame)


def others(manifest: Manifest) -> list[ConditionEntry]:
    """The conditions of a sweep that are neither the clean image nor attacks, nor look for smallest budgets. Images of
    other candidates are told in a matrix of their own (:mod:`analysis.transfer`)."""
    return [entry for entry in manifest.conditions if entry.kind not in (CLEAN, ATTACK, SMALLEST) and not entry.source]


def is_about_conditions(manifest: Manifest) -> bool:
    """Whether a sweep showed something else than attacks, and no attacks."""
    return bool(others(manifest)) and all(entry.kind != ATTACK for entry in manifest.conditions)


def analyse_conditions(
    results: SweepResults, baseline: str | None = None, resampling: Resampling = DEFAULT_RESAMPLING
) -> ConditionStatistics:
    """Computes means, drops, intervals and comparisons of a sweep's conditions that are no attacks.

    Args:
        results: from ``loading.load_sweep``.
        baseline: candidate to compare with; by default the best on average over everything.

    Raises:
        UserError: if there are no records, or no clean ones, or the baseline is unknown.
    """
    columns = columns_of(results)
    scores = _arranged(results, columns)
    bootstraps = bootstrap_scores(scores, resampling)
    weak = [entry.label for entry in others(results.manifest) if entry.label_budget is None]
    means = _means(scores, bootstraps, columns, weak, resampling.level)
    reference = _best(means, scores.candidates) if baseline is None else baseline
    return ConditionStatistics(
        results=results,
        columns=columns,
        baseline=reference,
        resampling=resampling,
        table=_table(summarise(scores, bootstraps, resampling), columns),
        means=means,
        comparisons=_named(compare(scores, reference, resampling), columns),
        judged=analyse_judgements(results, resampling),
        yes_no=analyse_yes_no(results, resampling),
    )


def columns_of(results: SweepResults) -> tuple[tuple[str, int], ...]:
    """The clean image, then the other conditions of a sweep in their order, each at its severities."""
    entries = others(results.manifest)
    of = ((entry.label, severity) for entry in entries for severity in entry.severities or (NO_SEVERITY,))
    return ((CLEAN, NO_SEVERITY), *of)


def _arranged(results: SweepResults, columns: tuple[tuple[str, int], ...]) -> Scores:
    """Scores as of an attack's budgets, which stand here for the columns by number."""
    records, manifest = results.records, results.manifest
    require_one_evaluation(records)
    numbers = {column: float(number) for number, column in enumerate(columns)}
    severities = records["severity"].fillna(NO_SEVERITY).astype(int)
    keys = zip(records["condition"], severities, strict=True)
    numbered = records.assign(epsilon=[numbers.get(key, np.nan) for key in keys], severity=0)
    if not (numbered["epsilon"] == 0).any():
        raise UserError("records: no clean answers to compare with; run the sweep again")
    return arrange_scores(numbered, manifest.candidates, manifest.benchmarks, tuple(numbers.values()))


def _named(table: pd.DataFrame, columns: tuple[tuple[str, int], ...]) -> pd.DataFrame:
    if table.empty:
        return table
    numbers = table["epsilon"].astype(int)
    named = table.assign(condition=[columns[n][0] for n in numbers], severity=[columns[n][1] for n in numbers])
    return named.drop(columns="epsilon")


def _table(summary: pd.DataFrame, columns: tuple[tuple[str, int], ...]) -> pd.DataFrame:
    table = _named(summary, columns)
    lost = table.assign(
        drop=1 - table["retained"], drop_low=1 - table["retained_high"], drop_high=1 - table["retained_low"]
    )
    return lost[[*CONDITION_COLUMNS, "errors"]]


def _means(
    scores: Scores, bootstraps: Mapping[str, Bootstrap], columns: tuple[tuple[str, int], ...], weak: Sequence[str],
    level: float,
) -> pd.DataFrame:  # fmt: skip
    """Means over severities, and over the conditions in which nothing was searched for (of only others, over those)."""
    labels = list(dict.fromkeys(label for label, _ in columns if label != CLEAN))
    groups = {label: [e for e, column in enumerate(columns) if column[0] == label] for label in labels}
    groups[ALL] = [e for e, (label, _) in enumerate(columns) if label in (weak or labels)]
    return group_means(scores, bootstraps, groups, level)


def group_means(
    scores: Scores, bootstraps: Mapping[str, Bootstrap], groups: Mapping[str, Sequence[int]], level: float
) -> pd.DataFrame:
    """Averages columns of a sweep with each other, e.g. the severities of a condition.

    Args:
        scores: whose first column is the clean images.
        bootstraps: from ``summary.bootstrap_scores``.
        groups: by name, the columns (E) of each.

    Returns:
        Rows (candidate, benchmark or AVERAGE, group under ``condition``) with ``mean, low, high``, ``n`` samples, and
        ``drop, drop_low, drop_high``, the share of the candidate's own clean score, on the same samples, that is lost.
    """
    rows = []
    for benchmark, bootstrap in bootstraps.items():
        shape = (len(scores.candidates), len(scores.epsilons))
        draws_BCE = bootstrap.draws.reshape(-1, *shape)
        influence_SCE = bootstrap.influence.reshape(-1, *shape)
        mean_CE, n_CE = bootstrap.mean.reshape(shape), bootstrap.n.reshape(shape)
        assert bootstrap.beside is not None
        assert bootstrap.beside_draws is not None
        clean_CE, clean_BCE = bootstrap.beside.reshape(shape), bootstrap.beside_draws.reshape(-1, *shape)
        for label, own in groups.items():
            over = Bootstrap(
                mean_CE[:, own].mean(1), draws_BCE[:, :, own].mean(2), influence_SCE[:, :, own].mean(2), n_CE[:, own[0]]
            )
            low_C, high_C = bca_interval(over, level)
            with np.errstate(invalid="ignore", divide="ignore"):
                drop_C = 1 - over.mean / clean_CE[:, own].mean(1)
                drops_BC = 1 - over.draws / clean_BCE[:, :, own].mean(2)
            usable_C = np.isfinite(drop_C) & np.isfinite(over.influence).all(axis=0)
            tails = [column_quantiles(drops_BC, np.where(usable_C, tail, np.nan)) for tail in _tails(level)]
            rows += [
                {
                    "candidate": candidate, "benchmark": benchmark, "condition": label, "mean": over.mean[c],
                    "low": low_C[c], "high": high_C[c], "n": over.n[c],
                    "drop": drop_C[c] if usable_C[c] else np.nan, "drop_low": tails[0][c], "drop_high": tails[1][c],
                }
                for c, candidate in enumerate(scores.candidates)
            ]  # fmt: skip
    return pd.DataFrame(rows)


def _best(means: pd.DataFrame, candidates: Sequence[str]) -> str:
    """The candidate that is best over everything; the first one on ties or without any score."""
    overall = means[(means["benchmark"] == AVERAGE) & (means["condition"] == ALL)].set_index("candidate")["mean"]
    return max(candidates, key=lambda name: np.nan_to_num(overall[name], nan=-np.inf))


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def conditions_answer(statistics: ConditionStatistics) -> str:
    """States in a sentence who loses least, and to what everybody loses most."""
    means = statistics.means[statistics.means["benchmark"] == AVERAGE]
    overall = means[(means["condition"] == ALL) & means["drop"].notna()].sort_values("drop")
    if overall.empty:
        return "No candidate has a clean score above 0 to lose."
    best = overall.iloc[0]
    said = f"{best['candidate']} keeps most of its own clean score, {1 - best['drop']:.0%}"
    single = means[means["condition"] != ALL].groupby("condition", sort=False)["drop"].mean()
    if len(single) > 1:
        said += f"; {single.idxmax()} takes most ({single.max():.0%} on average over candidates)"
    return f"{said}."


def format_conditions(statistics: ConditionStatistics) -> str:
    """Formats a sweep for the terminal: a row per condition, a column per candidate.

    Args:
        statistics: from :func:`analyse_conditions`.

    Returns:
        Plain text: the percentage of the candidate's own clean score that is lost, over the severities, with half the
        width of its interval; the average over benchmarks.
    """
    means = statistics.means[statistics.means["benchmark"] == AVERAGE]
    candidates = list(statistics.results.manifest.candidates)
    cells = {(row["condition"], row["candidate"]): row for row in means.to_dict("records")}
    labels = list(dict.fromkeys(means["condition"]))
    first = max(len("condition"), *map(len, labels))
    width = max(9, *map(len, candidates))
    lines = [f"{'condition':<{first}}" + "".join(f"  {name:>{width}}" for name in candidates)]
    lines.append("-" * len(lines[0]))
    for label in labels:
        lines.append(f"{label:<{first}}" + "".join(f"  {_lost(cells[label, name]):>{width}}" for name in candidates))
    searched = any(entry.label_budget is not None for entry in others(statistics.results.manifest))
    legend = (
        "percent of the candidate's own clean score that is lost, mean over severities and benchmarks; ± half the "
        f"width of the {statistics.resampling.level:.0%} bootstrap interval; every severity is in the report"
        + (f"; {ALL}: those in which nothing was searched for" if searched else "")
    )
    return "\n".join([*lines, "", legend])


def _lost(row: Mapping[Any, float]) -> str:
    if not np.isfinite(row["drop"]):
        return "–"
    lost, half = round(100 * row["drop"]), (row["drop_high"] - row["drop_low"]) / 2
    return f"{lost} ±{100 * half:.0f}" if np.isfinite(half) else f"{lost} ±?"
