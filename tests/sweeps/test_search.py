"""A search from its options to its report; killed at any moment, the same command goes on to the same proposals."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.search import analyse_search, load_search
from rllava.errors import UserError
from rllava.search.history import Log
from rllava.search.rungs import Rung
from rllava.store import Store
from sweeps.search_options import make_search
from sweeps.search_runner import open_study
from sweeps.search_settings import Options, check_search_numbers
from sweeps.searching import front_plan, seeded
from tests.fixtures.processes import Tracked, processes_called, wait_for
from tests.sweeps.driver import finish, records, start
from tests.sweeps.shown import TIME, unexpected

TRIAL = r"\d+\.\d+:[\w.+@:=,-]+"
LINES = (
    rf"{TIME}search: \d+ configurations known; .*",
    rf"{TIME}{TRIAL} +(starting training workers|training stage \d: step|found in storage|evaluating: ).*",
    rf"{TIME}{TRIAL} +(started again|training goes on from its last checkpoint|waiting for) ?.*",
    rf"{TIME}{TRIAL}  finished: clean [\d.]+, robust@8 [\d.]+; \d+ of \d+ trials, .* spent; rung \d: front of .*",
    r"search: the front of \d+ once more, on all samples",
    rf"{TIME}search_front-0: .*",
    rf"{TIME}[\w.+@:=,-]+ +(done|evaluating|training|starting|found) ?.*",
    r"(on the front|[\w.+@:=,-]+) +\|.*",
    r"\d+ trials of \d+ configurations, .*",
    r"p\(front\): .*",
    r"search: +\S+ +took \d+ min \d+ s",
)


def options(**changed: Any) -> Options:
    return replace(Options(preset="smoke", benchmarks=("easy_vqa",)), **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"objectives": ("clean",)}, "--objectives clean: give two or three"),
        ({"objectives": ("clean", "robust@8"), "budgets": ("0", "4")}, "--budgets: add 8, which --objectives ask for"),
        ({"objectives": ("clean", "jailbreak@16")}, "no step of preset smoke gives it .* try --preset manners"),
        ({"encoders": ("tiny-clip+clip-l-336",)}, r"--encoders: nothing in this space can be built \(.*token counts"),
        ({"encoders": ("tiny-clpi",)}, r"nothing in this space can be built \(unknown encoder 'tiny-clpi'; did you"),
        ({"projectors": ("mlpx",)}, "nothing in this space can be built .*unknown projector 'mlpx'"),
        ({"language_models": ("tiny-lama",)}, "unknown language model 'tiny-lama'"),
        ({"sampler": "tep"}, "unknown sampler 'tep'; did you mean tpe"),
        ({"rungs": (4, 16)}, "--rungs 16: there are 8 samples"),
        ({"rungs": (4, 8), "rung_steps": (1.0,)}, "--rung-steps 1: expected one share for each of the 2 --rungs"),
    ],
)
def test_what_cannot_be_searched_is_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_search(options(**changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_trials": 0}, "--max-trials 0: expected at least 1"),
        ({"max_hours": 0.0}, "--max-hours 0: expected a number above 0"),
        ({"one_in": 1}, "--one-in 1: expected at least 2"),
        ({"seeds": (0, 1)}, "--seeds: a search trains with one"),
        ({"final_seeds": (0,)}, "--final-seeds: the search itself trains with 0"),
        ({"first_samples": 4}, "--first-samples: a search takes as many as --rungs say"),
        ({"name": "a/b"}, "--name a/b: expected letters"),
    ],
)
def test_senseless_numbers_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_search_numbers(options(**changed))


def test_a_study_of_another_space_in_the_same_storage_is_refused(tmp_path: Path) -> None:
    storage = str(tmp_path)
    open_study(make_search(options(storage=storage)))
    open_study(make_search(options(storage=storage, sampler_seed=1, max_trials=9, sampler="random")))
    with pytest.raises(UserError, match="that differs in conditions, objectives, rungs; give this one another --name"):
        open_study(make_search(options(storage=storage, objectives=("clean", "parameters"), rungs=(4,))))
    open_study(make_search(options(storage=storage, rungs=(4,), name="another")))


def test_a_smaller_rung_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    search = make_search(options(storage=str(tmp_path), rungs=(4, 8)))
    assert search.rungs == (Rung(4), Rung(8))
    configuration = next(search.space.points(search.space.usual()))
    small, large = (search.plan_of(configuration, rung) for rung in (0, 1))
    (candidate,) = small.grid.candidates
    assert small.tasks() == large.tasks(), "the same artifacts, of which more parts are asked for"
    assert [small.shards(b) for b in small.grid.benchmarks] == [1]
    assert [large.shards(b) for b in large.grid.benchmarks] == [2]
    shorter = make_search(options(storage=str(tmp_path), rungs=(4, 8), rung_steps=(0.5, 1.0)))
    half, whole = (shorter.plan_of(configuration, rung).model(candidate)[1] for rung in (0, 1))
    assert half == whole
    models = [shorter.plan_of(configuration, rung).grid.candidates[0].model for rung in (0, 1)]
    assert models[0] != models[1], "a shorter training is one of its own"


def test_parameters_and_hours_are_objectives_without_an_attack(tmp_path: Path) -> None:
    search = make_search(options(storage=str(tmp_path), objectives=("clean", "parameters", "gpu_hours")))
    assert [condition.kind for condition in search.plan.grid.conditions] == ["clean"]
    assert [column.per_sample for column in search.columns] == [True, False, False]


def events(storage: str) -> list[Any]:
    return Log(Store(storage), "search", 0).read()


def outcomes(storage: str) -> dict[tuple[int, int], tuple[float, ...]]:
    return {(event.number, event.rung): event.values for event in events(storage) if event.what == "finished"}


@pytest.mark.processes
def test_a_search_killed_in_every_way_goes_on(tmp_path: Path, tracked: Tracked) -> None:
    """That it proposes what an unbroken one does is in tests/search/test_study.py, that steps give the same bits in
    test_kills.py."""
    storage = str(tmp_path / "results")
    given = ("--benchmarks", "easy_vqa", "--max-trials", "3", "--one-in", "2", "--trials", "1")
    driver = start(storage, tracked, *given, script="sweeps/search.py")
    wait_for(lambda: list(Path(storage).glob("models/*/ray-train/checkpoint*")), 800, "a training checkpoint")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    tracked.assert_gone()
    before = events(storage)
    assert [event.what for event in before] == ["proposed", "begun"]

    driver = start(storage, tracked, *given, script="sweeps/search.py")
    wait_for(lambda: processes_called(tracked, "RayTrainWorker"), 800, "a training worker")[0].kill()
    wait_for(lambda: len(outcomes(storage)) == 1, 800, "the first trial")
    wait_for(lambda: processes_called(tracked, "ImplicitFunc"), 800, "a trial")[0].kill()
    assert unexpected(finish(driver), LINES) == []
    assert events(storage)[:2] == before
    proposed = [event for event in events(storage) if event.what == "proposed"]
    assert len({json.dumps(event.configuration, sort_keys=True) for event in proposed}) == 2, "nothing is tried twice"
    assert {rung for _, rung in outcomes(storage)} == {0, 1}, "two configurations, the better of which went on"
    assert len(outcomes(storage)) == 3
    scores = [t.column("score").null_count for t in records(storage).values()]
    assert set(scores) == {0}

    statistics = analyse_search(load_search(storage))
    assert len(statistics.fresh) == len(load_search(storage).run["front"])
    assert set(statistics.fresh["samples"]) == {4}

    # Another study of the same storage finds what this one has made.
    other = make_search(options(storage=storage, name="another", max_trials=1))
    study = open_study(other)
    assert seeded(other, study) >= 1
    (best,) = {number for number, rung in outcomes(storage) if rung == 1}
    assert outcomes(storage)[best, 1] in {tuple(values) for values in study.history.finished[1].values()}
    assert study.history.spent == 0.0
    assert front_plan(other, study).grid.candidates
