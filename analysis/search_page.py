"""The report of a search on one page: front, course, attainment, importances, every trial."""

import io
from collections.abc import Mapping
from typing import Any, cast

import altair as alt
import pandas as pd

from analysis.page import chart_spec, environment, inline_json, table_rows, vega_bundle
from analysis.plots import PALETTE, themed
from analysis.search import SearchStatistics, format_search
from analysis.tables import table_csv
from rllava.filesystem import open_filesystem, write_whole

_WIDTH, _HEIGHT = 680, 400
_PIXELS_PER_INCH = 220


def front_chart(statistics: SearchStatistics) -> alt.LayerChart:
    """Draws the first two objectives of every configuration at the largest rung, with intervals, and what attains them.

    Args:
        statistics: from ``search.analyse_search``.

    Returns:
        The chart; filled points are on the front, diamonds are the front's scores on fresh samples.
    """
    first, second = statistics.results.columns[:2]
    table = statistics.table.rename(columns=_plain(first.name, "x") | _plain(second.name, "y"))
    x = alt.X("x:Q", title=first.name, scale=alt.Scale(zero=False))
    y = alt.Y("y:Q", title=second.name, scale=alt.Scale(zero=False))
    base = alt.Chart(_inline(table)).encode(color=alt.value(PALETTE[0]))
    tooltip = [alt.Tooltip("candidate:N"), alt.Tooltip("x:Q", title=first.name, format=".4g"),
               alt.Tooltip("y:Q", title=second.name, format=".4g"),
               alt.Tooltip("front_probability:Q", title="probability of the front", format=".0%")]  # fmt: skip
    shown = alt.condition("datum.on_front", alt.value(0.7), alt.value(0.15))
    layers = [
        base.mark_rule().encode(x=alt.X("x_low:Q", title=first.name), x2="x_high:Q", y=y, opacity=shown),
        base.mark_rule().encode(y=alt.Y("y_low:Q", title=second.name), y2="y_high:Q", x=x, opacity=shown),
        base.mark_point(size=90, strokeWidth=2).encode(
            x=x, y=y, tooltip=tooltip, fill=alt.condition("datum.on_front", alt.value(PALETTE[0]), alt.value("white"))
        ),
    ]
    if len(statistics.fresh):
        again = statistics.fresh.rename(columns=_plain(first.name, "x") | _plain(second.name, "y"))
        layers.append(
            alt.Chart(_inline(again))
            .mark_point(size=90, shape="diamond", color=PALETTE[1], strokeWidth=2)
            .encode(x=x, y=y, tooltip=[*tooltip, alt.Tooltip("seed:N", title="training seed")])
        )
    if len(statistics.attainment):
        layers.append(
            alt.Chart(_inline(statistics.attainment))
            .mark_line(interpolate="step-before", strokeDash=[4, 3], color="#475569", opacity=0.7)
            .encode(x=x, y=y, detail="searches:N", tooltip=[alt.Tooltip("share:Q", title="attained by", format=".0%")])
        )
    title = "Every configuration at the largest rung"
    chart = alt.layer(*layers, width=_WIDTH, height=_HEIGHT, title=title)
    return themed(cast(alt.LayerChart, chart))  # no row or column: no facets


def course_chart(statistics: SearchStatistics) -> alt.LayerChart:
    """Draws the hypervolume of what has finished the last rung over the hours spent, a line per seed."""
    lines = (
        alt.Chart(_inline(statistics.course))
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=alt.X("hours:Q", title="worker-hours spent"),
            y=alt.Y("hypervolume:Q", title="hypervolume"),
            color=alt.Color("seed:N", title="sampler's seed", scale=alt.Scale(range=list(PALETTE))),
        )
    )
    title = "Hypervolume of what finished the last rung"
    return themed(cast(alt.LayerChart, alt.layer(lines, width=_WIDTH, height=260, title=title)))


def _plain(name: str, axis: str) -> dict[str, str]:
    """Names without a meaning to Vega: ``robust@8`` has one, and so do dots and brackets."""
    return {name: axis, f"{name}_low": f"{axis}_low", f"{name}_high": f"{axis}_high"}


def _inline(table: pd.DataFrame) -> alt.InlineData:
    values: Any = table.astype(object).where(table.notna(), None).to_dict("records")
    return alt.InlineData(values=[{str(key): value for key, value in row.items()} for row in values])


def render_search(statistics: SearchStatistics, charts: Mapping[str, alt.LayerChart]) -> str:
    """Renders the report: an HTML page that loads nothing from the network."""
    results = statistics.results
    return (
        environment()
        .get_template("search.html")
        .render(
            run=results.run,
            columns=[column.name for column in results.columns],
            told=format_search(statistics),
            level=statistics.resampling.level,
            table=table_rows(statistics.table.sort_values("front_probability", ascending=False)),
            fresh=table_rows(statistics.fresh),
            importances=table_rows(statistics.importances),
            trials=table_rows(statistics.trials),
            searches=1 + len(results.others),
            reference=[float(value) for value in statistics.reference],
            vega=vega_bundle(),
            charts={name: inline_json(chart_spec(chart)) for name, chart in charts.items()},
        )
    )


def write_search(statistics: SearchStatistics) -> str:
    """Writes the report of a search into the storage it comes from.

    Returns:
        Path or URL of its page.
    """
    results = statistics.results
    charts = {"front": front_chart(statistics), "course": course_chart(statistics)}
    files = {
        "front.csv": table_csv(statistics.table),
        "fresh.csv": table_csv(statistics.fresh),
        "course.csv": table_csv(statistics.course),
        "attainment.csv": table_csv(statistics.attainment),
        "importances.csv": table_csv(statistics.importances),
        "trials.csv": table_csv(statistics.trials),
        "front.png": _png(charts["front"]),
        "course.png": _png(charts["course"]),
        "index.html": render_search(statistics, charts).encode(),
    }
    filesystem, root = open_filesystem(results.storage.rstrip("/"))
    for name, data in files.items():
        write_whole(filesystem, f"{root}/reports/{results.run['name']}/{name}", data)
    return f"{results.storage.rstrip('/')}/reports/{results.run['name']}/index.html"


def _png(chart: alt.LayerChart) -> bytes:
    buffer = io.BytesIO()
    chart.save(buffer, format="png", ppi=_PIXELS_PER_INCH)
    return buffer.getvalue()
