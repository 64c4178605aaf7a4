"""A replayed search pays what the grid says, a training once, and finds the whole front once all is tried."""

import csv
from pathlib import Path

import pytest

from benchmarks.search_grid import COLUMNS, PREFIXES
from benchmarks.search_replay import SETTINGS, Table, at_cost, read_table, replay
from rllava.errors import UserError

ROWS = (
    # trained, used, projector, rate, steps, training; clean and robust at the last rung
    ("a", "a", "linear", "0.001", "60", 10.0, 80.0, 10.0),
    ("a", "b", "linear", "0.001", "60", 10.0, 60.0, 50.0),
    ("b", "a", "linear", "0.001", "60", 20.0, 30.0, 20.0),
    ("b", "b", "linear", "0.001", "60", 20.0, 50.0, 70.0),
)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    path = tmp_path / "grid.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for *settings, training, clean, robust in ROWS:
            writer.writerow([*settings, training, *(x for n in PREFIXES for x in (clean, robust, n / PREFIXES[-1]))])
    return read_table(path)


def test_a_search_of_everything_costs_what_the_grid_does(table: Table) -> None:
    assert table.whole_cost == 10 + 20 + 4
    for rungs in ((PREFIXES[-1],), (PREFIXES[0], PREFIXES[-1])):
        course = replay(table, "tpe", rungs, 0, 1e9)
        if len(rungs) == 1:
            assert course[-1] == (table.whole_cost, 1.0)
        assert [share for _, share in course] == sorted(share for _, share in course)


def test_shares_are_of_the_volume_above_the_worst(table: Table) -> None:
    # Above (30, 10): boxes of 50 x 0, 30 x 40 and 20 x 60.
    assert table.share([1]) == pytest.approx(30 * 40 / (20 * 60 + 10 * 40))
    assert table.share([0]) == 0.0
    assert table.share(range(4)) == 1.0


def test_what_ends_later_does_not_count() -> None:
    assert at_cost([(10.0, 0.4), (21.0, 0.9)], 20.0) == 0.4
    assert at_cost([(10.0, 0.4)], 5.0) == 0.0


def test_settings_are_the_grids(table: Table) -> None:
    assert [setting.name for setting in table.settings] == list(SETTINGS)
    assert table.refusal({"trained": "a", "used": "c", "projector": "linear", "rate": "0.001", "steps": "60"})


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; run python -m benchmarks\.search_grid"):
        read_table(tmp_path / "none.csv")
