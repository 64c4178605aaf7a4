"""Writes a sweep's report: an HTML page, figures and CSV tables under ``<storage>/reports/<sweep>/``.

Run as ``python -m analysis.report --storage results --sweep encoder_ablation``.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from analysis.bootstrap import DEFAULT_RESAMPLING, Resampling
from analysis.budget_page import render_budgets, survival_chart
from analysis.budgets import BudgetStatistics, analyse_budgets, budgets_answer, format_budgets, is_about_budgets
from analysis.card import CardStatistics, analyse_card, card_answer, is_about_cards
from analysis.card_page import card_map, format_card, front_chart, render_card
from analysis.card_schema import CARD_SCHEMA
from analysis.condition_page import heat_map, render_conditions, shown_samples
from analysis.conditions import (
    ConditionStatistics,
    analyse_conditions,
    conditions_answer,
    format_conditions,
    is_about_conditions,
    others,
)
from analysis.gallery import build_gallery
from analysis.jailbreak import JailbreakStatistics, analyse_jailbreak, is_about_jailbreaks
from analysis.jailbreak_page import gallery, rate_chart, render_jailbreak
from analysis.jailbreak_text import format_jailbreak, jailbreak_answer
from analysis.judgements import JudgementStatistics, analyse_judgements, format_judgements
from analysis.loading import SweepResults, load_sweep
from analysis.page import render_page
from analysis.plots import curves_chart, pareto_chart
from analysis.scores import AVERAGE
from analysis.statistics import Statistics, analyse, answer
from analysis.tables import format_table, summary_csv, table_csv
from analysis.transfer import format_transfer, shows_images_of_others, transfer_chart, transfer_matrix
from analysis.yes_no import yes_no_benchmarks
from rllava.errors import UserError
from rllava.filesystem import open_filesystem, write_whole

Chart = alt.LayerChart | alt.ConcatChart

_PIXELS_PER_INCH = 220  # of the PNGs; a figure of 900 points is then about 2750 pixels wide


@dataclass(frozen=True)
class ReportPaths:
    """Where a report's files are: paths or URLs, in the form in which the storage was named."""

    index: str
    summary: str
    comparisons: str
    evidence: str
    pareto: str
    curves: str
    pareto_svg: str
    curves_svg: str


@dataclass(frozen=True)
class ReportOptions:
    """Writes the report of a finished sweep.

    Attributes:
        storage: path or s3:// URL of the results folder.
        sweep: name of the sweep.
        epsilon: budget of the headline numbers, in 1/255 (default: 8 where it was run, else the largest).
        baseline: candidate to compare with (default: the best on average at that budget; of jailbreaks the first).
        draws: bootstrap draws, and sign flips of the paired tests.
        seed: seed of the resampling.
    """

    storage: str
    sweep: str = "encoder_ablation"
    epsilon: float | None = None
    baseline: str | None = None
    draws: int = 10_000
    seed: int = 0


def write_report(
    storage: str,
    sweep: str = "encoder_ablation",
    epsilon: float | None = None,
    baseline: str | None = None,
    resampling: Resampling = DEFAULT_RESAMPLING,
) -> ReportPaths:
    """Analyses a sweep and writes its report. Writing it again gives the same files, byte for byte.

    Args:
        storage: path or ``s3://`` URL of the results folder.
        epsilon: budget of the headline numbers, in 1/255; by default 8 where it was run, else the largest.
        baseline: candidate to compare with; by default the best on average at that budget.
        resampling: draws, seed and level of the intervals and tests.

    Returns:
        The paths of the files.

    Raises:
        UserError: if the results are missing or damaged, or the budget or baseline is unknown.
    """
    return write_statistics(analyse(load_sweep(storage, sweep), epsilon, baseline, resampling))


def write_statistics(statistics: Statistics) -> ReportPaths:
    """Writes the report of statistics that are already computed, into the storage they come from."""
    storage = statistics.results.storage.rstrip("/")
    folder = f"reports/{statistics.results.manifest.sweep}"
    exhibits = build_gallery(statistics.results, statistics.scores, statistics.epsilon)
    charts: dict[str, Chart] = {"pareto": pareto_chart(statistics), "curves": curves_chart(statistics)}
    matrix = None
    if shows_images_of_others(statistics.results.manifest):
        matrix = transfer_matrix(statistics.results, statistics.resampling)
        charts["transfer"] = transfer_chart(matrix, statistics.results.manifest.candidates)
    files = {
        "summary.csv": summary_csv(statistics.summary),
        "comparisons.csv": table_csv(statistics.comparisons),
        "evidence.csv": table_csv(statistics.evidence),
        **{f"{name}.png": render_png(chart) for name, chart in charts.items()},
        **{f"{name}.svg": render_svg(chart) for name, chart in charts.items()},
        "index.html": render_page(statistics, charts, exhibits).encode(),
        **_judged_files(statistics.judged),
        **_yes_no_files(statistics.yes_no),
    }
    if not statistics.paper.empty:
        files["paper.csv"] = table_csv(statistics.paper)
    if statistics.others is not None:
        files["conditions.csv"] = table_csv(_by_benchmark(statistics.others.table))
    if matrix is not None:
        files["transfer.csv"] = table_csv(matrix)
    _write(statistics.results, files)
    return _paths(f"{storage}/{folder}")


