"""The benchmark of smallest budgets, on a toy: who stands, and what is counted."""

import dataclasses

import numpy as np

from benchmarks.smallest_budgets import Attack, Options, cost_row, fixed, interval, joined, rows_of, searched
from rllava.attacks.protocols import Protocol
from rllava.attacks.rounds import BEST, CLEAN, SAME, Round, reference
from rllava.data.benchmarks import BENCHMARKS
from tests.attacks.toy import COUNT, cross_entropy, judge, victims

PROTOCOL = Protocol(
    "toy",
    1,
    (
        (
            "short_answer",
            (Round("label0", 4, "float32", CLEAN, reference(0)), Round("from-best", 4, "float32", BEST, SAME)),
        ),
    ),
)
OPTIONS = Options(budgets=(1.0, 2.0, 4.0, 8.0))


def attack() -> Attack:
    attacked = victims()
    floors = [0.5 * score for score in attacked.scores]
    arguments = {
        "answer_loss": cross_entropy, "judge": judge, "dropped": lambda score: score <= 0, "in_flight": COUNT,
    }  # fmt: skip
    return Attack(PROTOCOL, BENCHMARKS.get("easy_vqa"), dataclasses.replace(attacked, floors=floors), arguments)


def test_sides_agree_on_who_stands_and_count_what_they_do() -> None:
    search = searched(attack(), OPTIONS)
    alone, rising = (fixed(attack(), OPTIONS, flag) for flag in (False, True))
    assert search.standing_BE.shape == alone.standing_BE.shape == (COUNT, 4)
    assert (rising.standing_BE == np.logical_and.accumulate(alone.standing_BE, axis=1)).all()
    assert (np.diff(search.standing_BE.astype(int), axis=1) <= 0).all()
    assert 0 < rising.standing_BE.sum() < rising.standing_BE.size, "all samples are alike"
    # Each alone: 4 steps where the first round beats, 8 where it does not or the second one does.
    assert 4 * 4 * COUNT <= alone.cost.steps <= 4 * 8 * COUNT
    assert rising.cost.steps < alone.cost.steps
    assert alone.cost.answers * 4 == alone.cost.steps
    assert alone.cost.forwards == alone.cost.steps + alone.cost.answers
    whole = joined([search, search])
    assert whole.cost.steps == 2 * search.cost.steps
    assert whole.standing_BE.shape == (2 * COUNT, 4)
    rows = rows_of("toy", search, alone, rising, OPTIONS.budgets)
    assert [row[0] for row in rows] == ["toy 1/255", "toy 2/255", "toy 4/255", "toy 8/255"]
    for column, row in enumerate(rows):
        only = int(row[5]) - int(row[6])
        assert only == rising.standing_BE[:, column].sum() - search.standing_BE[:, column].sum()
    assert f"{search.cost.steps:,} steps" in cost_row("toy", [search])


def test_an_interval_is_in_percent() -> None:
    mean, low, high = interval(np.array([True] * 30 + [False] * 10))
    assert mean == 75.0
    assert 55 < low < 75 < high < 90
