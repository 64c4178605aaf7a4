"""Tables as text: for the terminal, and as CSV."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.bootstrap import DEFAULT_RESAMPLING, Resampling
from analysis.loading import SweepResults
from analysis.scores import AVERAGE, Scores, sweep_scores
from analysis.summary import SUMMARY_COLUMNS, bootstrap_scores, summarise

_CELL = 11  # "100.0 ±10.0"


def format_table(results: SweepResults, width: int = 132, resampling: Resampling = DEFAULT_RESAMPLING) -> str:
    """Formats a sweep for the terminal: a row per candidate, a column per benchmark and budget, mean ± half-width.

    Args:
        results: from ``loading.load_sweep``.
        width: columns of the terminal; benchmarks that do not fit beside each other follow below.
        resampling: draws, seed and level of the intervals.

    Returns:
        Plain text, lines of at most ``width`` columns unless one benchmark alone is wider.
    """
    scores = sweep_scores(results)
    summary = summarise(scores, bootstrap_scores(scores, resampling), resampling)
    cells = {
        (str(row["candidate"]), str(row["benchmark"]), float(row["epsilon"])): _format_cell(row)
        for row in summary.to_dict("records")
    }
    benchmarks = [*scores.benchmarks, AVERAGE] if len(scores.benchmarks) > 1 else list(scores.benchmarks)
    first = max(len("candidate"), *map(len, scores.candidates))
    per_benchmark = (_CELL + 2) * len(scores.epsilons) + 1
    per_block = max(1, (width - first) // per_benchmark)
    blocks = [benchmarks[start : start + per_block] for start in range(0, len(benchmarks), per_block)]
    text = "\n\n".join(_format_block(scores, block, cells, first) for block in blocks)
    return f"{text}\n\n{_legend(summary, resampling)}"


def summary_csv(summary: pd.DataFrame) -> bytes:
    """Formats summary.csv: SUMMARY_COLUMNS, a row per candidate, benchmark and budget; no averages, UTF-8."""
    rows = summary[summary["benchmark"] != AVERAGE]
    return rows[list(SUMMARY_COLUMNS)].to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def table_csv(table: pd.DataFrame) -> bytes:
    """Formats any other table as CSV, UTF-8, six significant digits."""
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def _format_cell(row: Mapping[object, float]) -> str:
    if not np.isfinite(row["mean"]):
        return "no score"
    half = (row["high"] - row["low"]) / 2
    return f"{row['mean']:.1f} ±{half:<4.1f}" if np.isfinite(half) else f"{row['mean']:.1f} ±?   "


def _format_block(
    scores: Scores, benchmarks: Sequence[str], cells: Mapping[tuple[str, str, float], str], first: int
) -> str:
    span = (_CELL + 2) * len(scores.epsilons)
    titles = " " * first + "".join(f" |{name[: span - 1]:^{span - 1}}" for name in benchmarks)
    budgets = "".join(f"  {'ε = ' + format(epsilon, 'g'):>{_CELL}}" for epsilon in scores.epsilons)
    head = f"{'candidate':<{first}}" + "".join(f" |{budgets[1:]}" for _ in benchmarks)
    rule = "-" * first + "".join("-+" + "-" * (span - 1) for _ in benchmarks)
    lines = [
        f"{candidate:<{first}}"
        + "".join(
            " |" + "".join(f"  {cells[candidate, name, epsilon]:>{_CELL}}" for epsilon in scores.epsilons)[1:]
            for name in benchmarks
        )
        for candidate in scores.candidates
    ]
    return "\n".join(line.rstrip() for line in [titles, head, rule, *lines])


def _legend(summary: pd.DataFrame, resampling: Resampling) -> str:
    rows = summary[summary["benchmark"] != AVERAGE]
    n = rows["n"]
    samples = f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
    errors = int(rows["errors"].sum())
    legend = (
        f"ε in 1/255; ± half the width of the {resampling.level:.0%} bootstrap interval; {samples} scores per cell; "
        f"{errors} record{'' if errors == 1 else 's'} with an error (left out of the means)"
    )
    return f"{legend}\n{covers(summary)}"


def covers(summary: pd.DataFrame) -> str:
    """What the intervals of a summary cover, and how far trainings differ.

    Args:
        summary: from ``summary.summarise``.
    """
    seeds = sorted(set(map(int, summary["seeds"])))
    if seeds == [1]:
        return "one training per candidate: intervals cover the choice of samples, not another training"
    rows = summary[(summary["benchmark"] == AVERAGE) & summary["training_sd"].notna()]
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"{count} trainings per candidate: intervals cover training and samples; standard deviation between trainings "
        f"(average over benchmarks): {rows['training_sd'].min():.1f} to {rows['training_sd'].max():.1f}"
    )
