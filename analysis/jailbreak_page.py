"""The report of a sweep of jailbreaks: chart, tables, images and some answers on one page.

What models say to forbidden requests may be harmful: every such text is escaped and folded away.
"""

from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from analysis.gallery import data_uri
from analysis.jailbreak import ALL_SCENARIOS, AT_STEP, CUMULATIVE, POOLED, VISUALADV, JailbreakStatistics
from analysis.jailbreak_counts import CELL, CONDITION
from analysis.jailbreak_text import (
    NO_WIDTH,
    ONE_IMAGE,
    WITHOUT_JUDGES,
    answered,
    hardest_front,
    images_line,
    jailbreak_answer,
    label_of,
)
from analysis.judgements import ANSWER, joined
from analysis.loading import fetch_images, record_keys
from analysis.manifest import UNCONSTRAINED, UNIVERSAL
from analysis.page import chart_spec, environment, inline_json, judged_parts, table_rows, vega_bundle
from analysis.plots import PALETTE, SHAPES, themed

SHOWN_SAMPLES = 2
"""Prompts of a benchmark whose answers are shown."""

MEASURES = ("steps", "loss_clean", "loss_best", "linf", "zero_gradient_share", "rating")
"""Facts of an image that have a column."""


@dataclass(frozen=True)
class Answer:
    """One answer, with what each judge says of it: ``flagged``, ``passed`` or ``undecided``."""

    candidate: str
    prompt: str
    text: str
    answered: bool | None
    verdicts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Exhibit:
    """Some answers to a benchmark under a condition; ``images`` are data URIs by candidate."""

    benchmark: str
    shown: str
    images: tuple[tuple[str, str], ...]
    answers: tuple[Answer, ...]


def rate_chart(statistics: JailbreakStatistics) -> alt.ConcatChart:
    """Draws shares over the budget of the image, a panel per benchmark of forbidden requests and recipe.

    On the left of each panel stands what is shown without any attack. The share is what the first judge of harm flags;
    without one, what is answered.

    Args:
        statistics: from ``jailbreak.analyse_jailbreak``.
    """
    manifest = statistics.results.manifest
    if statistics.harm:
        table = statistics.rates[statistics.rates["judge"] == statistics.harm[0]]
        title, what = f"Answers that {statistics.harm[0]} flags, over the budget of the image", "flagged, %"
    else:
        table = answered(statistics.refusals[~statistics.refusals["allowed"]])
        title, what = "Forbidden requests that are answered, over the budget of the image", "answered, %"
    made = list(dict.fromkeys(entry.label for entry in manifest.conditions if entry.kind == UNIVERSAL))
    panels = []
    for benchmark in [name for name in manifest.benchmarks if name not in manifest.allowed]:
        for recipe in made or [""]:
            own = table[
                (table["benchmark"] == benchmark) & ((table["kind"] != UNIVERSAL) | table["condition"].eq(recipe))
            ]
            panels.append(_panel(statistics, own, f"{benchmark}, {recipe}".rstrip(", "), what))
    chart: alt.ConcatChart = alt.concat(*panels, columns=2, spacing=28).resolve_scale(color="shared", shape="shared")
    return themed(chart.properties(title=alt.TitleParams(title, subtitle=_covers(statistics), offset=16)))


def _panel(statistics: JailbreakStatistics, own: pd.DataFrame, title: str, what: str) -> alt.LayerChart:
    own = own.assign(where=[_place(row) for row in own.to_dict("records")])
    own = own.assign(**{name: 100 * own[name] for name in ("rate", "low", "high")})
    order = list(dict.fromkeys(own["where"]))
    kept = own[["candidate", "where", "kind", "rate", "low", "high", "n"]].astype(object)
    values: Any = kept.where(kept.notna(), None).to_dict("records")
    names = list(statistics.results.manifest.candidates)

    legend = alt.Legend(orient="bottom", columns=4, symbolLimit=0, labelLimit=260)
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("where:O", sort=order, title="shown; budget ε (L∞, 1/255)", axis=alt.Axis(labelAngle=-35, grid=False)),
        xOffset=alt.XOffset("candidate:N", sort=names),
        color=alt.Color("candidate:N", title="Candidate", scale=_scale(names, PALETTE), legend=legend),
    )
    y = alt.Y("rate:Q", title=what, scale=alt.Scale(domain=[0, 100]))
    line = base.transform_filter(f"datum.kind == '{UNIVERSAL}'").mark_line(strokeWidth=2, opacity=0.5).encode(y=y)
    rule = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", title=what), y2="high:Q")
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        y=y,
        shape=alt.Shape("candidate:N", title="Candidate", scale=_scale(names, SHAPES), legend=legend),
        tooltip=["candidate:N", "where:O", alt.Tooltip("rate:Q", format=".1f"), "n:Q"],
    )
    size = {"width": 400, "height": 240}
    return alt.LayerChart(layer=[rule, line, points]).properties(
        **size, title=alt.TitleParams(title, fontSize=13, anchor="start")
    )