def write_conditions(statistics: ConditionStatistics) -> str:
    """Writes the report of a sweep without attacks, e.g. of corruptions, into the storage it comes from.

    Args:
        statistics: from ``conditions.analyse_conditions``.

    Returns:
        Path or URL of the page.
    """
    chart = heat_map(statistics)
    files = {
        "conditions.csv": table_csv(_by_benchmark(statistics.table)),
        "means.csv": table_csv(statistics.means),
        "comparisons.csv": table_csv(statistics.comparisons),
        "heatmap.png": render_png(chart),
        "heatmap.svg": render_svg(chart),
        "index.html": render_conditions(statistics, chart, shown_samples(statistics)).encode(),
        **_judged_files(statistics.judged),
        **_yes_no_files(statistics.yes_no),
    }
    assert set(files) >= set(_CONDITION_FILES)
    return _write(statistics.results, files)


def write_card(statistics: CardStatistics) -> str:
    """Writes a robustness card, into the storage it comes from.

    Args:
        statistics: from ``card.analyse_card``.

    Returns:
        Path or URL of the page.
    """
    chart = card_map(statistics)
    files = {
        "card.csv": table_csv(statistics.table),
        "card.parquet": _parquet(statistics.table),
        "correlations.csv": table_csv(statistics.correlations),
        "cost.csv": table_csv(statistics.cost),
        "paper.csv": table_csv(statistics.paper),
        "heatmap.png": render_png(chart),
        "heatmap.svg": render_svg(chart),
        "index.html": render_card(statistics, chart, front_chart(statistics)).encode(),
        **_judged_files(statistics.judged),
    }
    assert set(files) >= set(_CARD_FILES)
    return _write(statistics.results, files)


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(table, CARD_SCHEMA, preserve_index=False), buffer)
    return buffer.getvalue()


def write_jailbreak(statistics: JailbreakStatistics) -> str:
    """Writes the report of a sweep of jailbreaks, into the storage it comes from.

    Args:
        statistics: from ``jailbreak.analyse_jailbreak``.

    Returns:
        Path or URL of the page.
    """
    chart = rate_chart(statistics)
    files = {
        "rates.csv": table_csv(statistics.rates),
        "refusals.csv": table_csv(statistics.refusals),
        "comparisons.csv": table_csv(statistics.comparisons),
        "published.csv": table_csv(statistics.published),
        "front.csv": table_csv(statistics.front),
        "strings.csv": table_csv(statistics.strings),
        "cost.csv": table_csv(statistics.cost),
        "rates.png": render_png(chart),
        "rates.svg": render_svg(chart),
        "index.html": render_jailbreak(statistics, chart, gallery(statistics)).encode(),
        **_judged_files(statistics.judged),
    }
    if not statistics.hades.empty:
        files["hades.csv"] = table_csv(statistics.hades)
    assert set(files) >= set(_JAILBREAK_FILES)
    return _write(statistics.results, files)


def write_budgets(statistics: BudgetStatistics) -> str:
    """Writes the report of a sweep of smallest budgets, into the storage it comes from.

    Args:
        statistics: from ``budgets.analyse_budgets``.

    Returns:
        Path or URL of the page.
    """
    chart = survival_chart(statistics)
    files = {
        "curve.csv": table_csv(statistics.curve),
        "smallest.csv": table_csv(statistics.table),
        "comparisons.csv": table_csv(statistics.comparisons),
        "curve.png": render_png(chart),
        "curve.svg": render_svg(chart),
        "index.html": render_budgets(statistics, chart).encode(),
        **_judged_files(statistics.judged),
    }
    assert set(files) >= set(_BUDGET_FILES)
    return _write(statistics.results, files)


def _by_benchmark(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["benchmark"] != AVERAGE]


def _judged_files(judged: JudgementStatistics | None) -> dict[str, bytes]:
    if judged is None:
        return {}
    return {"judgements.csv": table_csv(judged.rates), "agreement.csv": table_csv(judged.agreement)}


