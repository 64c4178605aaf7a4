"""The report of a sweep without attacks, e.g. of corruptions: heat map, tables and gallery on one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from analysis.conditions import ALL, NO_SEVERITY, ConditionStatistics, conditions_answer
from analysis.gallery import data_uri
from analysis.loading import SweepResults, fetch_images, record_keys
from analysis.page import chart_spec, environment, inline_json, judged_parts, table_rows, vega_bundle, yes_no_rows
from analysis.scores import AVERAGE, is_error
from rllava.records import CLEAN

SHOWN_SEVERITIES = (1, 3, 5)


@dataclass(frozen=True)
class Picture:
    """One image that is not the clean one, and what each candidate said to it; ``image`` is a data URI."""

    condition: str
    severity: int
    image: str
    answers: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class ShownSample:
    """One sample under all conditions; ``references`` are distinct."""

    benchmark: str
    sample_id: str
    prompt: str
    references: tuple[str, ...]
    clean: tuple[tuple[str, str, float], ...]
    pictures: tuple[Picture, ...]


def heat_map(statistics: ConditionStatistics) -> alt.ConcatChart:
    """Draws what is lost, a panel per candidate: conditions downwards, severities rightwards.

    Args:
        statistics: from ``conditions.analyse_conditions``.
    """
    table = statistics.table[(statistics.table["benchmark"] == AVERAGE) & (statistics.table["condition"] != CLEAN)]
    strengths = [str(severity or "–") for severity in table["severity"]]
    table = table.assign(lost=100 * table["drop"], severity=strengths)
    table = table[["candidate", "condition", "severity", "lost", "mean"]]
    order = list(dict.fromkeys(label for label, _ in statistics.columns if label != CLEAN))
    panels = []
    for name in statistics.results.manifest.candidates:
        own = table[table["candidate"] == name]
        values: Any = own.astype(object).where(own.notna(), None).to_dict("records")
        base = alt.Chart(alt.InlineData(values=values), title=name).encode(
            x=alt.X("severity:O", title="severity", sort=sorted(set(strengths)), axis=alt.Axis(labelAngle=0)),
            y=alt.Y("condition:N", sort=order, title=None),
        )
        tiles = base.mark_rect().encode(
            color=alt.Color(
                "lost:Q", title="clean score lost, %", scale=alt.Scale(domain=[0, 100], scheme="oranges", clamp=True)
            ),
            tooltip=["condition:N", "severity:O", alt.Tooltip("lost:Q", format=".1f")],
        )
        text = base.mark_text(fontSize=10).encode(
            text=alt.Text("lost:Q", format=".0f"),
            color=alt.condition("datum.lost > 60", alt.value("white"), alt.value("#0f172a")),
        )
        panels.append((tiles + text).properties(width=170, height=16 * len(order)))
    chart: alt.ConcatChart = alt.concat(*panels, columns=3).resolve_scale(color="shared").configure_view(stroke=None)
    return chart


def shown_samples(statistics: ConditionStatistics) -> list[ShownSample]:
    """The gallery of a sweep: see :func:`samples_under`.

    Args:
        statistics: from ``conditions.analyse_conditions``.
    """
    return samples_under(statistics.results, statistics.columns)


def samples_under(results: SweepResults, columns: Sequence[tuple[str, int]]) -> list[ShownSample]:
    """Of each benchmark the first sample whose images were kept.

    Args:
        columns: label and severity of what was shown; NO_SEVERITY where there is none.

    Returns:
        Samples with images of a few severities.
    """
    records = results.records[~is_error(results.records)]
    severity = records["severity"].fillna(NO_SEVERITY)
    other = records["condition"].isin([label for label, _ in columns if label != CLEAN])
    found = []
    for benchmark in results.manifest.benchmarks:
        own_rows = other & (records["benchmark"] == benchmark)
        rows = records[own_rows & severity.isin((NO_SEVERITY, *SHOWN_SEVERITIES))]
        first = records[own_rows & (severity <= 1)]["sample_id"]
        chosen = None
        for sample_id in dict.fromkeys(first):
            own = rows[rows["sample_id"] == sample_id]
            images = fetch_images(results.storage, own.drop_duplicates(["condition", "severity"]))
            if any(image.shown is not None for image in images.values()):
                chosen = (sample_id, own, images)
                break
        if chosen is not None:
            found.append(_sample(columns, records, benchmark, *chosen))
    return found


def _sample(
    columns: Sequence[tuple[str, int]],
    records: pd.DataFrame,
    benchmark: str,
    sample_id: str,
    own: pd.DataFrame,
    images: Any,
) -> ShownSample:
    clean = records[
        (records["benchmark"] == benchmark) & (records["sample_id"] == sample_id) & (records["kind"] == "clean")
    ]
    pictures = []
    for label, severity in columns:
        cell = own[(own["condition"] == label) & (own["severity"].fillna(NO_SEVERITY) == severity)]
        shown = [images[key].shown for key in record_keys(cell) if key in images]
        image = data_uri(shown[0]) if shown else None
        if image is not None:
            pictures.append(Picture(label, severity, image, _answers(cell)))
    first = own.iloc[0]
    references = tuple(dict.fromkeys(first["references"]))
    return ShownSample(benchmark, sample_id, first["prompt"], references, _answers(clean), tuple(pictures))


def _answers(rows: pd.DataFrame) -> tuple[tuple[str, str, float], ...]:
    return tuple(
        (str(name), str(said), float(score))
        for name, said, score in zip(rows["candidate"], rows["prediction"], rows["score"], strict=True)
    )


def render_conditions(statistics: ConditionStatistics, chart: alt.ConcatChart, samples: list[ShownSample]) -> str:
    """Renders the report.

    Args:
        statistics: from ``conditions.analyse_conditions``.
        chart: from :func:`heat_map`.
        samples: from :func:`shown_samples`.

    Returns:
        An HTML page that loads nothing from the network; text of models and data sets is escaped.
    """
    comparisons = statistics.comparisons
    if not comparisons.empty:
        comparisons = comparisons[comparisons["benchmark"] == AVERAGE]
    errors = statistics.table[(statistics.table["benchmark"] != AVERAGE) & (statistics.table["errors"] > 0)]
    return (
        environment()
        .get_template("conditions.html")
        .render(
            manifest=statistics.results.manifest,
            statistics=statistics,
            answer=conditions_answer(statistics),
            level=statistics.resampling.level,
            vega=vega_bundle(),
            chart=inline_json(chart_spec(chart)),
            means=table_rows(statistics.means[statistics.means["benchmark"] == AVERAGE]),
            table=table_rows(statistics.table[statistics.table["condition"] != CLEAN]),
            clean=table_rows(statistics.table[statistics.table["condition"] == CLEAN]),
            comparisons=table_rows(comparisons),
            errors=table_rows(errors),
            samples=samples,
            everything=ALL,
            **judged_parts(statistics.judged),
            yes_no=yes_no_rows(statistics.yes_no),
        )
    )
