"""The report of a sweep of smallest budgets: curves, tables and the evidence that the attacks worked, on one page."""

from typing import Any

import altair as alt

from analysis.budgets import BudgetStatistics, at_budgets, budget, budgets_answer
from analysis.evidence import check_shares
from analysis.page import chart_spec, environment, inline_json, judged_parts, table_rows, vega_bundle
from analysis.plots import PALETTE, themed
from analysis.scores import AVERAGE, is_error
from rllava.records import SMALLEST


def survival_chart(statistics: BudgetStatistics) -> alt.ConcatChart:
    """Draws the share not beaten over the budget, a panel per benchmark and one for their average.

    Args:
        statistics: from ``budgets.analyse_budgets``.

    Returns:
        Stairs, in bands of the intervals at each budget; ε on a scale of square roots, where small ones have room.
    """
    candidates = list(statistics.results.manifest.candidates)
    colour = alt.Color(
        "candidate:N",
        title="Candidate",
        scale=alt.Scale(domain=candidates, range=[PALETTE[n % len(PALETTE)] for n in range(len(candidates))]),
        legend=alt.Legend(orient="bottom", columns=4, symbolLimit=0, labelLimit=260, symbolOpacity=1),
    )
    panels = []
    for scope in statistics.scopes:
        table = statistics.curve[(statistics.curve["benchmark"] == scope) & statistics.curve["mean"].notna()]
        table = table.assign(low=table["low"].fillna(table["mean"]), high=table["high"].fillna(table["mean"]))
        base = alt.Chart(table).encode(
            x=alt.X(
                "epsilon:Q",
                title="Budget ε (L∞, 1/255)",
                scale=alt.Scale(type="sqrt", domain=[0, statistics.largest], nice=False),
                axis=alt.Axis(format="~g", grid=False),
            ),
            color=colour,
        )
        scale = alt.Scale(domain=[0, 100])
        band = base.mark_area(interpolate="step-after", opacity=0.13).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
        line = base.mark_line(interpolate="step-after", strokeWidth=2.2).encode(
            y=alt.Y("mean:Q", title="Samples not beaten, %", scale=scale),
            tooltip=[
                "candidate:N",
                alt.Tooltip("epsilon:Q", format=".3~g"),
                alt.Tooltip("mean:Q", format=".1f"),
                alt.Tooltip("low:Q", format=".1f"),
                alt.Tooltip("high:Q", format=".1f"),
                alt.Tooltip("band_low:Q", format=".1f"),
                alt.Tooltip("band_high:Q", format=".1f"),
            ],
        )
        title = f"Average of {len(statistics.results.manifest.benchmarks)} benchmarks" if scope == AVERAGE else scope
        heading = alt.TitleParams(title, fontSize=13, anchor="start")
        panels.append((band + line).properties(width=300, height=250, title=heading))
    chart: alt.ConcatChart = alt.concat(*panels, columns=3, spacing=28)
    level = f"bands: {statistics.resampling.level:.0%} bootstrap intervals at each budget"
    heading = alt.TitleParams("Not beaten up to ε", subtitle=f"{statistics.protocol}; {level}", offset=16)
    return themed(chart.properties(title=heading))


def render_budgets(statistics: BudgetStatistics, chart: alt.ConcatChart) -> str:
    """Renders the report.

    Args:
        statistics: from ``budgets.analyse_budgets``.
        chart: from :func:`survival_chart`.

    Returns:
        An HTML page that loads nothing from the network; text of models and data sets is escaped.
    """
    table = table_rows(statistics.table[statistics.table["benchmark"].isin(statistics.scopes)])
    shown = [
        {
            **row,
            "median_text": budget(row["median"], statistics),
            "from_text": budget(row["median_low"], statistics),
            "to_text": budget(row["median_high"], statistics),
        }
        for row in table
    ]
    comparisons = statistics.comparisons
    if not comparisons.empty:
        comparisons = comparisons[comparisons["benchmark"].isin(statistics.scopes)]
    return (
        environment()
        .get_template("budgets.html")
        .render(
            manifest=statistics.results.manifest,
            statistics=statistics,
            answer=budgets_answer(statistics),
            level=statistics.resampling.level,
            vega=vega_bundle(),
            chart=inline_json(chart_spec(chart)),
            table=shown,
            shares=at_budgets(statistics),
            comparisons=table_rows(comparisons),
            evidence=evidence(statistics),
            **judged_parts(statistics.judged),
        )
    )


def evidence(statistics: BudgetStatistics) -> list[dict[str, Any]]:
    """What speaks for and against the searches.

    Returns:
        Per candidate: samples ``searched``, mean gradient ``steps``, ``budgets`` tried per sample, the mean share of
        ``zero_gradients``, ``rounded``, the share of the beaten that score as clean again once their image is rounded
        to 8 bits, ``over``, images beyond the budget they are said to beat at, and the checks that were raised.
    """
    records = statistics.results.records
    rows = records[(records["kind"] == SMALLEST) & ~is_error(records)]
    rows = rows[rows["rounds"].map(len) > 0]
    found = []
    for candidate in statistics.results.manifest.candidates:
        own = rows[rows["candidate"] == candidate]
        beaten = own[own["beaten_at"].notna()]
        raised = {
            name.removeprefix("check_"): share
            for name, share in check_shares(own).items()
            if name != "checked" and share > 0
        }
        found.append(
            {
                "candidate": candidate,
                "searched": len(own),
                "steps": float(own["steps"].mean()),
                "budgets": float(own["round_epsilons"].map(lambda tried: len(set(tried))).mean()),
                "zero_gradients": float(own["zero_gradient_share"].mean()),
                "rounded": float((beaten["score_8bit"] >= beaten["clean_score"]).mean()),
                "over": int((own["linf"] > own["beaten_at"].fillna(own["epsilon"]) + 1e-3).sum()),
                "raised": ", ".join(f"{name} {share:.0%}" for name, share in raised.items()),
            }
        )
    return found
