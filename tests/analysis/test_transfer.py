"""Matrices of images found against one candidate and shown to others, on made-up records."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.loading import SweepResults, load_sweep
from analysis.manifest import ConditionEntry
from analysis.report import refresh_report
from analysis.transfer import RESAMPLED, format_transfer, shows_images_of_others, transfer_matrix
from tests.analysis.synthetic import PROTOCOL, SyntheticSweep, make_record, write_artifact, write_manifest, write_sweep

SWEEP = SyntheticSweep()
NAMES = tuple(SWEEP.clean)
SIZE = max(SWEEP.budgets)


def entry_of(source: str) -> ConditionEntry:
    label = f"transferred[{source},non-adaptive,{PROTOCOL},{SIZE:g}/255]-v1"
    return ConditionEntry(label, "transferred", None, (), False, False, source, PROTOCOL, SIZE)


def rows_of(source: str, target: str, benchmark: str) -> list[dict[str, Any]]:
    """Of each source the first sample was not attacked; its own images beat their candidate, others half of it."""
    rows = []
    for index in range(SWEEP.samples):
        score = 0.0 if source == target else 50.0
        row = make_record(target, benchmark, f"s{index:03d}", 0.0, score=score)
        row |= {"condition": entry_of(source).label, "kind": "transferred", "epsilon": None, "clean_score": 100.0}
        row |= {"findings": [RESAMPLED] if target == NAMES[-1] else [], "clean_png": None, "rounds": None}
        row |= {"evaluation": f"{source}{target}{benchmark}"}
        rows.append(row if index else row | {"score": None, "prediction": None, "error": "not attacked"})
    return rows


@pytest.fixture
def results(tmp_path: Path) -> SweepResults:
    manifest = write_sweep(str(tmp_path))
    for source in NAMES:
        entry = entry_of(source)
        manifest["conditions"].append(vars(entry))
        for target in NAMES:
            for benchmark in SWEEP.benchmarks:
                folder = f"records/{target}-{benchmark}-from-{NAMES.index(source)}-0123abcd"
                write_artifact(str(tmp_path), folder, rows_of(source, target, benchmark))
                manifest["records"].append(
                    {"path": folder, "candidate": target, "benchmark": benchmark, "condition": entry.label}
                )
    write_manifest(str(tmp_path), manifest)
    return load_sweep(str(tmp_path), SWEEP.sweep)


def cell(matrix: pd.DataFrame, source: str, target: str) -> pd.Series:  # type: ignore[type-arg]
    found = matrix[(matrix["source"] == source) & (matrix["target"] == target)]
    return found[found["benchmark"] == SWEEP.benchmarks[0]].iloc[0]


def test_a_cell_is_the_mean_over_the_samples_that_the_source_attacked(results: SweepResults) -> None:
    assert shows_images_of_others(results.manifest)
    matrix = transfer_matrix(results)
    assert len(matrix) == len(NAMES) ** 2 * len(SWEEP.benchmarks)
    own, other = cell(matrix, NAMES[0], NAMES[0]), cell(matrix, NAMES[0], NAMES[1])
    assert (own["mean"], other["mean"], other["clean"]) == (0.0, 50.0, 100.0)
    assert (other["n"], other["not_attacked"]) == (SWEEP.samples - 1, 1)
    assert (other["low"], other["high"]) == (50.0, 50.0), "all scores are equal"
    assert (other["attack"], other["epsilon"]) == (PROTOCOL, SIZE)
    assert cell(matrix, NAMES[0], NAMES[-1])["resampled"] == SWEEP.samples - 1
    assert own["resampled"] == 0


def test_the_matrix_is_in_the_report_and_leaves_the_attacks_table_as_it_is(
    results: SweepResults, tmp_path: Path
) -> None:
    page, table = refresh_report(results.storage, SWEEP.sweep)
    told = Path(page).read_text()
    assert "Images of one shown to another" in told
    assert "non-adaptive" in told
    assert (Path(page).parent / "transfer.csv").read_text().startswith("benchmark,attack,epsilon,source,target")
    matrix = transfer_matrix(results)
    assert format_transfer(matrix, NAMES) in table
    plain = write_sweep(str(tmp_path / "plain"))
    _, alone = refresh_report(str(tmp_path / "plain"), plain["sweep"])
    assert table.startswith(alone.rstrip())
