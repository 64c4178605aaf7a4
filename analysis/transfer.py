"""What images found against one candidate do to the others: a matrix of sources and targets."""

from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.bootstrap import DEFAULT_RESAMPLING, Resampling, bca_interval, bootstrap_means
from analysis.loading import SweepResults
from analysis.manifest import ConditionEntry, Manifest
from analysis.scores import is_error

TRANSFER_COLUMNS = (
    "benchmark", "attack", "epsilon", "source", "target", "mean", "low", "high", "n", "clean", "not_attacked",
    "resampled",
)  # fmt: skip
"""Columns of transfer.csv."""

RESAMPLED = "resampled"
"""What records say of an image that was made for another input size (``rllava.conditions.transferred``)."""


@dataclass(frozen=True)
class Shown:
    """One cell before its statistics.

    Attributes:
        entry: names source, attack and budget.
        rows: records of the target.
    """

    entry: ConditionEntry
    benchmark: str
    target: str
    rows: pd.DataFrame


def shows_images_of_others(manifest: Manifest) -> bool:
    """Whether a sweep showed candidates the images of others."""
    return any(entry.source for entry in manifest.conditions)


def transfer_matrix(results: SweepResults, resampling: Resampling = DEFAULT_RESAMPLING) -> pd.DataFrame:
    """The mean score of every target on every source's images.

    Returns:
        A row per benchmark, attack, budget, source and target: ``mean, low, high`` over the ``n`` samples that the
        source attacked, with a BCa interval; ``clean``, the target's clean score on the same samples; ``not_attacked``,
        samples without an image of the source; ``resampled``, how many images were made for another input size.
        Numbers are non-adaptive but where source and target are the same: there they are the attack's own, in 8 bits.
    """
    rows = []
    for number, cell in enumerate(_cells(results)):
        failed = is_error(cell.rows)
        scored = cell.rows[~failed]
        scores_S1 = scored["score"].to_numpy(dtype=float)[:, None]
        bootstrap = bootstrap_means(scores_S1, resampling.draws, [resampling.seed, number])
        low_1, high_1 = bca_interval(bootstrap, resampling.level) if len(scored) else (np.full(1, np.nan),) * 2
        resampled = sum(RESAMPLED in (found if found is not None else ()) for found in scored["findings"])
        rows.append(
            (
                cell.benchmark, cell.entry.stored, cell.entry.label_budget, cell.entry.source, cell.target,
                float(bootstrap.mean[0]), float(low_1[0]), float(high_1[0]), len(scored),
                float(scored["clean_score"].mean()) if len(scored) else np.nan, int(failed.sum()), resampled,
            )
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(TRANSFER_COLUMNS))


def _cells(results: SweepResults) -> list[Shown]:
    records, manifest = results.records, results.manifest
    return [
        Shown(entry, benchmark, target, rows)
        for benchmark in manifest.benchmarks
        for entry in manifest.conditions
        if entry.source
        for target in manifest.candidates
        if len(
            rows := records[
                (records["condition"] == entry.label)
                & (records["benchmark"] == benchmark)
                & (records["candidate"] == target)
            ]
        )
    ]


def transfer_chart(matrix: pd.DataFrame, order: tuple[str, ...]) -> alt.ConcatChart:
    """Draws the matrix: a panel per benchmark and budget, sources downwards, targets rightwards.

    Args:
        matrix: from :func:`transfer_matrix`.
        order: of the candidates.
    """
    panels = []
    shown = matrix.assign(
        kept=100 * matrix["mean"] / matrix["clean"].where(matrix["clean"] > 0),
        own=matrix["source"] == matrix["target"],
    )
    for (benchmark, attack, size), own in shown.groupby(["benchmark", "attack", "epsilon"], sort=False):
        columns = ["source", "target", "mean", "kept", "n", "not_attacked", "resampled", "own"]
        values: Any = own[columns].astype(object).where(own[columns].notna(), None).to_dict("records")
        title = f"{benchmark}, {attack}, ε = {size:g}/255"
        base = alt.Chart(alt.InlineData(values=values), title=title).encode(
            x=alt.X("target:N", sort=list(order), title="shown to", axis=alt.Axis(labelAngle=-30)),
            y=alt.Y("source:N", sort=list(order), title="found against"),
        )
        tiles = base.mark_rect().encode(
            color=alt.Color(
                "kept:Q", title="clean score kept, %", scale=alt.Scale(domain=[0, 100], scheme="blues", clamp=True)
            ),
            tooltip=[
                "source:N",
                "target:N",
                alt.Tooltip("mean:Q", format=".1f"),
                "n:Q",
                "not_attacked:Q",
                "resampled:Q",
            ],
        )
        text = base.mark_text(fontSize=10).encode(
            text=alt.Text("kept:Q", format=".0f"),
            color=alt.condition("datum.kept > 60", alt.value("white"), alt.value("#0f172a")),
        )
        panels.append((tiles + text).properties(width=48 * len(order), height=26 * len(order)))
    chart: alt.ConcatChart = alt.concat(*panels, columns=2).resolve_scale(color="shared").configure_view(stroke=None)
    return chart


def format_transfer(matrix: pd.DataFrame, candidates: tuple[str, ...]) -> str:
    """The matrix for the terminal, its benchmarks averaged: a row per source and budget, a column per target."""
    lines = []
    width = max(9, *map(len, candidates))
    for (attack, size), own in matrix.groupby(["attack", "epsilon"], sort=False):
        head = f"images of ({attack}, {size:g}/255)"
        first = max(len(head), *map(len, candidates))
        lines.append(f"{head:<{first}}" + "".join(f"  {name:>{width}}" for name in candidates))
        lines.append("-" * len(lines[-1]))
        means = own.groupby(["source", "target"])["mean"].mean()
        for source in candidates:
            cells = [means.get((source, target), np.nan) for target in candidates]
            shown = "".join(f"  {'–' if not np.isfinite(value) else f'{value:.1f}':>{width}}" for value in cells)
            lines.append(f"{source:<{first}}{shown}")
        lines.append("")
    left = int(matrix["not_attacked"].sum())
    lines.append(
        "scores of the columns' candidates, mean over benchmarks and the samples that the row's candidate attacked; "
        f"non-adaptive but for its own; {left} answers have no image to be shown"
    )
    return "\n".join(lines)
