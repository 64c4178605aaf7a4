"""A sweep of smallest budgets on the LLaVAs of an ablation: killed, started again, and what it leaves."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.loading import load_sweep
from rllava.conditions.smallest_budget import SmallestBudget
from rllava.errors import UserError
from rllava.recipes.grid import check_grid
from sweeps.budgets import SWEEP, Options, make_plan
from tests.fixtures.processes import Tracked, processes_called, wait_for
from tests.sweeps.conftest import Run
from tests.sweeps.driver import finish, start
from tests.sweeps.shown import unexpected

SCRIPT = "sweeps/budgets.py"
OPTIONS = (
    "--encoders", "tiny-clip", "--benchmarks", "easy_captions", "--smallest", "2", "--largest", "16",
    "--per-octave", "1", "--save-every", "0",
)  # fmt: skip
SAMPLES = 8
LINES = (
    r"\d\d:\d\d:\d\d tiny-clip +evaluating: part \d of \d \(\w+ searched up to 16/255: mean score [\d.]+\).*",
    r"\d\d:\d\d:\d\d tiny-clip +done: clean [\d.]+, where it is beaten [\d.]+.*",
    r"easy_captions",
    r"candidate( +ε = \d+)+ +median ε +area",
    r"tiny-clip( +[\d.]+ ±[\d.]+)+ +(> )?[\d.]+ +[\d.]+ ±[\d.]+",
    r"percent not beaten at ε .*",
)
"""What such a sweep prints beside what all do."""


def searched(storage: Path, pattern: str) -> list[Path]:
    return sorted(storage.glob(f"records/*-smallest16-*/{pattern}"))


@pytest.mark.processes
def test_a_search_whose_worker_is_killed_goes_on_and_ends_as_an_unbroken_one(
    unbroken: Run, tmp_path: Path, tracked: Tracked
) -> None:
    tables = []
    for name in ("killed", "whole"):
        storage = tmp_path / name
        shutil.copytree(unbroken.storage, storage)
        driver = start(str(storage), tracked, *OPTIONS, script=SCRIPT)
        if name == "killed":
            wait_for(lambda: searched(tmp_path / "killed", "state-*.pt"), 300, "the state of a search in flight")
            for worker in processes_called(tracked, "ShardAttacker"):
                worker.kill()
        output = finish(driver)
        assert unexpected(output, LINES) == []
        assert "percent not beaten" in output
        assert searched(storage, "state-*") == []
        records = load_sweep(str(storage), SWEEP).records
        tables.append(records.drop(columns="part"))
    pd.testing.assert_frame_equal(*tables)

    rows = tables[0][tables[0]["kind"] == "smallest_budget"]
    assert len(rows) == SAMPLES
    assert rows["rounds"].map(len).max() > 1, "nobody was searched for"
    assert rows["error"].isna().all()
    assert (rows["linf"] <= rows["beaten_at"].fillna(rows["epsilon"])).all()
    assert set(rows["beaten_at"].dropna()) <= {0.0, 2.0, 4.0, 8.0, 16.0}
    report = storage / "reports/budgets"
    assert {path.name for path in report.iterdir()} >= {"index.html", "curve.csv", "smallest.csv", "curve.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest": "0"}, "--largest 0: expected a budget above 0"),
        ({"largest": "0.0157"}, "--largest 0.0157: budgets are in units of 1/255"),
        ({"smallest": "300"}, "--smallest 300: expected numbers from 0 to 255"),
        ({"smallest": "20"}, "--smallest: expected budgets 0 < smallest <= largest"),
        ({"per_octave": 0}, "--per-octave: expected 1 to 32"),
        ({"below": -0.1}, "--below: expected a share of the clean score"),
        ({"protocol": "strong"}, "--protocol: protocol strong starts from what others found"),
        ({"protocol": "paper_targeted"}, "--protocol: protocol paper_targeted wants a text said"),
        ({"protocol": "fats"}, "unknown protocol 'fats'; did you mean fast"),
        ({"preset": "manners"}, "task continuation: an attack keeps the image"),
        ({"attack_steps": 0}, "--attack-steps: expected at least 1"),
        ({"encoders": ("tiny-clpi",)}, "unknown encoder 'tiny-clpi'; did you mean tiny-clip"),
        ({"samples": 1}, "--samples 1"),
    ],
)
def test_mistakes_are_named_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_grid(make_plan(Options(**options)).grid)
    assert "\n" not in str(caught.value)


def test_a_preset_says_what_is_searched_with_and_how_far() -> None:
    for name, largest, count, precision in (("tiny", 16.0, 25, "float32"), ("paper", 8.0, 21, "float16")):
        clean, condition = make_plan(Options(preset=name)).grid.conditions
        assert isinstance(condition, SmallestBudget)
        assert (condition.largest, len(condition.budgets)) == (largest, count)
        assert clean.precisions("captioning") == (precision,)
    _, condition = make_plan(Options(protocol="fast", attack_precision="float32", below=0.25)).grid.conditions
    assert condition.label == "smallest[fast_float32-v1]-v1"


def test_other_conditions_stand_beside(tmp_path: Path) -> None:
    conditions = make_plan(Options(conditions=("corruption:fog",))).grid.conditions
    assert [condition.kind for condition in conditions] == ["clean", "smallest_budget", "corruption"]
