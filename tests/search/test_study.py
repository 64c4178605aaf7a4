"""What a search does next: promotions, proposals, budgets; and that its state is what lies in storage."""

from pathlib import Path

import pytest

from rllava.errors import UserError
from rllava.recipes import PRESETS
from rllava.search.history import Event, History, Limits, Log, Study
from rllava.search.objectives import Objective, read_objectives
from rllava.search.rungs import Rung, check_rungs, to_promote
from rllava.search.sampling import SAMPLERS, STARTUP
from rllava.search.space import SearchSpace, Space, StageSpace
from rllava.store import Store

SPACE = SearchSpace(
    Space(
        encoders=("tiny-clip", "tiny-fare4", "tiny-advxl"), ensembles=True, plugged=True,
        projectors=("linear", "mlp2x_gelu"), instruct=StageSpace(rate=(1e-4, 1e-2)),
    ),
    PRESETS.get("tiny").model,
    (),
)  # fmt: skip
RUNGS = (Rung(16, 0.5), Rung(32))


def study(
    limits: Limits, sampler: str = "tpe", seed: int = 0, log: Log | None = None, space: SearchSpace = SPACE
) -> Study:
    return Study(space, History(len(RUNGS), (1.0, 1.0)), RUNGS, limits, sampler, seed, log)


def values(found: Study, number: int, rung: int) -> tuple[float, float]:
    """Scores that a configuration has here: a projector's and an encoder's share, and something of the rate."""
    chosen = found.history.proposed[number].configuration
    clean = 10.0 * (chosen["projector"] == "linear") + 1e3 * float(chosen["instruct_rate"]) + rung
    return clean, 5.0 * (chosen["encoders"] == "tiny-advxl") - clean / 3


def run(found: Study, most: int = 1000) -> list[tuple[int, int]]:
    """One trial at a time, at most so many."""
    done = []
    while len(done) < most and (trial := found.next()) is not None:
        found.happened(Event("begun", *trial))
        found.happened(Event("finished", *trial, values=values(found, *trial), hours=0.5))
        done.append(trial)
    return done


def test_one_in_three_goes_on_the_best_first_and_nobody_twice() -> None:
    points = {0: (1.0, 1.0), 1: (3.0, 3.0), 2: (0.0, 0.0)}
    assert to_promote([points, {}], set(), 3) == (1, 1)
    assert to_promote([points, {}], {(1, 1)}, 3) is None
    assert to_promote([dict(list(points.items())[:2]), {}], set(), 3) is None
    six = points | {3: (2.0, 4.0), 4: (0.5, 0.5), 5: (0.1, 0.1)}
    assert to_promote([six, {}], {(1, 1)}, 3) == (3, 1), "neither of two on the front dominates the other"
    thrice = [six, {1: (1.0, 1.0), 3: (2.0, 2.0), 0: (0.0, 0.0)}, {}]
    assert to_promote(thrice, {(1, 1), (3, 1), (0, 1)}, 3) == (3, 2), "the largest rung comes first"


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_search_ends_at_its_trials_and_repeats(sampler: str) -> None:
    found, again, other = (study(Limits(trials=16), sampler, seed) for seed in (0, 0, 1))
    trials = run(found)
    assert len(trials) == 16
    assert {rung for _, rung in trials} == {0, 1}
    assert run(again) == trials
    assert again.history.proposed == found.history.proposed
    run(other)
    assert other.history.proposed != found.history.proposed
    chosen = [event.configuration for event in found.history.proposed]
    assert all(SPACE.refusal(configuration) is None for configuration in chosen)
    assert len({repr(configuration) for configuration in chosen}) == len(chosen)


def test_a_search_ends_at_its_hours() -> None:
    found = study(Limits(hours=2.0))
    assert len(run(found)) == 4
    assert found.history.spent == 2.0


