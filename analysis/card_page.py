"""The report of a robustness card: table, heat map, fronts of any two columns, correlations, galleries, cost."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.card import ENOUGH, CardStatistics, card_answer, fronts, signed_means
from analysis.card_columns import Column, own_rows
from analysis.card_schema import CARD_SCHEMA, CARD_VERSION
from analysis.condition_page import ShownSample, samples_under
from analysis.conditions import NO_SEVERITY
from analysis.evidence import ATTACK
from analysis.gallery import Exhibit, build_gallery, magnification
from analysis.loading import SweepResults
from analysis.page import chart_spec, environment, inline_json, judged_parts, table_rows, vega_bundle
from analysis.plots import PALETTE
from analysis.scores import default_epsilon, sweep_scores
from rllava.records import CLEAN


def card_map(statistics: CardStatistics) -> alt.LayerChart:
    """Draws candidates x columns: the mean, coloured by the share of the candidate's own clean score.

    Args:
        statistics: from ``card.analyse_card``.
    """
    columns, names = statistics.main_columns, statistics.headings
    rows = []
    for column in columns:
        for row in own_rows(statistics.table, column).to_dict("records"):
            relative = row["relative"] if column.good else np.nan
            rows.append({
                "candidate": row["candidate"], "column": names[column], "mean": _known(row["mean"]),
                "kept": _known(100 * relative), "low": _known(row["low"]), "high": _known(row["high"]),
            })  # fmt: skip
    order = [names[column] for column in columns]
    candidates = list(dict.fromkeys(statistics.table["candidate"]))
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("column:N", sort=order, title=None, axis=alt.Axis(labelAngle=-50, labelLimit=400)),
        y=alt.Y("candidate:N", sort=candidates, title=None, axis=alt.Axis(labelLimit=260)),
    )
    tiles = base.mark_rect().encode(
        color=alt.condition(
            "isValid(datum.kept)",
            alt.Color(
                "kept:Q",
                title="of own clean score, %",
                scale=alt.Scale(domain=[0, 100], scheme="blues", clamp=True),
            ),
            alt.value("#eef2f6"),
        ),
        tooltip=[
            "candidate:N", "column:N", *(alt.Tooltip(f"{name}:Q", format=".1f") for name in ("mean", "low", "high")),
            alt.Tooltip("kept:Q", format=".0f", title="of clean, %"),
        ],
    )  # fmt: skip
    text = base.mark_text(fontSize=10).encode(
        text=alt.Text("mean:Q", format=".0f"),
        color=alt.condition("datum.kept > 60", alt.value("white"), alt.value("#0f172a")),
    )
    size = {"width": max(320, 34 * len(order)), "height": max(60, 26 * len(candidates))}
    chart: alt.LayerChart = (tiles + text).properties(**size).configure_view(stroke=None)
    return chart


def front_chart(statistics: CardStatistics) -> alt.LayerChart | None:
    """Draws any two columns against each other; which ones is chosen on the page.

    Who is on the front is computed here for every pair, and looked up by the page.

    Args:
        statistics: from ``card.analyse_card``.

    Returns:
        None of fewer than two columns.
    """
    columns = statistics.main_columns
    if len(columns) < 2:
        return None
    candidates = list(dict.fromkeys(statistics.table["candidate"]))
    values_CK = np.abs(signed_means(statistics.table, columns))
    fronts_KKC = fronts(statistics.table, columns)
    rows = [
        {
            "candidate": name,
            "values": [_known(value) for value in values_CK[c]],
            "fronts": ["".join("1" if on else "0" for on in fronts_KKC[k, :, c]) for k in range(len(columns))],
        }
        for c, name in enumerate(candidates)
    ]
    labels = [statistics.headings[column] + ("" if column.good else " (smaller is better)") for column in columns]
    first, second = _first_pair(columns)
    across, up = (
        alt.param(
            name=name, value=value, bind=alt.binding_select(options=list(range(len(columns))), labels=labels, name=said)
        )
        for name, value, said in (("across", first, "across: "), ("up", second, "up: "))
    )
    base = (
        alt.Chart(alt.InlineData(values=rows))
        .transform_calculate(
            x="datum.values[across]",
            y="datum.values[up]",
            front="substring(datum.fronts[across], up, up + 1) == '1' ? 'on the front' : 'dominated'",
        )
        .transform_filter("isValid(datum.x) && isValid(datum.y)")
        .encode(
            x=alt.X("x:Q", title="across", scale=alt.Scale(zero=False)),
            y=alt.Y("y:Q", title="up", scale=alt.Scale(zero=False)),
            color=alt.Color(
                "candidate:N",
                scale=alt.Scale(domain=candidates, range=[PALETTE[c % len(PALETTE)] for c in range(len(candidates))]),
                legend=None,
            ),
        )
    )
    points = base.mark_point(size=130, strokeWidth=2).encode(
        fill=alt.condition("datum.front == 'on the front'", alt.Color("candidate:N"), alt.value("white")),
        tooltip=["candidate:N", alt.Tooltip("x:Q", format=".1f"), alt.Tooltip("y:Q", format=".1f"), "front:N"],
    )
    names = base.mark_text(align="left", dx=10, fontSize=11.5).encode(text="candidate:N")
    chart: alt.LayerChart = (points + names).add_params(across, up).properties(width=620, height=400)
    return chart


def _first_pair(columns: Sequence[Column]) -> tuple[int, int]:
    """A clean column and the same benchmark at its largest budget, if there are such."""
    clean = next((k for k, column in enumerate(columns) if column.kind == CLEAN), 0)
    attacked = [k for k, c in enumerate(columns) if c.kind == ATTACK and c.benchmark == columns[clean].benchmark]
    return clean, attacked[-1] if attacked else (1 if clean == 0 else 0)


def attack_gallery(results: SweepResults) -> tuple[float, list[Exhibit]]:
    """What attacks did to the same samples, at the budget of the headline numbers.

    Returns:
        That budget in 1/255, and the exhibits; none where nothing was attacked.
    """
    kept = results.records[results.records["kind"].isin((CLEAN, ATTACK))]
    attacked = SweepResults(results.storage, results.manifest, kept)
    budgets = {float(epsilon) for epsilon in kept.loc[kept["kind"] == ATTACK, "epsilon"]}
    if not budgets or kept.loc[kept["kind"] == ATTACK, "condition"].nunique() > 1:
        return 0.0, []
    epsilon = default_epsilon(sorted(budgets))
    return epsilon, build_gallery(attacked, sweep_scores(attacked), epsilon, per_benchmark=1)


def shown_gallery(results: SweepResults) -> list[ShownSample]:
    """What was shown under every condition that is no attack."""
    entries = [entry for entry in results.manifest.conditions if entry.kind not in (CLEAN, ATTACK)]
    return samples_under(
        results, [(entry.label, severity) for entry in entries for severity in entry.severities or (NO_SEVERITY,)]
    )


def render_card(statistics: CardStatistics, chart: alt.LayerChart, front: alt.LayerChart | None) -> str:
    """Renders the report.

    Args:
        statistics: from ``card.analyse_card``.
        chart: from :func:`card_map`.
        front: from :func:`front_chart`.

    Returns:
        An HTML page that loads nothing from the network; text of models, data sets and submitters is escaped.
    """
    epsilon, exhibits = attack_gallery(statistics.results)
    manifest, names = statistics.results.manifest, statistics.headings
    return (
        environment()
        .get_template("card.html")
        .render(
            manifest=manifest,
            statistics=statistics,
            answer=card_answer(statistics),
            level=statistics.resampling.level,
            vega=vega_bundle(),
            chart=inline_json(chart_spec(chart)),
            front_chart=None if front is None else inline_json(chart_spec(front)),
            columns=[(names[column], column) for column in statistics.main_columns],
            rows=_rows(statistics),
            detail=table_rows(statistics.table),
            correlations=_correlations(statistics),
            enough=ENOUGH,
            count=len(set(statistics.table["candidate"])),
            non_adaptive=[names[column] for column in statistics.main_columns if not column.adaptive],
            found=[names[column] for column in statistics.main_columns if column.found],
            cost=table_rows(statistics.cost),
            paper=table_rows(statistics.paper),
            submitted=sorted(set(statistics.submitted["source"])),
            schema=[(field.name, (field.metadata or {})[b"description"].decode()) for field in CARD_SCHEMA],
            version=CARD_VERSION,
            epsilon=epsilon,
            factor=magnification(epsilon),
            exhibits=exhibits,
            samples=shown_gallery(statistics.results),
            **judged_parts(statistics.judged),
        )
    )


def _rows(statistics: CardStatistics) -> list[dict[str, Any]]:
    """A row per candidate of ours, then of each submitter; a cell per column, None where there is none."""
    ours, theirs = statistics.table, statistics.submitted
    every = ours if theirs.empty else pd.concat([ours, theirs.astype(ours.dtypes.to_dict(), errors="ignore")])
    best = {}
    for column in statistics.main_columns:
        means = own_rows(ours, column)["mean"]
        best[column] = means.max() if column.good else means.min()
    rows = []
    for (source, candidate), own in every.groupby(["source", "candidate"], sort=False):
        cells = []
        for column in statistics.main_columns:
            found = table_rows(own_rows(own, column))
            cells.append({**found[0], "best": found[0]["mean"] == best[column]} if found else None)
        rows.append({"source": source, "candidate": candidate, "cells": cells})
    return rows


def _correlations(statistics: CardStatistics) -> list[dict[str, Any]]:
    """The strongest first; with a verdict where there are candidates enough."""
    rows = statistics.correlations.dropna(subset=["rho"])
    rows = rows.reindex(rows["rho"].abs().sort_values(ascending=False, kind="stable").index)
    alpha = 1 - statistics.resampling.level

    def verdict(row: dict[str, Any]) -> str:
        if row["n"] < ENOUGH:
            return ""
        return "related" if row["p_holm"] < alpha else "not told apart from chance"

    return [{**row, "verdict": verdict(row)} for row in table_rows(rows)]


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def format_card(statistics: CardStatistics) -> str:
    """Formats a card for the terminal: a row per column of the card, a column per candidate.

    Args:
        statistics: from ``card.analyse_card``.

    Returns:
        Plain text: mean and half the width of its interval, and the share of the candidate's own clean score.
    """
    candidates = list(dict.fromkeys(statistics.table["candidate"]))
    names = statistics.headings
    first = max(len("column"), *(len(names[column]) for column in statistics.main_columns))
    width = max(15, *map(len, candidates))
    lines = [f"{'column':<{first}}" + "".join(f"  {name:>{width}}" for name in candidates)]
    lines.append("-" * len(lines[0]))
    for column in statistics.main_columns:
        cells = {row["candidate"]: _cell(row) for row in table_rows(own_rows(statistics.table, column))}
        lines.append(f"{names[column]:<{first}}" + "".join(f"  {cells.get(name, '–'):>{width}}" for name in candidates))
    legend = (
        f"mean ± half the width of the {statistics.resampling.level:.0%} bootstrap interval, and percent of the "
        "candidate's own clean score; ε in 1/255; every corruption and severity is in card.csv"
    )
    return "\n".join([*lines, "", legend])


def _cell(row: dict[str, Any]) -> str:
    if not np.isfinite(row["mean"]):
        return "–"
    half = (row["high"] - row["low"]) / 2
    said = f"{row['mean']:.1f} ±{half:.0f}" if np.isfinite(half) else f"{row['mean']:.1f} ±?"
    return f"{said} {row['relative']:4.0%}" if np.isfinite(row["relative"]) and row["kind"] != CLEAN else f"{said}     "
