"""Statistics of a sweep of smallest budgets: the share not beaten at every budget, its median and its area.

A sample's smallest budget is 0 where the clean answer is wrong already, and beyond the largest that was searched where
no attack beat it. The share not beaten at ε counts the samples whose smallest budget is above ε; the area under that
curve up to the largest budget, in shares of it, is the mean smallest budget over the largest, those beyond it counted
as it. Nothing is censored within: at every budget, it is known of every sample whether it was beaten there.

Shape legend: B bootstrap draws, S samples of one benchmark, C candidates, E budgets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.bootstrap import DEFAULT_RESAMPLING, Bootstrap, FloatArray, Resampling, column_quantiles
from analysis.comparisons import compare
from analysis.judgements import JudgementStatistics, analyse_judgements
from analysis.loading import SweepResults
from analysis.manifest import Manifest
from analysis.scores import AVERAGE, Scores, arrange_scores, is_error
from analysis.summary import bootstrap_scores, summarise
from rllava.errors import UserError
from rllava.records import SMALLEST

CURVE_COLUMNS = ("candidate", "benchmark", "epsilon", "mean", "low", "high", "band_low", "band_high", "n")
"""Columns of curve.csv."""

SUMMARY_COLUMNS = (
    "candidate", "benchmark", "median", "median_low", "median_high", "area", "area_low", "area_high", "clean",
    "not_beaten", "n", "errors", "seeds", "steps",
)  # fmt: skip
"""Columns of smallest.csv."""

COMPARISON_COLUMNS = ("baseline", "candidate", "benchmark", "difference", "low", "high", "p", "p_holm", "n")
"""Columns of comparisons.csv; the difference is in the area, in percent."""

HALF = 50.0
"""Percent of the samples that the median leaves standing."""


@dataclass(frozen=True)
class BudgetStatistics:
    """The statistics of a sweep of smallest budgets.

    Attributes:
        results: the manifest and records they come from.
        largest: budget up to which was searched, in 1/255.
        baseline: candidate that the others are compared with.
        resampling: draws, seed and level of all intervals and tests.
        curve: per candidate, benchmark or AVERAGE, and every budget at which a curve falls: ``mean``, the percentage
            not beaten, its BCa interval at this budget ``low, high``, and ``band_low, band_high``, the band that holds
            the whole curve at once.
        table: per candidate, benchmark or AVERAGE: ``median`` and its percentile interval, infinite beyond the largest
            budget; ``area`` in percent and its BCa interval; ``clean`` and ``not_beaten``, the percentages at 0 and at
            the largest budget; mean gradient ``steps`` per sample.
        comparisons: of the areas, on the same samples, see ``comparisons.compare``.
        judged: see ``judgements.analyse_judgements``.
    """

    results: SweepResults
    largest: float
    baseline: str
    resampling: Resampling
    curve: pd.DataFrame
    table: pd.DataFrame
    comparisons: pd.DataFrame
    judged: JudgementStatistics | None = None

    @property
    def protocol(self) -> str:
        """Name and version of the condition."""
        return next(entry.label for entry in self.results.manifest.conditions if entry.kind == SMALLEST)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The benchmarks, and their average where there are several."""
        names = self.results.manifest.benchmarks
        return (*names, AVERAGE) if len(names) > 1 else names


def is_about_budgets(manifest: Manifest) -> bool:
    """Whether a sweep looked for smallest budgets."""
    return any(entry.kind == SMALLEST for entry in manifest.conditions)


def analyse_budgets(
    results: SweepResults, baseline: str | None = None, resampling: Resampling = DEFAULT_RESAMPLING
) -> BudgetStatistics:
    """Computes curves, medians, areas and comparisons of a sweep of smallest budgets.

    Args:
        results: from ``loading.load_sweep``.
        baseline: candidate to compare with; by default the one with the largest area on average.

    Raises:
        UserError: if there are no such records, or the baseline is unknown.
    """
    records = results.records[results.records["kind"] == SMALLEST]
    if records.empty:
        raise UserError("records: no smallest budgets; run sweeps/budgets.py")
    largest = float(records["epsilon"].max())
    curves, areas = _curves(results, records, largest), _areas(results, records, largest)
    drawn, drawn_areas = bootstrap_scores(curves, resampling), bootstrap_scores(areas, resampling)
    area = summarise(areas, drawn_areas, resampling)
    averages = area[area["benchmark"] == AVERAGE].set_index("candidate")["mean"]
    reference = str(averages.idxmax()) if baseline is None and averages.notna().any() else baseline
    reference = areas.candidates[0] if reference is None else reference
    compared = compare(areas, reference, resampling)
    return BudgetStatistics(
        results=results,
        largest=largest,
        baseline=reference,
        resampling=resampling,
        curve=_curve_table(curves, drawn, resampling),
        table=_table(records, curves, drawn, area, resampling.level),
        comparisons=compared.drop(columns="epsilon", errors="ignore"),
        judged=analyse_judgements(results, resampling),
    )


