"""A sweep of corruptions on the LLaVAs of an ablation: killed, started again, and what it leaves."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from analysis.loading import load_sweep
from rllava.errors import UserError
from sweeps.corruptions import SWEEP, Options, make_plan
from tests.fixtures.processes import Tracked, processes_called, wait_for
from tests.sweeps.conftest import Run
from tests.sweeps.driver import finish, start
from tests.sweeps.shown import unexpected

SCRIPT = "sweeps/corruptions.py"
OPTIONS = ("--corruptions", "fog", "jpeg_compression", "--encoders", "tiny-clip")
SAMPLES, SHARDS, SEVERITIES = 8, 2, 5


def corrupted(storage: Path) -> list[Path]:
    return sorted(path for name in ("fog", "jpeg") for path in storage.glob(f"records/*-{name}*/part-*.parquet"))


def test_a_killed_worker_loses_no_part_and_the_clean_answers_are_found(
    unbroken: Run, tmp_path: Path, tracked: Tracked
) -> None:
    storage = tmp_path / "results"
    shutil.copytree(unbroken.storage, storage)
    before = {path: path.stat().st_mtime_ns for path in storage.glob("*/*/*") if path.name.startswith(("part", "COMP"))}
    driver = start(str(storage), tracked, *OPTIONS, script=SCRIPT)
    wait_for(lambda: corrupted(storage), 800, "a part of records")
    for worker in processes_called(tracked, "ShardAttacker"):
        worker.kill()
    survived = {path: path.stat().st_mtime_ns for path in corrupted(storage)}
    output = finish(driver)
    assert unexpected(output) == []
    assert {path: path.stat().st_mtime_ns for path in survived} == survived, "a finished part was computed again"
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was there was made anew"
    assert len(corrupted(storage)) == 2 * 2 * SHARDS

    records = load_sweep(str(storage), SWEEP).records
    rows = records[records["kind"] == "corruption"]
    assert len(rows) == 2 * 2 * SAMPLES * SEVERITIES
    clean = records[records["kind"] == "clean"].set_index(["benchmark", "sample_id"])["score"]
    assert len(clean) == 2 * SAMPLES
    assert [clean[key] for key in zip(rows["benchmark"], rows["sample_id"], strict=True)] == list(rows["clean_score"])
    assert rows["error"].isna().all()
    assert sum(pq.read_table(path, columns=["shown_png"])["shown_png"].null_count for path in corrupted(storage)) == (
        2 * 2 * (SAMPLES - 4) * SEVERITIES
    )

    made = {path: path.stat().st_mtime_ns for path in corrupted(storage)}
    again = finish(start(str(storage), tracked, *OPTIONS, script=SCRIPT))
    assert "0 with something to do" in again
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert (storage / "reports/corruptions/index.html").exists()
    assert (storage / "reports/encoder_ablation/index.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": ("fogg",)}, "unknown corruption 'fogg'; did you mean fog"),
        ({"corrupted_at": 16}, "--corrupted-at 16: expected at least 32 pixels"),
        ({"fit": "stretch"}, "--fit stretch: expected inside or squash"),
        ({"samples": 1}, "--samples 1"),
        ({"encoders": ("tiny-clpi",)}, "unknown encoder 'tiny-clpi'; did you mean tiny-clip"),
    ],
)
def test_mistakes_are_named_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(Options(**options))


def test_a_recipe_says_at_which_size_and_precision() -> None:
    tiny, paper = (make_plan(Options(preset=name)).grid.conditions for name in ("tiny", "paper"))
    assert [len(tiny), len(paper)] == [16, 16]
    assert {condition.side for condition in tiny[1:]} == {64}  # type: ignore[attr-defined]
    assert {condition.side for condition in paper[1:]} == {336}  # type: ignore[attr-defined]
    assert {condition.precision for condition in paper} == {"float16"}  # type: ignore[attr-defined]
    (fog,) = make_plan(Options(corruptions=("fog", "fog"), corrupted_at=224, fit="squash")).grid.conditions[1:]
    assert fog.label == "fog-v1[224px,squash]"
