"""The report of smallest budgets: curves, medians and areas by hand, and a page of them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.bootstrap import Resampling
from analysis.budget_page import evidence
from analysis.budgets import (
    BudgetStatistics,
    analyse_budgets,
    at_budgets,
    budgets_answer,
    format_budgets,
    is_about_budgets,
    medians,
    simultaneous_width,
)
from analysis.conditions import is_about_conditions
from analysis.loading import load_sweep
from analysis.manifest import ConditionEntry, Manifest, RecordsEntry
from analysis.report import main, refresh_report
from analysis.scores import AVERAGE
from rllava.errors import UserError
from rllava.records import SMALLEST
from tests.analysis.synthetic import fake_fingerprint, make_record, write_artifact, write_manifest

RESAMPLING = Resampling(draws=500)
LARGEST = 16.0
LABEL = "smallest[paper_apgd-v1]-v1"
NEVER = None
BEATEN: Mapping[tuple[str, str], Sequence[float | str | None]] = {
    ("weak", "easy_vqa"): (0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0),
    ("weak", "easy_captions"): (0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0),
    ("<b>strong</b>", "easy_vqa"): (0.0, 4.0, 8.0, NEVER, NEVER, NEVER, NEVER, NEVER),
    ("<b>strong</b>", "easy_captions"): (0.0, 1.0, 4.0, 4.0, 8.0, NEVER, NEVER, "broke off"),
}
CANDIDATES, BENCHMARKS = ("weak", "<b>strong</b>"), ("easy_vqa", "easy_captions")


def rows_of(candidate: str, benchmark: str, seed: int = 0) -> list[dict[str, Any]]:
    rows = []
    for number, beaten in enumerate(BEATEN[candidate, benchmark]):
        failed, wrong = beaten == "broke off", beaten == 0.0
        where = None if failed or beaten is None else float(beaten)
        row = make_record(
            candidate, benchmark, f"s{number}", LARGEST, score=None if failed else 100.0 * (where is None),
            clean_score=0.0 if wrong else 100.0, kind=SMALLEST, condition=LABEL, beaten_at=where, seed=seed,
            evaluation=fake_fingerprint(candidate, benchmark, seed), error="not finite" if failed else None,
            linf=LARGEST if where is None else where, round_epsilons=[] if wrong else [16.0, 4.0],
            rounds=[] if wrong else ["label0", "label0-warm"], steps=0 if wrong else 20,
        )  # fmt: skip
        rows.append(row)
    return rows


def write(storage: str, others: Sequence[ConditionEntry] = ()) -> str:
    clean, searched = ConditionEntry("clean", "clean", 0.0), ConditionEntry(LABEL, SMALLEST, LARGEST)
    entries = []
    for candidate, benchmark in BEATEN:
        path = f"records/{candidate.strip('<b>/')}-{benchmark}-0123"
        write_artifact(storage, path, rows_of(candidate, benchmark))
        entries.append(RecordsEntry(path, candidate, benchmark, LABEL, LARGEST))
    manifest = Manifest(
        sweep="budgets", candidates=CANDIDATES, benchmarks=BENCHMARKS, conditions=(clean, searched, *others), samples=8,
        records=tuple(entries),
    )  # fmt: skip
    write_manifest(storage, json.loads(manifest.to_json()))
    return storage


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return write(str(tmp_path / "results"))


@pytest.fixture
def statistics(storage: str) -> BudgetStatistics:
    return analyse_budgets(load_sweep(storage, "budgets"), resampling=RESAMPLING)


def cell(table: pd.DataFrame, candidate: str, benchmark: str, **others: float) -> dict[str, Any]:
    rows = table[(table["candidate"] == candidate) & (table["benchmark"] == benchmark)]
    for name, value in others.items():
        rows = rows[rows[name] == value]
    (row,) = rows.to_dict("records")
    return {str(key): value for key, value in row.items()}


def test_the_curve_falls_where_samples_were_beaten(statistics: BudgetStatistics) -> None:
    weak = {e: cell(statistics.curve, "weak", "easy_vqa", epsilon=e)["mean"] for e in (0, 1, 2, 4, 8, 16)}
    assert weak == {0: 87.5, 1: 62.5, 2: 37.5, 4: 12.5, 8: 0.0, 16: 0.0}
    # The sample whose rounds broke off proves nothing, and is left out.
    strong = [cell(statistics.curve, CANDIDATES[1], "easy_captions", epsilon=e)["mean"] for e in (0, 4, 16)]
    assert strong == pytest.approx([100 * 6 / 7, 100 * 3 / 7, 100 * 2 / 7])
    average = cell(statistics.curve, "weak", AVERAGE, epsilon=1)
    assert average["mean"] == pytest.approx((62.5 + 25.0) / 2)
    known = statistics.curve
    assert (known["low"] <= known["mean"] + 1e-9).all()
    assert (known["high"] >= known["mean"] - 1e-9).all()
    # The band that holds the whole curve at once is not narrower than the half-widths at each budget are on average.
    assert (known["band_high"] - known["band_low"]).mean() >= (known["high"] - known["low"]).mean()
    for _, curve in known.groupby(["candidate", "benchmark"]):
        assert (curve.sort_values("epsilon")["mean"].diff().dropna() <= 1e-9).all()


def test_medians_and_areas_by_hand(statistics: BudgetStatistics) -> None:
    weak, strong = (cell(statistics.table, name, "easy_vqa") for name in CANDIDATES)
    assert (weak["median"], strong["median"]) == (2.0, np.inf)
    assert weak["area"] == pytest.approx(100 * (0 + 1 + 1 + 2 + 2 + 4 + 4 + 8) / 8 / LARGEST)
    assert strong["area"] == pytest.approx(100 * (0 + 4 + 8 + 5 * 16) / 8 / LARGEST)
    assert weak["area_low"] < weak["area"] < weak["area_high"]
    assert (strong["clean"], strong["not_beaten"], strong["n"]) == (87.5, 62.5, 8)
    assert weak["median_low"] <= 2.0 <= weak["median_high"] < np.inf
    assert weak["median_low"] in (0.0, 1.0, 2.0), "a median is one of the budgets"
    failed = cell(statistics.table, CANDIDATES[1], "easy_captions")
    assert (failed["n"], failed["errors"]) == (7, 1)
    assert cell(statistics.table, "weak", AVERAGE)["steps"] == pytest.approx(20 * 13 / 16)


def test_candidates_are_compared_on_the_same_samples(statistics: BudgetStatistics) -> None:
    assert statistics.baseline == CANDIDATES[1]
    row = cell(statistics.comparisons, "weak", "easy_vqa")
    shared = [b or 0.0 for b in (0, 4, 8, 16, 16, 16, 16, 16)]
    expected = np.mean(np.array([0, 1, 1, 2, 2, 4, 4, 8]) - np.array(shared)) / LARGEST * 100
    assert row["difference"] == pytest.approx(expected)
    assert row["high"] < 0
    assert (row["n"], cell(statistics.comparisons, "weak", "easy_captions")["n"]) == (8, 7)


def test_a_median_is_the_first_budget_at_which_half_have_fallen() -> None:
    curves_BE = np.array([[100.0, 50.0, 0.0], [100.0, 51.0, 50.0], [100.0, 90.0, 80.0], [40.0, 0.0, 0.0]])
    assert medians(curves_BE, np.array([0.0, 1.0, 2.0])).tolist() == [1.0, 2.0, np.inf, 0.0]
    assert np.isnan(medians(np.array([[np.nan, 1.0]]), np.array([0.0, 1.0]))).all()


def test_the_band_holds_whole_curves() -> None:
    """Of curves drawn from a known distribution, about as many lie within the band as it says."""
    rng = np.random.default_rng(0)
    true_E = 1 - np.arange(1, 10) / 10
    inside = 0
    for number in range(200):
        smallest_S = rng.random(60)
        values_SE = (smallest_S[:, None] > np.arange(1, 10) / 10).astype(float)
        picks = np.random.default_rng(number).integers(0, 60, (300, 60))
        draws_BE = values_SE[picks].mean(axis=1)
        mean_E = values_SE.mean(axis=0)
        (width,) = simultaneous_width(mean_E[None], draws_BE[:, None], 0.95)
        inside += bool((np.abs(mean_E - true_E) <= width + 1e-9).all())
    assert 180 <= inside <= 200, inside


def test_pages_tables_and_files(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    page, table = refresh_report(storage, "budgets")
    assert "weak" in table
    assert "> 16" in table
    assert "1 records with an error" in table
    folder = Path(page).parent
    html = Path(page).read_text()
    assert "<b>strong</b>" not in html.split("<script>")[0]
    assert "&lt;b&gt;strong&lt;/b&gt;" in html
    assert {path.name for path in folder.iterdir()} >= {
        "curve.csv", "smallest.csv", "comparisons.csv", "curve.png", "curve.svg", "records.parquet",
    }  # fmt: skip
    smallest = pd.read_csv(folder / "smallest.csv")
    assert len(smallest) == 6
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refresh_report(storage, "budgets")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert main(["--storage", storage, "--sweep", "budgets", "--draws", "200"]) == 0
    assert "stands longest" in capsys.readouterr().out
    assert main(["--storage", storage, "--sweep", "budgets", "--baseline", "nobody"]) == 2
    assert "candidate 'nobody' is not in the results" in capsys.readouterr().err


def test_answers_and_a_few_budgets(statistics: BudgetStatistics) -> None:
    assert budgets_answer(statistics).startswith("<b>strong</b> stands longest")
    rows = {(row["candidate"], row["benchmark"]): row["cells"] for row in at_budgets(statistics)}
    assert [cell["mean"] for cell in rows["weak", "easy_vqa"]] == [87.5, 62.5, 37.5, 12.5, 0.0, 0.0]
    assert "median" in format_budgets(statistics)
    (weak, strong) = evidence(statistics)
    assert (weak["searched"], weak["over"], weak["budgets"]) == (13, 0, 2.0)
    assert strong["searched"] == 13


def test_what_a_sweep_is_about(storage: str) -> None:
    results = load_sweep(storage, "budgets")
    assert is_about_budgets(results.manifest)
    assert not is_about_conditions(results.manifest)
    none = dataclasses.replace(results, records=results.records[:0])
    with pytest.raises(UserError, match="no smallest budgets"):
        analyse_budgets(none)


def test_several_trainings_are_one_candidate(storage: str) -> None:
    results = load_sweep(storage, "budgets")
    again = results.records.assign(
        seed=1, evaluation="0" * 16, model="1" * 16, beaten_at=results.records["beaten_at"].where(lambda b: b == 0, 1.0)
    )
    both = dataclasses.replace(results, records=pd.concat([results.records, again]))
    row = cell(analyse_budgets(both, resampling=RESAMPLING).table, "weak", "easy_vqa")
    assert row["seeds"] == 2
    assert row["area"] == pytest.approx((100 * 22 / 8 / LARGEST + 100 * 7 / 8 / LARGEST) / 2)