def test_a_finite_space_is_searched_to_its_end() -> None:
    small = SearchSpace(Space(encoders=("tiny-clip", "tiny-advxl"), plugged=True), PRESETS.get("tiny").model, ())
    found = Study(small, History(1, (1.0, -1.0)), (Rung(8),), Limits(), "tpe", 0)
    while (trial := found.next()) is not None:
        found.happened(Event("begun", *trial))
        found.happened(Event("finished", *trial, values=(float(trial[0]), 1.0), hours=0.1))
    assert len(found.history.proposed) == len(list(small.points())) == 4
    assert found.history.front() == [3]


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("killed_after", [1, 5, 13])
def test_whoever_reads_the_events_goes_on_as_if_nothing_had_happened(
    sampler: str, killed_after: int, tmp_path: Path
) -> None:
    limits = Limits(trials=20)
    whole = study(limits, sampler, log=Log(Store(str(tmp_path / "whole")), "s", 0))
    trials = run(whole)
    store = Store(str(tmp_path / "killed"))
    first = study(limits, sampler, log=Log(store, "s", 0))
    run(first, killed_after)
    begun = first.next()  # killed while this one runs
    assert begun is not None
    first.happened(Event("begun", *begun, hours=0.25))

    second = study(limits, sampler, log=Log(store, "s", 0))
    second.resume()
    assert second.waiting == [begun]
    assert run(second) == trials[killed_after:]
    assert [e.configuration for e in second.history.proposed] == [e.configuration for e in whole.history.proposed]
    assert second.history.spent == whole.history.spent - 0.25, "what an earlier process left of it was there before"


def test_what_failed_is_tried_again_by_the_same_command_and_what_was_refused_is_not(tmp_path: Path) -> None:
    log = Log(Store(str(tmp_path)), "s", 0)
    found = study(Limits(trials=3), log=log)
    for what in ("failed", "refused", "finished"):
        trial = found.next()
        assert trial is not None
        found.happened(Event("begun", *trial))
        found.happened(Event(what, *trial, values=(1.0, 1.0), reason="its machine was lost"))  # type: ignore[arg-type]
    assert found.next() is None
    assert [found.history.fate(n, 3) for n in range(3)] == [
        "failed: its machine was lost", "refused: its machine was lost", "not among the best 0 of 1 at rung 0",
    ]  # fmt: skip
    again = study(Limits(trials=3), log=Log(log.store, "s", 0))
    again.resume()
    assert run(again) == [(0, 0)]


def test_what_was_proposed_and_not_begun_when_the_search_was_killed_comes_next(tmp_path: Path) -> None:
    limits, store = Limits(trials=12), Store(str(tmp_path / "killed"))
    whole = study(limits, log=Log(Store(str(tmp_path / "whole")), "s", 0))
    trials = run(whole)
    first = study(limits, log=Log(store, "s", 0))
    run(first, 1)
    assert first.next() == (1, 0)  # proposed, and killed before it was begun
    second = study(limits, log=Log(store, "s", 0))
    second.resume()
    assert second.waiting == [(1, 0)]
    assert run(second) == trials[1:]


def test_hours_of_a_failed_trial_are_spent_and_spent_once() -> None:
    found = study(Limits(hours=1.0))
    trial = found.next()
    assert trial is not None
    found.happened(Event("begun", *trial, hours=0.5))
    found.happened(Event("failed", *trial, hours=0.75, reason="out of memory"))
    assert found.history.spent == 0.25
    found.happened(Event("begun", *trial, hours=0.75))
    found.happened(Event("finished", *trial, values=(1.0, 1.0), hours=1.0))
    assert found.history.spent == 0.5


def test_one_that_the_end_kept_from_going_on_is_not_called_worse() -> None:
    found = study(Limits(trials=3))
    run(found)
    fates = [found.history.fate(n, 3) for n in range(3)]
    assert fates.count("among the best 1 of 3 at rung 0; the search ended first") == 1
    assert fates.count("not among the best 1 of 3 at rung 0") == 2


