"""The two figures as Altair charts: the Pareto front, and the scores over the budget.

A click on a candidate in a legend highlights it (shift-click for several). The report's HTML, the PNG and the SVG are
all rendered from these charts.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import altair as alt
import numpy as np
import pandas as pd

from analysis.scores import AVERAGE
from analysis.statistics import Statistics

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#7F7F00", "#444444")
"""Okabe and Ito's colours, told apart under the common colour-vision deficiencies, then four darker ones."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
"""Shapes repeat after eight and colours after ten, so the first forty candidates differ in the pair."""

HIGHLIGHT = "highlight"
"""Name of the selection that both charts share."""

_ChartType = TypeVar("_ChartType", alt.LayerChart, alt.ConcatChart)

_FONT = "Liberation Sans, Helvetica Neue, Helvetica, Arial, sans-serif"
_WIDTH, _HEIGHT = 680, 440
_SIDE_LEGEND = alt.Legend(symbolLimit=0, labelLimit=260, symbolSize=110, symbolStrokeWidth=2, symbolOpacity=1)
_BOTTOM_LEGEND = alt.Legend(
    orient="bottom", columns=4, symbolLimit=0, labelLimit=260, symbolSize=110, symbolStrokeWidth=2, symbolOpacity=1
)


def pareto_chart(statistics: Statistics) -> alt.LayerChart:
    """Draws clean against robust score: a point per candidate, its intervals both ways, and the front.

    Args:
        statistics: from ``statistics.analyse``.

    Returns:
        The chart; filled points are on the front, hollow ones are dominated.
    """
    table = statistics.front.dropna(subset=["clean", "robust"])
    for name in ("clean", "robust"):
        table = table.assign(**{f"{name}_{end}": table[f"{name}_{end}"].fillna(table[name]) for end in ("low", "high")})
    x_domain, y_domain = _domain(table, "clean"), _domain(table, "robust")
    x = alt.X("clean:Q", title=_clean_title(statistics), scale=alt.Scale(domain=x_domain, nice=False))
    y = alt.Y("robust:Q", title=_robust_title(statistics), scale=alt.Scale(domain=y_domain, nice=False))
    highlight = alt.selection_point(name=HIGHLIGHT, fields=["candidate"], bind="legend")
    opacity = alt.when(highlight).then(alt.value(1.0)).otherwise(alt.value(0.12))
    labelled = _with_labels(table, x_domain, y_domain)
    base = alt.Chart(labelled).encode(color=_color(statistics, _SIDE_LEGEND))
    bars = base.mark_rule(strokeWidth=1.4, strokeCap="round").encode(
        opacity=alt.when(highlight).then(alt.value(0.55)).otherwise(alt.value(0.06))
    )
    points = base.mark_point(size=130, strokeWidth=2, opacity=1).encode(
        x,
        y,
        shape=_shape(statistics, _SIDE_LEGEND),
        fill=alt.when("datum.on_front").then(_color(statistics, _SIDE_LEGEND)).otherwise(alt.value("white")),
        opacity=opacity,
        tooltip=_pareto_tooltip(statistics),
    )
    position: dict[str, Any] = {
        "dx": alt.expr("datum.dx"),
        "dy": alt.expr("datum.dy"),
        "fontSize": 12.5,
        "fontWeight": 600,
    }
    texts = alt.Chart(labelled).encode(x, y, text="candidate:N", opacity=opacity)
    halos = texts.mark_text(color="white", stroke="white", strokeWidth=4, strokeJoin="round", **position)
    names = texts.mark_text(color="#1e293b", **position)
    layers = [
        *_front_layers(table, x_domain[0], y_domain[0], x, y),
        bars.encode(alt.X("clean_low:Q"), y, x2="clean_high:Q"),
        bars.encode(x, alt.Y("robust_low:Q"), y2="robust_high:Q"),
        halos,
        names,
        points.add_params(highlight),
    ]
    chart = alt.LayerChart(layer=layers).properties(width=_WIDTH, height=_HEIGHT, title=_pareto_heading(statistics))
    return themed(chart)


def curves_chart(statistics: Statistics) -> alt.ConcatChart:
    """Draws the score over the budget: a panel per benchmark and one for their average, with confidence bands.

    Args:
        statistics: from ``statistics.analyse``.

    Returns:
        The chart, at most three panels in a row.
    """
    names = list(statistics.scores.benchmarks)
    panels = [*names, AVERAGE] if len(names) > 1 else names
    columns = 2 if len(panels) in (2, 4) else 3
    highlight = alt.selection_point(name=HIGHLIGHT, fields=["candidate"], bind="legend")
    charts = [_curve_panel(statistics, name, highlight, columns) for name in panels]
    chart: alt.ConcatChart = alt.concat(*charts, columns=columns, spacing=28).resolve_scale(
        color="shared", shape="shared"
    )
    return themed(chart.properties(title=_curves_heading(statistics)))


