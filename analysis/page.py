"""The report as one self-contained HTML page: template.html filled with the statistics, Vega and all data inline."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import pandas as pd
import vl_convert

from analysis.evidence import Flag, attack_flags
from analysis.gallery import Exhibit, magnification
from analysis.judgements import ANSWER, JudgementStatistics, shown
from analysis.scores import AVERAGE
from analysis.statistics import Statistics, answer, confidence
from analysis.tables import covers
from analysis.targeted import targeted_success
from analysis.transfer import RESAMPLED
from rllava.records import CLEAN


def render_page(statistics: Statistics, charts: Mapping[str, Any], exhibits: Sequence[Exhibit]) -> str:
    """Renders the report.

    Args:
        statistics: from ``statistics.analyse``.
        charts: Altair charts by the id of the element they go to (``pareto``, ``curves``).
        exhibits: from ``gallery.build_gallery``.

    Returns:
        An HTML page that loads nothing from the network. Text of models and data sets is escaped. The same statistics
        give the same page.
    """
    manifest = statistics.results.manifest
    flags = attack_flags(statistics.evidence)
    return (
        environment()
        .get_template("template.html")
        .render(
            manifest=manifest,
            statistics=statistics,
            answer=answer(statistics),
            confidence=confidence(statistics),
            epsilon=statistics.epsilon,
            level=statistics.resampling.level,
            vega=vega_bundle(),
            charts={name: inline_json(chart_spec(chart)) for name, chart in charts.items()},
            front=table_rows(statistics.front.sort_values("robust", ascending=False, na_position="last")),
            results=_results_table(statistics),
            comparisons=_comparisons_table(statistics),
            targeted=_targeted_table(statistics),
            others=_others_table(statistics),
            resampled=any(RESAMPLED in found for found in statistics.results.records["findings"] if found is not None),
            exhibits=exhibits,
            factor=magnification(statistics.epsilon),
            evidence=table_rows(statistics.evidence),
            flags=flags,
            doubts=_doubts(flags),
            errors=_error_counts(statistics),
            times=_times(statistics),
            paper=table_rows(statistics.paper),
            average=AVERAGE,
            covers=covers(statistics.summary),
            **judged_parts(statistics.judged),
            yes_no=yes_no_rows(statistics.yes_no),
        )
    )


def judged_parts(judged: JudgementStatistics | None) -> dict[str, Any]:
    """What ``judged.html`` shows.

    Args:
        judged: from ``judgements.analyse_judgements``.

    Returns:
        Variables of a template; ``judged`` is None where nothing was judged.
    """
    if judged is None:
        return {"judged": None}
    rates = table_rows(judged.rates[judged.rates["answer"] == ANSWER])
    return {
        "judged": judged,
        "judged_rates": [{**row, "shown": shown(row)} for row in rates],
        "judged_agreement": table_rows(judged.agreement),
    }


def yes_no_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What ``yes_no.html`` shows.

    Args:
        table: from ``yes_no.yes_no_table``.
    """
    if table.empty:
        return []
    seeds = table.groupby("candidate")["seed"].nunique()
    return [{**row, "shown": shown(row), "seeds": int(seeds[row["candidate"]])} for row in table_rows(table)]


def chart_spec(chart: Any) -> dict[str, Any]:
    """Converts a chart to Vega-Lite without the schema's URL, which nothing needs to fetch."""
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("$schema", None)
    return spec