def _yes_no_files(table: pd.DataFrame) -> dict[str, bytes]:
    return {} if table.empty else {_YES_NO_FILE: table_csv(table)}


def _write(results: SweepResults, files: Mapping[str, bytes]) -> str:
    """Writes the files of a report.

    Returns:
        Path or URL of its page.
    """
    folder = f"reports/{results.manifest.sweep}"
    filesystem, root = open_filesystem(results.storage.rstrip("/"))
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(f"{root}/{folder}/{_MADE_FROM}")  # whoever wants it said of these files writes it again
    for name, data in files.items():
        write_whole(filesystem, f"{root}/{folder}/{name}", data)
    return f"{results.storage.rstrip('/')}/{folder}/index.html"


def refresh_report(storage: str, sweep: str) -> tuple[str, str]:
    """As :func:`write_report`, unless the report that is there was made from the same records by the same code.

    Args:
        storage: path or ``s3://`` URL of the results folder.

    Returns:
        Path or URL of its page, and its table for a terminal.

    Raises:
        UserError: if the results are missing or damaged.
    """
    results = load_sweep(storage, sweep, gather=True)
    filesystem, root = open_filesystem(storage)
    folder = f"{root}/reports/{sweep}"
    there = {str(path).rsplit("/", 1)[-1] for path in filesystem.ls(folder, detail=False)}
    report = _report_of(results)
    made_from = _made_from(results, report.beside)
    names = {*report.files, *(_JUDGED_FILES if results.manifest.judgements else ())}
    if report.rates_yes_no and yes_no_benchmarks(results.records):
        names.add(_YES_NO_FILE)
    fresh = {*names, _MADE_FROM} <= there and filesystem.cat_file(f"{folder}/{_MADE_FROM}") == made_from
    table, judged = report.told(fresh)
    if judged is not None:
        table = f"{table}\n\n{format_judgements(judged)}"
    if not fresh:
        write_whole(filesystem, f"{folder}/{_MADE_FROM}", made_from)
    return f"{storage.rstrip('/')}/reports/{sweep}/index.html", table


_Told = tuple[str, JudgementStatistics | None]


@dataclass(frozen=True)
class _Report:
    """A sweep's report.

    Attributes:
        files: its names, those about judges left out.
        told: writes it unless it is fresh; gives its table for a terminal, and what judges say.
        beside: signature of what it shows of other sweeps.
        rates_yes_no: whether it has a table of yes/no benchmarks.
    """

    files: tuple[str, ...]
    told: Callable[[bool], _Told]
    beside: str = ""
    rates_yes_no: bool = False


def _report_of(results: SweepResults) -> _Report:
    manifest = results.manifest
    if is_about_cards(manifest):
        return _about_card(results)
    if is_about_jailbreaks(manifest):
        return _about_jailbreaks(results)
    if is_about_budgets(manifest):
        return _Report(_BUDGET_FILES, lambda fresh: _told_of_budgets(results, fresh))
    if is_about_conditions(manifest):
        return _Report(_CONDITION_FILES, lambda fresh: _told_of_conditions(results, fresh), rates_yes_no=True)
    return _Report(_FILES, lambda fresh: _told_of_attacks(results, fresh), rates_yes_no=True)


def _about_jailbreaks(results: SweepResults) -> _Report:
    statistics = analyse_jailbreak(results)

    def told(fresh: bool) -> _Told:
        if not fresh:
            write_jailbreak(statistics)
        return format_jailbreak(statistics), statistics.judged

    return _Report(_JAILBREAK_FILES, told, statistics.beside.signature)


def _about_card(results: SweepResults) -> _Report:
    statistics = analyse_card(results)

    def told(fresh: bool) -> _Told:
        if not fresh:
            write_card(statistics)
        return format_card(statistics), statistics.judged

    return _Report(_CARD_FILES, told, statistics.beside)


def _told_of_budgets(results: SweepResults, fresh: bool) -> _Told:
    statistics = analyse_budgets(results)
    if not fresh:
        write_budgets(statistics)
    return _with_others(format_budgets(statistics), results), statistics.judged


def _told_of_conditions(results: SweepResults, fresh: bool) -> _Told:
    statistics = analyse_conditions(results)
    if not fresh:
        write_conditions(statistics)
    return format_conditions(statistics), statistics.judged


def _told_of_attacks(results: SweepResults, fresh: bool) -> _Told:
    table = _with_others(format_table(results), results)
    if fresh:
        return table, analyse_judgements(results)
    statistics = analyse(results)
    write_statistics(statistics)
    return table, statistics.judged