@pytest.mark.parametrize("rate", [(1e-3, 1.02e-3), (1.2345e-3, 1.2345e-3)])
def test_a_range_of_few_values_is_searched_to_its_end(rate: tuple[float, float]) -> None:
    narrow = SearchSpace(
        Space(encoders=("tiny-clip",), instruct=StageSpace(rate=rate)), PRESETS.get("tiny").model, ()
    )  # fmt: skip
    found = Study(narrow, History(1, (1.0, 1.0)), (Rung(8),), Limits(), "random", 0)
    tried = []
    while (trial := found.next()) is not None:
        found.happened(Event("begun", *trial))
        found.happened(Event("finished", *trial, values=(1.0, 1.0)))
        tried.append(float(found.history.proposed[trial[0]].configuration["instruct_rate"]))
    assert sorted(tried) == ([1e-3, 1.01e-3, 1.02e-3] if rate[0] < rate[1] else [rate[0]])


def test_the_sampler_learns_from_one_rung_the_largest_that_enough_have_finished() -> None:
    found = study(Limits(trials=5 * STARTUP))
    run(found)
    counts = [len(points) for points in found.history.finished]
    assert counts[1] >= STARTUP
    assert {seen.point for seen in found.observed() if seen.point} == set(found.history.points(1).values())
    early = study(Limits(trials=STARTUP))
    run(early)
    assert {seen.point for seen in early.observed()} == set(early.history.points(0).values())


def test_a_study_of_another_space_under_the_same_name_is_refused(tmp_path: Path) -> None:
    log = Log(Store(str(tmp_path)), "s", 0)
    log.claim({"space": ("a", "b"), "objectives": ["clean"]}, "tpe")
    Log(log.store, "s", 1).claim({"space": ["a", "b"], "objectives": ["clean"]}, "random")
    with pytest.raises(UserError, match="that differs in space; give this one another --name"):
        Log(log.store, "s", 0).claim({"space": ["a"], "objectives": ["clean"]}, "tpe")


def test_a_seed_goes_on_with_the_sampler_it_was_begun_with(tmp_path: Path) -> None:
    described = {"space": ["a"]}
    for _ in range(2):
        Log(Store(str(tmp_path)), "s", 0).claim(described, "tpe")
    with pytest.raises(UserError, match=r"--sampler random: .* with seed 0 by tpe; .* --sampler tpe"):
        Log(Store(str(tmp_path)), "s", 0).claim(described, "random")


def test_a_damaged_event_is_named(tmp_path: Path) -> None:
    log = Log(Store(str(tmp_path)), "s", 0)
    log.write(Event("proposed", 0, configuration={"encoders": "tiny-clip"}))
    (tmp_path / "searches/s/seed-0/000000.json").write_text("{")
    with pytest.raises(UserError, match=r"000000\.json: no event of a search"):
        log.read()


def test_objectives_have_directions_and_budgets() -> None:
    clean, robust, hours = read_objectives(("clean", "robust@8", "gpu_hours"))
    assert (robust, robust.name, robust.sign) == (Objective("robust", 8.0), "robust@8", 1.0)
    assert (clean.direction, hours.direction) == ("max", "min")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("clean",), "--objectives clean: give two or three different ones"),
        (("clean", "clean"), "give two or three different ones"),
        (("clean", "robust"), r"--objectives robust: write robust@8 \(budget in 1/255\)"),
        (("clean@3", "robust@8"), "--objectives clean@3: write clean"),
        (("clean", "robust@x"), "--objectives robust@x: expected a budget"),
        (("clean", "robusd@8"), "unknown objective 'robusd'; did you mean robust"),
    ],
)
def test_senseless_objectives_are_named(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_objectives(texts)


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        ((), "--rungs: give at least one"),
        ((Rung(32), Rung(16)), "--rungs 32 16: expected each to be larger"),
        ((Rung(16), Rung(16)), "--rungs 16 16: expected each to be larger"),
        ((Rung(16, 0.5),), "--rung-steps: the last rung trains 0.5"),
    ],
)
def test_rungs_that_do_not_rise_are_refused(rungs: tuple[Rung, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_rungs(rungs)