@functools.cache
def environment() -> jinja2.Environment:
    """What the templates of all reports are filled with."""
    templates = jinja2.PackageLoader("analysis", ".")
    found = jinja2.Environment(loader=templates, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    found.filters.update(
        number=_number, percent=_percent, p_value=_p_value, duration=_duration, pretty=_pretty, fact=_fact
    )
    return found


@functools.cache
def vega_bundle() -> str:
    """Returns Vega, Vega-Lite and Vega-Embed as one script, safe to stand inside a script element."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def inline_json(value: Any) -> str:
    """Serialises to JSON that cannot end the script element around it, whatever text it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _results_table(statistics: Statistics) -> dict[str, Any]:
    """Means by benchmark and budget, a row per candidate; ``best`` marks the best of each column."""
    benchmarks = [*statistics.scores.benchmarks, *([AVERAGE] if len(statistics.scores.benchmarks) > 1 else [])]
    summary = statistics.summary
    best = summary.groupby(["benchmark", "epsilon"])["mean"].max().to_dict()
    cells = {(row["candidate"], row["benchmark"], row["epsilon"]): row for row in table_rows(summary)}
    on_front = dict(zip(statistics.front["candidate"], statistics.front["on_front"], strict=True))
    rows = []
    for candidate in statistics.scores.candidates:
        row = [
            {**cells[candidate, name, epsilon], "best": cells[candidate, name, epsilon]["mean"] == best[name, epsilon]}
            for name in benchmarks
            for epsilon in statistics.scores.epsilons
        ]
        rows.append({"candidate": candidate, "on_front": on_front[candidate], "cells": row})
    return {"benchmarks": benchmarks, "epsilons": statistics.scores.epsilons, "rows": rows}


def _doubts(flags: Sequence[Flag]) -> dict[tuple[str, float], str]:
    """What is held against each number: the texts of the flags of a candidate and budget."""
    texts: dict[tuple[str, float], list[str]] = {}
    for flag in flags:
        texts.setdefault((flag.candidate, flag.epsilon), []).append(f"{flag.check}: {flag.text}")
    return {key: "; ".join(lines) for key, lines in texts.items()}


def _comparisons_table(statistics: Statistics) -> list[dict[str, Any]]:
    """Comparisons at the headline budget and on clean images, averaged over the benchmarks."""
    table = statistics.comparisons
    if table.empty:
        return []
    rows = table[(table["benchmark"] == AVERAGE) & table["epsilon"].isin({0.0, statistics.epsilon})]
    return table_rows(rows.sort_values(["epsilon", "difference"], ascending=[False, False]))


def _targeted_table(statistics: Statistics) -> list[dict[str, Any]]:
    """Successes of a sweep whose protocol is a targeted one; in others, strings are means to an end."""
    if not statistics.results.manifest.targeted:
        return []
    return table_rows(targeted_success(statistics.results.records))


def _others_table(statistics: Statistics) -> list[dict[str, Any]]:
    """What is left under conditions that are no attacks, on average over the benchmarks."""
    if statistics.others is None:
        return []
    table = statistics.others.table
    return table_rows(table[(table["benchmark"] == AVERAGE) & (table["condition"] != CLEAN)])


def _error_counts(statistics: Statistics) -> list[dict[str, Any]]:
    """Cells with errors, or with fewer records than the sweep has samples."""
    summary = statistics.summary[statistics.summary["benchmark"] != AVERAGE].copy()
    summary["missing"] = (statistics.results.manifest.samples - summary["n"] - summary["errors"]).clip(lower=0)
    reasons = statistics.results.records.dropna(subset=["error"]).groupby(["candidate", "benchmark", "epsilon"])[
        "error"
    ]
    first = {key: str(group.iloc[0]) for key, group in reasons}
    rows = table_rows(summary[(summary["errors"] > 0) | (summary["missing"] > 0)])
    return [{**row, "reason": first.get((row["candidate"], row["benchmark"], row["epsilon"]), "")} for row in rows]


def _times(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """What each candidate took, in seconds: its LLaVA's trainings (of b@a: those of a) and its evaluations."""
    manifest = statistics.results.manifest
    training: dict[str, float] = {}
    for model in manifest.models:  # one per training seed
        training[model.name] = training.get(model.name, 0.0) + model.seconds
    times = {}
    for candidate in statistics.scores.candidates:
        own = [entry for entry in manifest.records if entry.candidate == candidate]
        known = [entry.seconds for entry in own if math.isfinite(entry.seconds)]
        times[candidate] = {
            "candidate": candidate,
            "training": training.get(candidate, training.get(candidate.rsplit("@", 1)[-1], math.nan)),
            "seconds": sum(known) if known else math.nan,
            "artifacts": len(own),
            "reused": sum(entry.reused for entry in own),
        }
    return times


def table_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as a template takes it: its rows, each by the names of its columns."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}".replace("-", "−")


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}%}"


def _p_value(value: float) -> str:
    return "–" if not math.isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def _fact(value: Any) -> str:
    """A number of any size, or what else it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return _number(value, 0) if float(value).is_integer() else f"{value:.4g}".replace("-", "−")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, default=str)