def _curve_panel(statistics: Statistics, name: str, highlight: alt.Parameter, columns: int) -> alt.LayerChart:
    budgets = list(statistics.scores.epsilons)
    table = statistics.summary[(statistics.summary["benchmark"] == name) & statistics.summary["mean"].notna()]
    x = alt.X(
        "epsilon:Q",
        title="Budget ε (L∞, 1/255)",
        axis=alt.Axis(values=budgets, grid=False, format="~g", labelOverlap=True),
        scale=alt.Scale(domain=[min(budgets), max(max(budgets), min(budgets) + 1)], nice=False, padding=8),
    )
    top = float(np.nanmax([5.0, *table["high"].fillna(table["mean"])]))
    y_scale = alt.Scale(domain=[0, top * 1.04], nice=False)
    y = alt.Y("mean:Q", title="Score (% or CIDEr × 100)", scale=y_scale)
    line_opacity = alt.when(highlight).then(alt.value(1.0)).otherwise(alt.value(0.1))
    band_opacity = alt.when(highlight).then(alt.value(0.13)).otherwise(alt.value(0.02))
    base = alt.Chart(table).encode(x=x, color=_color(statistics, _BOTTOM_LEGEND))
    band = base.mark_area().encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q", opacity=band_opacity)
    line = base.mark_line(strokeWidth=2.2).encode(y=y, opacity=line_opacity)
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        y=y, shape=_shape(statistics, _BOTTOM_LEGEND), opacity=line_opacity, tooltip=_curve_tooltip()
    )
    title = f"Average of {len(statistics.scores.benchmarks)} benchmarks" if name == AVERAGE else name
    is_first = name == statistics.scores.benchmarks[0]  # one panel owns the selection, which all panels show
    layers = [band, line, points.add_params(highlight) if is_first else points]
    return alt.LayerChart(layer=layers).properties(
        width=430 if columns == 2 else 272, height=250, title=alt.TitleParams(title, fontSize=13, anchor="start")
    )


