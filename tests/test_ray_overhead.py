"""The comparison of the pipeline with the bare engine, at its smallest: the same rows, both sides in the sheet."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.ray_overhead import (
    ANSWERS,
    Measured,
    Options,
    Run,
    conclusion,
    differing_columns,
    prepare,
    table_rows,
)
from rllava.errors import SweepError, UserError
from rllava.model.assemble import build_connector, save_stage
from rllava.recipes import PRESETS, parse_candidate
from rllava.records import RECORD_SCHEMA
from rllava.store import Store
from tests.fixtures.processes import Tracked

MODEL = "tiny-tecoa4"
SMALL = "--benchmark easy_captions --shards 2 --rows-per-shard 4 --batch-size 4 --repeats 1"


def untrained(folder: Path) -> Path:
    """A results folder in which the projectors of the model's artifact are random."""
    store = Store(str(folder))
    store.prepare()
    spec = parse_candidate(MODEL, PRESETS.get("tiny").model).model
    artifact = store.artifact("models", spec.name, spec)
    connector, tokenizer = build_connector(spec)
    save_stage(spec, 2, connector, connector.state_dict(), tokenizer, Path(artifact.path) / "stage2")
    store.finish(artifact, spec, {})
    return folder


def test_both_sides_write_the_same_rows_and_appear_in_the_sheet(tmp_path: Path, tracked: Tracked) -> None:
    storage, sheet = untrained(tmp_path / "results"), tmp_path / "sheet.md"
    before = sorted(storage.rglob("*"))
    command = [sys.executable, "-m", "benchmarks.ray_overhead", *SMALL.split(), "--model", MODEL]
    command += ["--protocol", "paper_ensemble_3steps"]
    done = subprocess.run(
        [*command, "--storage", str(storage), "--output", str(sheet)],
        env=tracked.env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tracked.assert_gone()
    assert sorted(storage.rglob("*")) == before, "the results folder was written to"
    text = sheet.read_text()
    assert "`python -m benchmarks.ray_overhead`" in text
    assert re.search(r"The 16 records of both sides, [1-9] of them attacked, are the same in every column\.", text)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in table[2:]] == ["| bare loop", "| Ray Data and actor pool"]
    assert "goal: at most 5%" in text


@pytest.mark.parametrize(("slowed", "says"), [(1.04, "met"), (1.06, "not met")])
def test_the_goal_is_judged_by_the_median_of_the_repeats(slowed: float, says: str) -> None:
    bare = [Run(0.0, (1.0, 6.0, 11.0), (1.0, 4.9, 4.9), 11.1)] * 3
    pooled = [
        Run(5.0, (9.0, 9.0 + 5 * slow, 9.0 + 10 * slow), (2.0, 5.0, 5.0), 9.2 + 10 * slow)
        for slow in (slowed, 3.0, 1.0)
    ]
    measured = Measured(bare, pooled, samples=96, records=192, attacked=90, differing=["loss_best"])
    assert measured.met == (says == "met")
    assert measured.overheads[0] == pytest.approx(slowed - 1)
    assert measured.gaps[0] == pytest.approx((10 * slowed - 10.0 - 0.2) / 10)
    text = conclusion(measured)
    assert f"%, {says} by the median" in text
    assert "Ray itself 5.0 (5.0 to 5.0) s, then the first shard 3.0 s later" in text
    assert "The 192 records of both sides, 90 of them attacked, are the same but for loss_best." in text
    (_, steady, between, rate, first, tail, whole), _ = table_rows(measured)
    assert [cell.split(" ")[0] for cell in (steady, between, rate, first, tail, whole)] == [
        "10.00", "0.20", "6.4", "1.00", "0.10", "11.10",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_sides_that_disagree_are_no_measurement(name: str) -> None:
    value = {"sample_id": "a", "loss_best": 1.0, "prediction": "red", "score": 100.0}
    other = 50.0 if RECORD_SCHEMA.field(name).type == pa.float64() else "blue"
    bare, close, wrong = (
        pa.Table.from_pylist([row], schema=RECORD_SCHEMA)
        for row in (value, {**value, "loss_best": 1.5}, {**value, name: other})
    )
    assert differing_columns(bare, bare) == []
    assert differing_columns(bare, close) == ["loss_best"]
    with pytest.raises(SweepError, match=rf"disagree in {name};"):
        differing_columns(bare, wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": 1}, "--shards 1: expected at least 2"),
        ({"repeats": 0}, "--repeats 0: expected at least 1"),
        ({"budgets": (8.0, 2.0)}, "--budgets: expected rising numbers"),
        ({}, "make ablation"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare(Options(storage=tmp_path / "nothing", **change), tmp_path / "data")
