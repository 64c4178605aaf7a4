"""The rates of yes/no benchmarks, from made-up records to the report."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.bootstrap import Resampling
from analysis.conditions import analyse_conditions
from analysis.loading import load_sweep
from analysis.manifest import ConditionEntry, Manifest, RecordsEntry
from analysis.page import yes_no_rows
from analysis.report import refresh_report, write_conditions, write_report
from analysis.yes_no import YES_NO_COLUMNS, yes_no_benchmarks, yes_no_table
from rllava.errors import UserError
from rllava.metrics.yes_no import RATES
from tests.analysis.synthetic import PROTOCOL, fake_fingerprint, make_record, write_artifact, write_manifest

FEW = Resampling(draws=400)
SAMPLES = 20


def rows_of(candidate: str, epsilon: float, benchmark: str = "pope") -> list[dict[str, Any]]:
    """Half is yes. Clean, the first three of ten "yes" are denied and one "no" is mumbled; attacked, all say no."""
    rows = []
    for index in range(SAMPLES):
        gold = "Yes" if index < SAMPLES // 2 else "No"
        said = "No" if epsilon or index < 3 else "a dog" if index == SAMPLES - 1 else gold
        score = 100.0 * ((said != "No") == (gold == "Yes"))
        row = make_record(candidate, benchmark, f"s{index:02d}", epsilon, score=score)
        rows.append(row | {"references": [gold], "prediction": said})
    return rows


def records_of(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    other = make_record("a", "vqa", "v", 0.0, score=100.0)
    return yes_no_table(records_of(other, *rows_of("a", 0.0), *rows_of("a", 8.0)), FEW)


def cell(table: pd.DataFrame, epsilon: float, parser: str) -> dict[str, Any]:
    (row,) = table[(table["epsilon"] == epsilon) & (table["parser"] == parser)].to_dict("records")
    return {str(name): value for name, value in row.items()}


def test_rates_are_those_counted_by_hand(table: pd.DataFrame) -> None:
    assert list(table.columns) == list(YES_NO_COLUMNS)
    assert set(table["benchmark"]) == {"pope"}
    assert len(table) == 2 * 2
    lenient, exact = cell(table, 0.0, "yes_no"), cell(table, 0.0, "yes_no_exact")
    # 7 hits of 10; of the 10 "no", 9 are right; the mumbled one is a "yes" to LLaVA's parser, and neither to the other.
    assert [lenient[rate] for rate in RATES] == pytest.approx([16 / 20, 7 / 8, 7 / 10, 14 / 18, 8 / 20])
    assert [exact[rate] for rate in RATES] == pytest.approx([16 / 20, 1.0, 7 / 10, 14 / 17, 7 / 20])
    assert (lenient["n"], lenient["errors"]) == (SAMPLES, 0)


def test_intervals_hold_the_rates_and_have_a_width(table: pd.DataFrame) -> None:
    found = cell(table, 0.0, "yes_no")
    for rate in RATES:
        assert found[f"{rate}_low"] < found[rate] < found[f"{rate}_high"], rate
    # Half the width of a binomial share's 95 % interval, sqrt(.8 * .2 / 20) * 1.96 = 0.175; 400 draws leave a tenth.
    assert (found["accuracy_high"] - found["accuracy_low"]) / 2 == pytest.approx(0.175, abs=0.03)


def test_what_is_undefined_has_neither_rate_nor_interval(table: pd.DataFrame) -> None:
    attacked = cell(table, 8.0, "yes_no")
    assert (attacked["accuracy"], attacked["recall"], attacked["f1"], attacked["yes"]) == (0.5, 0.0, 0.0, 0.0)
    assert pd.isna([attacked["precision"], attacked["precision_low"], attacked["precision_high"]]).all()


def test_accuracy_is_the_score_of_the_benchmarks_own_parser(table: pd.DataFrame) -> None:
    for epsilon in (0.0, 8.0):
        mean = pd.DataFrame(rows_of("a", epsilon))["score"].mean() / 100
        assert cell(table, epsilon, "yes_no")["accuracy"] == pytest.approx(mean)


def test_errors_are_left_out_and_counted() -> None:
    rows = rows_of("a", 0.0)
    rows[0] |= {"error": "damaged image", "score": None, "prediction": None}
    found = cell(yes_no_table(records_of(*rows), FEW), 0.0, "yes_no")
    assert (found["n"], found["errors"]) == (SAMPLES - 1, 1)
    assert found["recall"] == pytest.approx(7 / 9)
    lost = [row | {"error": "no image", "score": None, "prediction": None} for row in rows]
    found = cell(yes_no_table(records_of(*lost), FEW), 0.0, "yes_no")
    assert (found["n"], found["errors"]) == (0, SAMPLES)
    assert pd.isna([found[rate] for rate in RATES]).all()


def test_draws_of_a_sample_are_no_samples() -> None:
    rows = rows_of("a", 0.0)
    drawn = [row | {"draw": draw} for row in rows for draw in range(3)]
    once, thrice = (yes_no_table(records_of(*given), FEW) for given in (rows, drawn))
    pd.testing.assert_frame_equal(once, thrice)


@pytest.mark.parametrize(
    ("references", "is_one"),
    [(["yes"], True), (["No"], True), (["yes"] * 10, False), ([], False), (["red"], False)],
)
def test_a_benchmark_is_one_by_all_its_references(references: list[str], is_one: bool) -> None:
    rows = [*rows_of("a", 0.0), make_record("a", "pope", "last", 0.0, score=0.0) | {"references": references}]
    assert yes_no_benchmarks(records_of(*rows)) == (("pope",) if is_one else ())
    assert yes_no_table(records_of(*rows), FEW).empty != is_one


def test_what_was_searched_against_something_else_is_marked() -> None:
    table = yes_no_table(records_of(*rows_of("a", 0.0), *rows_of("a", 8.0)), FEW, non_adaptive={PROTOCOL})
    assert dict(zip(table["condition"], table["adaptive"], strict=True)) == {"clean": True, PROTOCOL: False}
    assert [row["adaptive"] for row in yes_no_rows(table)] == [True, True, False, False]


def test_records_of_two_evaluations_are_refused() -> None:
    others = [row | {"evaluation": "0" * 16, "sample_id": f"other {row['sample_id']}"} for row in rows_of("a", 0.0)]
    with pytest.raises(UserError, match="comes from 2 evaluations"):
        yes_no_table(records_of(*rows_of("a", 0.0), *others), FEW)


def written(folder: Path, kind: str) -> str:
    """A sweep of one candidate on two benchmarks, under an attack or a corruption."""
    attacked = kind == "attack"
    entry = ConditionEntry(PROTOCOL, kind, 8.0) if attacked else ConditionEntry("fog-v1", kind, None, (1,))
    entries = []
    for benchmark in ("pope", "easy_vqa"):
        for condition in (ConditionEntry("clean", "clean", 0.0), entry):
            rows = rows_of("a", condition.epsilon or 0.0, benchmark)
            if benchmark != "pope":
                rows = [row | {"references": ["red"]} for row in rows]
            if condition.epsilon is None:
                changed = {"condition": "fog-v1", "kind": kind, "epsilon": None, "severity": 1}
                changed["evaluation"] = fake_fingerprint(benchmark, "fog")
                rows = [row | changed | {"prediction": "No", "rounds": None} for row in rows]
            path = f"records/a-{benchmark}-{condition.label}-0"
            write_artifact(str(folder), path, rows)
            entries.append(RecordsEntry(path, "a", benchmark, condition.label, condition.epsilon))
    conditions = (ConditionEntry("clean", "clean", 0.0), entry)
    made = Manifest("mine", ("a",), ("pope", "easy_vqa"), conditions, SAMPLES, tuple(entries))
    write_manifest(str(folder), json.loads(made.to_json()))
    return str(folder)


@pytest.mark.parametrize("kind", ["attack", "corruption"])
def test_a_report_has_them_as_a_table_and_a_file(tmp_path: Path, kind: str) -> None:
    storage = written(tmp_path, kind)
    if kind == "attack":
        write_report(storage, "mine", resampling=FEW)
    else:
        write_conditions(analyse_conditions(load_sweep(storage, "mine"), resampling=FEW))
    folder = tmp_path / "reports/mine"
    csv = pd.read_csv(folder / "yes_no.csv")
    assert list(csv.columns) == list(YES_NO_COLUMNS)
    assert list(csv["condition"]) == ["clean"] * 2 + [PROTOCOL if kind == "attack" else "fog-v1"] * 2
    page = (folder / "index.html").read_text()
    section = page.split('<section id="yes-no">')[1].split("</section>")[0]
    assert section.count("<tr data-candidate=") == 4
    assert "nan" not in section
    assert (f"{PROTOCOL} at 8/255" if kind == "attack" else "fog-v1 at severity 1") in section


def test_a_report_whose_table_has_gone_is_written_again(tmp_path: Path) -> None:
    storage = written(tmp_path, "corruption")
    refresh_report(storage, "mine")
    file = tmp_path / "reports/mine/yes_no.csv"
    before = file.read_bytes()
    file.unlink()
    refresh_report(storage, "mine")
    assert file.read_bytes() == before