def front_chart(statistics: JailbreakStatistics) -> alt.ConcatChart | None:
    """Draws what the first judge of harm flags over the clean score, a panel per benchmark of forbidden requests.

    Args:
        statistics: from ``jailbreak.analyse_jailbreak``.

    Returns:
        The chart, of the hardest condition: the last recipe's images of the largest budget. None without clean scores.
    """
    own = hardest_front(statistics)
    if own.empty:
        return None
    panels = [_front_panel(statistics, rows, str(benchmark)) for benchmark, rows in own.groupby("benchmark")]
    title = alt.TitleParams(
        f"Clean score against what {statistics.harm[0]} flags under {label_of(own.iloc[0])}",
        subtitle=f"Filled: on the Pareto front; hollow: dominated. {_covers(statistics)}", offset=16,
    )  # fmt: skip
    chart: alt.ConcatChart = alt.concat(*panels, columns=2, spacing=28)
    return themed(chart.properties(title=title))


def _front_panel(statistics: JailbreakStatistics, own: pd.DataFrame, title: str) -> alt.LayerChart:
    own = own.assign(**{name: 100 * own[name] for name in ("rate", "low", "high")})
    columns = ["candidate", "clean", "clean_low", "clean_high", "rate", "low", "high", "on_front", "front_probability"]
    kept = own[columns].astype(object)
    values: Any = kept.where(kept.notna(), None).to_dict("records")
    names = list(statistics.results.manifest.candidates)
    colour = alt.Color("candidate:N", title="Candidate", scale=_scale(names, PALETTE))
    x = alt.X("clean:Q", title="clean score, mean of benchmarks", scale=alt.Scale(zero=False))
    y = alt.Y("rate:Q", title="flagged, %", scale=alt.Scale(domain=[100, 0]))
    base = alt.Chart(alt.InlineData(values=values)).encode(color=colour)
    bars = base.mark_rule(strokeWidth=1.4, opacity=0.55)
    points = base.mark_point(size=110, strokeWidth=2, opacity=1).encode(
        x,
        y,
        shape=alt.Shape("candidate:N", title="Candidate", scale=_scale(names, SHAPES)),
        fill=alt.when("datum.on_front").then(colour).otherwise(alt.value("white")),
        tooltip=[
            "candidate:N", alt.Tooltip("clean:Q", format=".1f"), alt.Tooltip("rate:Q", format=".1f"),
            alt.Tooltip("front_probability:Q", title="Probability of being on the front", format=".0%"),
        ],
    )  # fmt: skip
    layers = [
        bars.encode(alt.X("clean_low:Q", title="clean score, mean of benchmarks"), y, x2="clean_high:Q"),
        bars.encode(x, alt.Y("low:Q", title="flagged, %", scale=alt.Scale(domain=[100, 0])), y2="high:Q"),
        points,
    ]
    size = {"width": 400, "height": 260}
    return alt.LayerChart(layer=layers).properties(**size, title=alt.TitleParams(title, fontSize=13, anchor="start"))


def _scale(names: list[str], of: Any) -> alt.Scale:
    return alt.Scale(domain=names, range=[of[index % len(of)] for index in range(len(names))])


def _place(row: Any) -> str:
    """Where a condition stands on the axis."""
    if row["kind"] != UNIVERSAL:
        return str(row["condition"])
    return "unconstrained" if row["epsilon"] == UNCONSTRAINED else f"{row['epsilon']:g}"


def _covers(statistics: JailbreakStatistics) -> str:
    return f"{statistics.resampling.level:.0%} bootstrap intervals over images, prompts and draws"


def gallery(statistics: JailbreakStatistics) -> list[Exhibit]:
    """Some answers to each benchmark under each condition: those to its first prompts, to the first image and draw.

    Args:
        statistics: from ``jailbreak.analyse_jailbreak``.
    """
    results = statistics.results
    records = results.records
    found = []
    chosen = []
    for benchmark in results.manifest.benchmarks:
        own = records[records["benchmark"] == benchmark]
        first = list(dict.fromkeys(own["sample_id"]))[:SHOWN_SAMPLES]
        chosen.append(_first_answers(own[own["sample_id"].isin(first)]))
    rows = pd.concat(chosen)
    verdicts = _verdicts(statistics, rows)
    images = fetch_images(results.storage, rows[rows["kind"] != "clean"])
    cell: Any
    for cell, own in rows.groupby(["benchmark", *CONDITION], sort=False, dropna=False):
        benchmark, *where = cell
        pictures: dict[str, str] = {}
        answers = []
        for key, row in zip(record_keys(own), own.to_dict("records"), strict=True):
            kept = images.get(key)
            uri = None if kept is None else data_uri(kept.shown)
            if uri is not None:
                pictures.setdefault(row["candidate"], uri)
            answers.append(
                Answer(
                    row["candidate"],
                    row["prompt"] if pd.isna(row["question"]) else row["question"],
                    "" if pd.isna(row["prediction"]) else row["prediction"],
                    None if pd.isna(row["score"]) else row["score"] > 0,
                    verdicts.get(key, ()),
                )
            )
        label = label_of(dict(zip(CONDITION, where, strict=True)))
        found.append(Exhibit(str(benchmark), label, tuple(pictures.items()), tuple(answers)))
    return found