def smallest_budgets(records: pd.DataFrame) -> FloatArray:
    """Where each sample was beaten, in 1/255; infinite where it was not, NaN where there is no telling."""
    beaten = records["beaten_at"].to_numpy(dtype=np.float64)
    return np.where(is_error(records), np.nan, np.where(np.isnan(beaten), np.inf, beaten))


def _curves(results: SweepResults, records: pd.DataFrame, largest: float) -> Scores:
    """Whether each sample stands at each budget, in percent: budgets at which any was beaten, 0 and the largest."""
    smallest = smallest_budgets(records)
    budgets = np.unique([0.0, largest, *smallest[np.isfinite(smallest)]])
    at = [
        records.assign(epsilon=budget, score=np.where(np.isnan(smallest), np.nan, 100.0 * (smallest > budget)))
        for budget in budgets
    ]
    return arrange_scores(pd.concat(at), results.manifest.candidates, results.manifest.benchmarks, budgets.tolist())


def _areas(results: SweepResults, records: pd.DataFrame, largest: float) -> Scores:
    """The area under each sample's own curve, in percent, in a single column."""
    share = 100.0 * np.minimum(smallest_budgets(records), largest) / largest
    rows = records.assign(epsilon=0.0, score=share)
    return arrange_scores(rows, results.manifest.candidates, results.manifest.benchmarks, (0.0,))


def _curve_table(curves: Scores, drawn: Mapping[str, Bootstrap], resampling: Resampling) -> pd.DataFrame:
    table = summarise(curves, drawn, resampling)
    shape = (len(curves.candidates), len(curves.epsilons))
    bands = []
    for bootstrap in drawn.values():
        mean_CE, draws_BCE = bootstrap.mean.reshape(shape), bootstrap.draws.reshape(-1, *shape)
        width_C = simultaneous_width(mean_CE, draws_BCE, resampling.level)
        bands.append(np.stack([mean_CE - width_C[:, None], mean_CE + width_C[:, None]]).reshape(2, -1))
    low_K, high_K = np.concatenate(bands, axis=1)
    table = table.assign(band_low=low_K.clip(0, 100), band_high=high_K.clip(0, 100))
    return table[list(CURVE_COLUMNS)]


def simultaneous_width(mean_CE: FloatArray, draws_BCE: FloatArray, level: float) -> FloatArray:
    """Half the width of a band around each curve that holds it at all budgets at once.

    The quantile of the largest deviation of a bootstrap draw from the mean: the bootstrap of Kolmogorov's statistic,
    which suits a curve of steps.

    Returns:
        [C]; NaN where a curve is not known.
    """
    with np.errstate(invalid="ignore"):
        largest_BC = np.abs(draws_BCE - mean_CE).max(axis=2)
    return column_quantiles(largest_BC, np.full(len(mean_CE), level))


def _table(
    records: pd.DataFrame, curves: Scores, drawn: Mapping[str, Bootstrap], area: pd.DataFrame, level: float
) -> pd.DataFrame:
    budgets_E, shape = np.array(curves.epsilons), (len(curves.candidates), len(curves.epsilons))
    rows = []
    for name, bootstrap in drawn.items():
        mean_CE, draws_BCE = bootstrap.mean.reshape(shape), bootstrap.draws.reshape(-1, *shape)
        for c, candidate in enumerate(curves.candidates):
            (whole,) = area[(area["benchmark"] == name) & (area["candidate"] == candidate)].to_dict("records")
            own = records[(records["candidate"] == candidate) & (records["benchmark"].isin([name]) | (name == AVERAGE))]
            median_B = medians(draws_BCE[:, c], budgets_E)
            low, high = (_order_quantile(median_B, share) for share in ((1 - level) / 2, (1 + level) / 2))
            rows.append(
                {
                    "candidate": candidate,
                    "benchmark": name,
                    "median": float(medians(mean_CE[[c]], budgets_E)[0]),
                    "median_low": low,
                    "median_high": high,
                    "area": whole["mean"],
                    "area_low": whole["low"],
                    "area_high": whole["high"],
                    "clean": mean_CE[c, 0],
                    "not_beaten": mean_CE[c, -1],
                    "n": whole["n"],
                    "errors": whole["errors"],
                    "seeds": whole["seeds"],
                    "steps": float(own["steps"].mean()),
                }
            )
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def medians(curves_BE: FloatArray, budgets_E: FloatArray) -> FloatArray:
    """The smallest budget of each curve at which no more than half of the samples stand.

    Returns:
        [B]; infinite where more than half stand at the largest, NaN where a curve is not known.
    """
    fallen_BE = curves_BE <= HALF + 1e-9
    first_B = budgets_E[fallen_BE.argmax(axis=1)]
    found_B = np.where(fallen_BE.any(axis=1), first_B, np.inf)
    return np.where(np.isfinite(curves_BE).all(axis=1), found_B, np.nan)


