"""The table for the terminal."""

import dataclasses
import re
from pathlib import Path

import numpy as np

from analysis.loading import load_sweep
from analysis.statistics import Statistics
from analysis.tables import format_table
from tests.analysis.conftest import QUICK, SWEEP
from tests.analysis.synthetic import SyntheticSweep, write_sweep


def test_table_holds_every_mean_with_its_half_width(statistics: Statistics) -> None:
    text = format_table(statistics.results, resampling=QUICK)
    for row in statistics.summary.to_dict("records"):
        half = (row["high"] - row["low"]) / 2
        assert f"{row['mean']:.1f} ±{half:.1f}" in text
    assert "22 to 24 scores per cell; 8 records with an error" in text


def test_table_fits_the_width(statistics: Statistics) -> None:
    for width in (80, 100, 140):
        lines = format_table(statistics.results, width, QUICK).splitlines()
        assert max(map(len, lines[:-2])) <= width
    wide = format_table(statistics.results, 140, QUICK)
    assert wide.count("candidate ") < format_table(statistics.results, 80, QUICK).count("candidate ")


def test_rows_and_columns_line_up(statistics: Statistics) -> None:
    lines = format_table(statistics.results, 80, QUICK).splitlines()
    block = lines[: lines.index("")]
    assert [line.split()[0] for line in block[3:]] == list(SWEEP.clean)
    bars = {tuple(match.start() for match in re.finditer(r"[|+](?!tiny)", line[21:])) for line in block if "|" in line}
    assert len(bars) == 1


def test_what_is_unknown_is_said(tmp_path: Path) -> None:
    sweep = SyntheticSweep(clean={"a": 1.0}, decay={"a": 1.0}, benchmarks=("easy_vqa",), budgets=(0.0, 8.0), samples=1)
    write_sweep(str(tmp_path), dataclasses.replace(sweep, errors={"a": 1}))
    text = format_table(load_sweep(str(tmp_path)), resampling=QUICK)
    assert "100.0 ±?" in text
    assert "no score" in text
    assert "nan" not in text.lower()
    assert np.isfinite(len(text))