def _first_answers(rows: pd.DataFrame) -> pd.DataFrame:
    """One answer of each candidate to each prompt under each condition, by the first restart and draw."""
    ranked = rows.sort_values(["seed", "restart", "draw"], kind="stable")
    kept = ranked.drop_duplicates([*CELL, "sample_id"])
    return rows.loc[sorted(kept.index)]


def _verdicts(statistics: JailbreakStatistics, rows: pd.DataFrame) -> dict[Any, tuple[tuple[str, str], ...]]:
    if not statistics.judges:
        return {}
    judged = joined(statistics.results)
    few = judged[judged["evaluation"].isin(rows["evaluation"]) & judged["sample_id"].isin(rows["sample_id"])]
    few = few[few["answer"] == ANSWER]
    found: dict[Any, tuple[tuple[str, str], ...]] = {}
    for key, judge, flagged in zip(record_keys(few), few["judge"], few["flagged"], strict=True):
        said = "undecided" if pd.isna(flagged) else "flagged" if flagged else "passed"
        found[key] = (*found.get(key, ()), (judge, said))
    return found


def render_jailbreak(statistics: JailbreakStatistics, chart: alt.ConcatChart, exhibits: list[Exhibit]) -> str:
    """Renders the report.

    Args:
        statistics: from ``jailbreak.analyse_jailbreak``.
        chart: from :func:`rate_chart`.
        exhibits: from :func:`gallery`.

    Returns:
        An HTML page that loads nothing from the network; text of models and data sets is escaped.
    """
    manifest, hades = statistics.results.manifest, statistics.hades
    refusals = statistics.refusals
    front = front_chart(statistics)
    return (
        environment()
        .get_template("jailbreak.html")
        .render(
            manifest=manifest,
            statistics=statistics,
            answer=jailbreak_answer(statistics),
            level=statistics.resampling.level,
            vega=vega_bundle(),
            chart=inline_json(chart_spec(chart)),
            forbidden=[name for name in manifest.benchmarks if name not in manifest.allowed],
            rates=_rows(statistics.rates),
            over=_rows(refusals[refusals["allowed"]]),
            said=_rows(refusals[~refusals["allowed"]]),
            scenarios=_rows(hades[(hades["scenario"] != ALL_SCENARIOS) | (hades["variant"] == POOLED)]),
            steps=_rows(hades[(hades["scenario"] == ALL_SCENARIOS) & hades["variant"].isin((AT_STEP, CUMULATIVE))]),
            comparisons=_rows(statistics.comparisons),
            front=_rows(statistics.front),
            front_chart=None if front is None else inline_json(chart_spec(front)),
            clean_benchmarks=sorted(set(statistics.beside.clean["benchmark"])),
            without_clean=[name for name in manifest.candidates if name not in set(statistics.front["candidate"])],
            strings=table_rows(statistics.strings),
            protocols=sorted(set(statistics.beside.targeted["condition"])),
            published=_rows(statistics.published),
            visualadv=VISUALADV,
            cost=statistics.cost.to_dict("records"),
            images=_images(statistics),
            measures=MEASURES,
            images_line=images_line(manifest),
            one_image=ONE_IMAGE if statistics.lone_images else "",
            no_width=NO_WIDTH,
            without_judges="" if statistics.judges else WITHOUT_JUDGES,
            exhibits=exhibits,
            **judged_parts(statistics.judged),
        )
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{**row, "shown": label_of(row)} for row in table_rows(table)]


def _images(statistics: JailbreakStatistics) -> list[dict[str, Any]]:
    """The images of a sweep with their facts; ``others`` are those that have no column."""
    rows = []
    for entry in statistics.results.manifest.images:
        where = {"condition": entry.condition, "kind": UNIVERSAL, "epsilon": entry.epsilon}
        known = {name: entry.facts.get(name) for name in MEASURES}
        others = {name: value for name, value in entry.facts.items() if name not in (*MEASURES, "findings")}
        rows.append({
            "candidate": entry.candidate, "shown": label_of(where), "restart": entry.restart,
            "seconds": entry.seconds, "measures": known, "findings": list(entry.facts.get("findings") or ()),
            "others": others,
        })  # fmt: skip
    return rows