def _order_quantile(values_B: FloatArray, share: float) -> float:
    """A quantile that is one of the values: between a number and infinity nothing is interpolated."""
    known = values_B[~np.isnan(values_B)]
    return float(np.quantile(known, share, method="inverted_cdf")) if len(known) else float("nan")


def budgets_answer(statistics: BudgetStatistics) -> str:
    """States in a sentence who stands longest."""
    table = statistics.table[statistics.table["benchmark"] == AVERAGE]
    known = table[table["area"].notna()].sort_values("area", ascending=False)
    if known.empty:
        return "No sample has a smallest budget."
    best = known.iloc[0]
    said = f"{best['candidate']} stands longest: half of its answers fall by ε = {budget(best['median'], statistics)}"
    if not np.isfinite(best["median"]):
        said = (
            f"{best['candidate']} stands longest: more than half of its answers stand at ε = {statistics.largest:g}/255"
        )
    return f"{said}; the area under its curve is {best['area']:.0f} %."


def budget(value: float, statistics: BudgetStatistics) -> str:
    """A smallest budget as a reader reads it."""
    if np.isnan(value):
        return "–"
    return f"{value:.3g}/255" if np.isfinite(value) else f"> {statistics.largest:g}/255"


def at_budgets(statistics: BudgetStatistics, wanted: Sequence[float] = (0, 1, 2, 4, 8, 16)) -> list[dict[str, Any]]:
    """The curves at a few budgets.

    Returns:
        A row per candidate and scope: ``candidate, benchmark, cells``, of which each has ``mean, low, high``.
    """
    shown = [value for value in wanted if value <= statistics.largest]
    rows = []
    for (name, scope), curve in statistics.curve.groupby(["candidate", "benchmark"], sort=False):
        steps = curve.sort_values("epsilon")
        cells = [steps[steps["epsilon"] <= value].iloc[-1].to_dict() | {"epsilon": float(value)} for value in shown]
        rows.append({"candidate": name, "benchmark": scope, "cells": cells})
    return [row for row in rows if row["benchmark"] in statistics.scopes]


def format_budgets(statistics: BudgetStatistics) -> str:
    """Formats a sweep for the terminal: a block per benchmark, a row per candidate.

    Returns:
        Plain text: the percentage not beaten at a few budgets, the median budget and the area, with half the widths of
        their intervals.
    """
    table = {(row["candidate"], row["benchmark"]): row for row in statistics.table.to_dict("records")}
    rows = at_budgets(statistics)
    first = max(len("candidate"), *(len(row["candidate"]) for row in rows))
    blocks = []
    for scope in statistics.scopes:
        own = [row for row in rows if row["benchmark"] == scope]
        heads = [f"ε = {cell['epsilon']:g}" for cell in own[0]["cells"]]
        head = f"{'candidate':<{first}}" + "".join(f"  {text:>11}" for text in (*heads, "median ε", "area"))
        lines = [scope, head, "-" * len(head)]
        for row in own:
            whole = table[row["candidate"], scope]
            cells = [_cell(cell["mean"], cell["low"], cell["high"]) for cell in row["cells"]]
            median = f"{whole['median']:.3g}" if np.isfinite(whole["median"]) else f"> {statistics.largest:g}"
            cells += [median, _cell(whole["area"], whole["area_low"], whole["area_high"])]
            lines.append(f"{row['candidate']:<{first}}" + "".join(f"  {text:>11}" for text in cells))
        blocks.append("\n".join(lines))
    errors = int(statistics.table.loc[statistics.table["benchmark"] == AVERAGE, "errors"].sum())
    legend = (
        f"percent not beaten at ε (1/255), budget at which half are beaten, area under the curve up to "
        f"{statistics.largest:g}/255 in percent; ± half the width of the {statistics.resampling.level:.0%} bootstrap "
        f"interval at each budget; {errors} records with an error (left out)"
    )
    return "\n\n".join([*blocks, legend])


def _cell(mean: float, low: float, high: float) -> str:
    if not np.isfinite(mean):
        return "–"
    half = (high - low) / 2
    return f"{mean:.1f} ±{half:.1f}" if np.isfinite(half) else f"{mean:.1f} ±?"
