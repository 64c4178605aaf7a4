"""A sweep that asks the prompts of a file: what is missing, and what its benchmark is called."""

import dataclasses
from pathlib import Path

import pytest

from rllava.data.benchmarks import BENCHMARKS, BenchmarkSpec
from rllava.data.prompts import prompts_benchmark
from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.tasks.continuation import INSTRUCTION_PROMPT, Continuation
from rllava.tasks.task import Decoding
from sweeps.encoder_ablation import Options, make_plan
from sweeps.plan import Plan, check_inputs, missing_inputs, prepare_data

GREEDY = Continuation(INSTRUCTION_PROMPT, Decoding(8))


def plan_of(tmp_path: Path, *benchmarks: BenchmarkSpec) -> Plan:
    """Of clean images alone."""
    options = Options(preset="smoke", encoders=("tiny-clip",), budgets=("0",), storage=str(tmp_path / "results"))
    plan = make_plan(options)
    return dataclasses.replace(plan, grid=dataclasses.replace(plan.grid, benchmarks=benchmarks))


def test_a_plan_means_one_content_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Say no.\nSay yes.\n")
    plan = check_inputs(plan_of(tmp_path, prompts_benchmark(path, GREEDY), BENCHMARKS.get("easy_vqa")))
    mine, easy = plan.grid.benchmarks
    assert (mine.name, mine.samples, plan.samples(mine)) == ("mine", 2, 2)
    assert easy == BENCHMARKS.get("easy_vqa")
    assert {spec.benchmark.name for spec, _ in plan.evaluations(plan.grid.candidates[0])} == {"mine", "easy_vqa"}
    path.write_text("Say no.\n")
    (other, _) = check_inputs(plan_of(tmp_path, prompts_benchmark(path, GREEDY), easy)).grid.benchmarks
    assert fingerprint(other) != fingerprint(mine)


def test_a_missing_file_is_told_with_all_other_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLLAVA_DATA", str(tmp_path / "data"))
    mine = prompts_benchmark(tmp_path / "mine.txt", GREEDY)
    okvqa = dataclasses.replace(BENCHMARKS.get("okvqa"), samples=2)
    with pytest.raises(UserError, match=r"^4 inputs are missing: from OK-VQA") as caught:
        check_inputs(plan_of(tmp_path, okvqa, mine))
    assert f"from the command line: {tmp_path}/mine.txt (prompts of benchmark mine)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shards_that_are_built_need_no_file_if_the_hash_is_known(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Say no.\nSay yes.\n")
    named = plan_of(tmp_path, prompts_benchmark(path, GREEDY))
    pinned = check_inputs(named)
    prepare_data(pinned, lambda _: None)
    path.unlink()
    assert missing_inputs(pinned) == []
    assert check_inputs(pinned).grid == pinned.grid
    assert [item.where for item in missing_inputs(named)] == [str(path)]
    elsewhere = dataclasses.replace(pinned, storage=str(tmp_path / "elsewhere"))
    assert [item.where for item in missing_inputs(elsewhere)] == [str(path)]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "mine.txt", tmp_path / "b" / "mine.csv"]
    for path in paths:
        path.parent.mkdir()
        path.write_text("Say no.\n")
    both = [prompts_benchmark(path, GREEDY) for path in paths]
    with pytest.raises(
        UserError, match=r"^2 benchmarks would be called mine in the records \(.*\); rename a file$"
    ) as e:
        check_inputs(plan_of(tmp_path, *both))
    assert all(str(path) in str(e.value) for path in paths)