def _front_layers(table: pd.DataFrame, left: float, bottom: float, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Draws the staircase through the front, down to the axes, and shades what it dominates."""
    front = table[table["on_front"]].sort_values("clean")
    if front.empty:
        return []
    stairs = pd.DataFrame(
        {
            "clean": [left, *front["clean"], front["clean"].iloc[-1]],
            "robust": [front["robust"].iloc[0], *front["robust"], bottom],
            "bottom": bottom,
        }
    )
    base = alt.Chart(stairs)
    shade = base.mark_area(interpolate="step-before", color="#64748b", opacity=0.07).encode(x, y, y2="bottom:Q")
    line = base.mark_line(interpolate="step-before", color="#475569", strokeWidth=1.6, strokeDash=[5, 4]).encode(x, y)
    return [shade, line]


def _with_labels(table: pd.DataFrame, x_domain: Sequence[float], y_domain: Sequence[float]) -> pd.DataFrame:
    """Adds ``dx`` and ``dy`` (pixels): each name beside its point, where it covers the fewest points and names."""
    xs = (table["clean"] - x_domain[0]) / (x_domain[1] - x_domain[0]) * _WIDTH
    ys = (y_domain[1] - table["robust"]) / (y_domain[1] - y_domain[0]) * _HEIGHT
    boxes = [(x - 9, y - 9, x + 9, y + 9) for x, y in zip(xs, ys, strict=True)]
    offsets = []
    for x, y, name in zip(xs, ys, table["candidate"], strict=True):
        half = len(name) * 3.1 + 2
        options = [(dx * (half + 10), dy) for dx, dy in ((1, -12), (-1, -12), (1, 12), (-1, 12))]
        options += [(0, -20), (0, 20), (half + 14, -28), (-half - 14, -28), (half + 14, 28), (-half - 14, 28)]
        rated = []
        for rank, (dx, dy) in enumerate(options):
            box = (x + dx - half, y + dy - 8, x + dx + half, y + dy + 8)
            outside = max(0.0, -box[0]) + max(0.0, box[2] - _WIDTH) + max(0.0, -box[1]) + max(0.0, box[3] - _HEIGHT)
            rated.append((sum(_overlap(box, other) for other in boxes) + 50 * outside + rank, dx, dy, box))
        _, dx, dy, box = min(rated)
        boxes.append(box)
        offsets.append((dx, dy))
    return table.assign(dx=[dx for dx, _ in offsets], dy=[dy for _, dy in offsets])


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _domain(table: pd.DataFrame, name: str) -> list[float]:
    """Limits of an axis: all intervals with a margin of 8 % (2 points at least), not below 0 unless an interval is."""
    if table.empty:
        return [0.0, 100.0]
    low, high = float(table[f"{name}_low"].min()), float(table[f"{name}_high"].max())
    margin = max((high - low) * 0.08, 2.0)
    return [max(0.0, low - margin) if low >= 0 else low - margin, high + margin]


def _color(statistics: Statistics, legend: alt.Legend) -> alt.Color:
    return alt.Color("candidate:N", title="Candidate", scale=_scale(statistics, PALETTE), legend=legend)


def _shape(statistics: Statistics, legend: alt.Legend) -> alt.Shape:
    return alt.Shape("candidate:N", title="Candidate", scale=_scale(statistics, SHAPES), legend=legend)


def _scale(statistics: Statistics, values: Sequence[str]) -> alt.Scale:
    names = statistics.scores.candidates
    return alt.Scale(domain=list(names), range=[values[index % len(values)] for index in range(len(names))])


def _pareto_tooltip(statistics: Statistics) -> list[alt.Tooltip]:
    fields = [alt.Tooltip("candidate:N", title="Candidate")]
    for name, title in (("clean", "Clean"), ("robust", f"Robust, ε = {statistics.epsilon:g}/255")):
        fields.append(alt.Tooltip(f"{name}:Q", title=title, format=".1f"))
        fields.append(alt.Tooltip(f"{name}_low:Q", title="  interval from", format=".1f"))
        fields.append(alt.Tooltip(f"{name}_high:Q", title="  to", format=".1f"))
    fields.append(alt.Tooltip("retained:Q", title="Retained", format=".0%"))
    fields.append(alt.Tooltip("front_probability:Q", title="Probability of being on the front", format=".0%"))
    return fields


def _curve_tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("candidate:N", title="Candidate"),
        alt.Tooltip("epsilon:Q", title="Budget (1/255)", format="~g"),
        alt.Tooltip("mean:Q", title="Mean", format=".1f"),
        alt.Tooltip("low:Q", title="  interval from", format=".1f"),
        alt.Tooltip("high:Q", title="  to", format=".1f"),
        alt.Tooltip("retained:Q", title="Retained", format=".0%"),
        alt.Tooltip("n:Q", title="Scores"),
        alt.Tooltip("errors:Q", title="Errors"),
    ]


def _pareto_heading(statistics: Statistics) -> alt.TitleParams:
    return alt.TitleParams(
        "Robustness against accuracy",
        subtitle=f"Filled: on the Pareto front; hollow: dominated. {_interval_text(statistics)}",
        offset=14,
    )


def _curves_heading(statistics: Statistics) -> alt.TitleParams:
    return alt.TitleParams("Score over the attack's budget", subtitle=_interval_text(statistics), offset=16)


def _interval_text(statistics: Statistics) -> str:
    return (
        f"{statistics.resampling.level:.0%} bootstrap intervals, "
        f"{statistics.results.manifest.samples} samples per benchmark, protocol {statistics.results.manifest.protocol}"
    )


def _clean_title(statistics: Statistics) -> str:
    return f"Clean score, {_scope_text(statistics)}"


def _robust_title(statistics: Statistics) -> str:
    return f"Robust score at ε = {statistics.epsilon:g}/255, {_scope_text(statistics)}"


def _scope_text(statistics: Statistics) -> str:
    names = statistics.scores.benchmarks
    return f"mean of {len(names)} benchmarks" if len(names) > 1 else names[0]


def themed(chart: _ChartType) -> _ChartType:
    return (  # type: ignore[no-any-return,unused-ignore]
        chart.configure(font=_FONT, background="white", padding=12)
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight=500,
            titlePadding=10,
            labelColor="#334155",
            titleColor="#0f172a",
            gridColor="#e8ecf1",
            domainColor="#94a3b8",
            tickColor="#94a3b8",
            tickCount=6,
        )
        .configure_legend(labelFontSize=12.5, titleFontSize=12.5, titleColor="#0f172a", rowPadding=5)
        .configure_title(
            fontSize=17,
            color="#0f172a",
            anchor="start",
            subtitleFontSize=12.5,
            subtitleColor="#475569",
            subtitlePadding=5,
        )
    )