def _with_others(table: str, results: SweepResults) -> str:
    """A table with those of the sweep's other conditions below it, if it has such."""
    parts = [table]
    if others(results.manifest):
        parts.append(format_conditions(analyse_conditions(results)))
    if shows_images_of_others(results.manifest):
        parts.append(format_transfer(transfer_matrix(results), results.manifest.candidates))
    return "\n\n".join(parts)


_JAILBREAK_FILES = (
    "index.html", "rates.csv", "refusals.csv", "comparisons.csv", "published.csv", "front.csv", "strings.csv",
    "cost.csv", "rates.png", "rates.svg",
)  # fmt: skip
"""Of a report of a sweep of jailbreaks."""

_CARD_FILES = (
    "index.html", "card.csv", "card.parquet", "correlations.csv", "cost.csv", "paper.csv", "heatmap.png", "heatmap.svg",
)  # fmt: skip
"""Of a robustness card."""

_BUDGET_FILES = ("index.html", "curve.csv", "smallest.csv", "comparisons.csv", "curve.png", "curve.svg")
"""Of a report of a sweep of smallest budgets."""

_CONDITION_FILES = (
    "index.html", "conditions.csv", "means.csv", "comparisons.csv", "heatmap.png", "heatmap.svg",
)  # fmt: skip
"""Of a report of a sweep without attacks."""


_FILES = (
    "index.html", "summary.csv", "comparisons.csv", "evidence.csv", "pareto.png", "curves.png", "pareto.svg",
    "curves.svg",
)  # fmt: skip
"""Of a report, in the order of :class:`ReportPaths`."""

_JUDGED_FILES = ("judgements.csv", "agreement.csv")
"""Of a report of a sweep with judges, beside the others."""

_YES_NO_FILE = "yes_no.csv"
"""Of a report of a sweep with benchmarks of yes/no questions, beside the others."""

_MADE_FROM = "made-from.json"
"""File of a report that says what it was made from."""


def _paths(folder: str) -> ReportPaths:
    return ReportPaths(*(f"{folder}/{name}" for name in _FILES))


def _made_from(results: SweepResults, beside: str) -> bytes:
    """Everything that decides a report but for what changes with every start of a finished sweep.

    Args:
        beside: what it shows of other sweeps.
    """
    manifest = dataclasses.asdict(results.manifest)
    for volatile in ("started", "finished", "wall_seconds", "machine"):
        del manifest[volatile]
    for entry in (*manifest["records"], *manifest["models"], *manifest["judgements"], *manifest["images"]):
        del entry["reused"]
    own = sorted(file for file in Path(__file__).parent.iterdir() if file.suffix in (".py", ".html"))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in own))
    decides = json.dumps([manifest, str(DEFAULT_RESAMPLING)], sort_keys=True, default=str)
    of = hashlib.sha256(decides.encode()).hexdigest()
    made_from = {"records": results.signature, "beside": beside, "sweep": of, "code": code.hexdigest()}
    return json.dumps(made_from).encode()


def render_png(chart: Chart) -> bytes:
    """Renders a chart as PNG, without a browser."""
    buffer = io.BytesIO()
    chart.save(buffer, format="png", ppi=_PIXELS_PER_INCH)
    return buffer.getvalue()


def render_svg(chart: Chart) -> bytes:
    """Renders a chart as SVG, without a browser."""
    buffer = io.StringIO()
    chart.save(buffer, format="svg")
    return buffer.getvalue().encode()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the arguments; those of the process if None.

    Returns:
        The exit status: 0, or 2 after a user's mistake, which is told in one line on stderr.
    """
    options = tyro.cli(ReportOptions, args=arguments, prog="python -m analysis.report")
    try:
        resampling = Resampling(draws=options.draws, seed=options.seed)
        results = load_sweep(options.storage, options.sweep)
        if is_about_cards(results.manifest):
            card = analyse_card(results, resampling)
            said, page = f"{card_answer(card)}\n\n{format_card(card)}", write_card(card)
        elif is_about_jailbreaks(results.manifest):
            jailbreaks = analyse_jailbreak(results, options.baseline, resampling)
            said = f"{jailbreak_answer(jailbreaks)}\n\n{format_jailbreak(jailbreaks)}"
            page = write_jailbreak(jailbreaks)
        elif is_about_budgets(results.manifest):
            smallest = analyse_budgets(results, options.baseline, resampling)
            said, page = f"{budgets_answer(smallest)}\n\n{format_budgets(smallest)}", write_budgets(smallest)
        elif is_about_conditions(results.manifest):
            unattacked = analyse_conditions(results, options.baseline, resampling)
            said, page = conditions_answer(unattacked), write_conditions(unattacked)
        else:
            statistics = analyse(results, options.epsilon, options.baseline, resampling)
            said, page = answer(statistics), write_statistics(statistics).index
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(said)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
