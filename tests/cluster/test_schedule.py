"""Timetables that can be worked out by hand."""

import pytest

from cluster.node_types import Machinery, NodeType
from cluster.schedule import NoRoomError, Phase, Trial, schedule

SLOT = {"slot": 1.0}
HOLD = {"hold": 1.0}


def machines(
    most: int = 2, there: int = 0, boot_s: float = 100.0, idle_s: float | None = 50.0, kept: int = 0
) -> Machinery:
    head = NodeType("head", HOLD | {"hold": 8.0}, 1, 1, boot_s=0.0, idle_s=None)
    worker = NodeType("worker", {"slot": 2.0}, most, there, boot_s=boot_s, idle_s=idle_s, kept=kept)
    return Machinery((head, worker), "made up", head="head")


def pool(*units: float, workers: int = 8, start_s: float = 0.0) -> Phase:
    return Phase("pool", SLOT, workers, units, start_s=start_s)


def training(seconds: float, workers: int) -> Phase:
    return Phase("training", SLOT, workers, (seconds,), together=True)


def test_units_are_shared_among_workers_that_have_to_come_first() -> None:
    found = schedule([[Trial("a", (pool(*[10.0] * 8),))]], machines(most=2), HOLD, 1)
    assert found.wall_s == 100 + 2 * 10  # two nodes of two slots
    assert found.most_nodes == {"head": 1, "worker": 2}
    assert found.node_hours["worker"] == pytest.approx(2 * 120 / 3600)


def test_a_pool_takes_no_more_workers_than_it_may() -> None:
    found = schedule([[Trial("a", (pool(*[10.0] * 8, workers=1, start_s=5.0),))]], machines(), HOLD, 1)
    assert found.wall_s == 100 + 5 + 80
    assert found.most_nodes["worker"] == 1


def test_a_training_waits_for_all_its_workers() -> None:
    trials = [Trial("a", (training(30.0, 4),)), Trial("b", (training(30.0, 4),))]
    found = schedule([trials], machines(most=2, there=1), HOLD, 2)
    # One node is there and stays empty until the other one comes; then one trial goes after the other.
    assert found.spans["a", "training"] == (100.0, 130.0)
    assert found.spans["b", "training"] == (130.0, 160.0)


def test_phases_follow_one_another_and_levels_too() -> None:
    levels = [[Trial("a", (training(10.0, 2), pool(4.0, 4.0))), Trial("b", (pool(1.0),))], [Trial("c", (pool(1.0),))]]
    found = schedule(levels, machines(most=1, there=1), HOLD, 2)
    # b finds no room while a trains, and takes the first slot after it.
    assert found.spans["a", "training"] == (0.0, 10.0)
    assert found.spans["a", "pool"][1] <= found.spans["c", "pool"][0]
    assert found.wall_s == found.spans["c", "pool"][1]


def test_trials_at_a_time() -> None:
    trials = [Trial(str(number), (pool(10.0),)) for number in range(4)]
    assert schedule([trials], machines(most=2, there=2), HOLD, 4).wall_s == 10
    assert schedule([trials], machines(most=2, there=2), HOLD, 1).wall_s == 40


def test_idle_nodes_are_given_back_and_billed_until_then() -> None:
    second = Phase("long", {"slot": 1.0}, 1, (1000.0,))
    found = schedule([[Trial("a", (training(10.0, 4), second))]], machines(most=2), HOLD, 1)
    assert found.wall_s == 1110
    # One works to the end, the other is idle after 110 s and leaves 50 s later.
    assert found.node_hours["worker"] * 3600 == pytest.approx(1110 + 160)


def test_nodes_that_a_launcher_keeps_are_there_from_the_start_and_stay() -> None:
    second = Phase("long", HOLD, 1, (1000.0,))
    trial = Trial("a", (training(10.0, 2), second))
    kept = schedule([[trial]], machines(most=2, there=1, kept=1), HOLD, 1)
    given_back = schedule([[trial]], machines(most=2, there=1), HOLD, 1)
    assert kept.wall_s == given_back.wall_s == 1010
    assert kept.node_hours["worker"] * 3600 == pytest.approx(1010)
    assert given_back.node_hours["worker"] * 3600 == pytest.approx(10 + 50)


def test_what_fits_nowhere_is_told() -> None:
    with pytest.raises(NoRoomError, match="room for 0"):
        schedule([[Trial("a", (Phase("x", {"slot": 3.0}, 1, (1.0,)),))]], machines(), HOLD, 1)
    with pytest.raises(NoRoomError, match="needs 5 workers"):
        schedule([[Trial("a", (training(1.0, 5),))]], machines(most=2), HOLD, 1)
