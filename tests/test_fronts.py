"""Fronts, ranks, crowding and hypervolume, against numbers worked out by hand and by inclusion and exclusion."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rllava.fronts import best_first, crowding, hypervolume, non_dominated, ranks

NAN = float("nan")


def test_ranks_peel_fronts_off() -> None:
    points = np.array([[1, 1], [3, 1], [1, 3], [2, 2], [0, 0], [NAN, 9]])
    assert ranks(points).tolist() == [1, 0, 0, 0, 2, 6]
    assert non_dominated(points).tolist() == [False, True, True, True, False, False]


def test_crowding_is_infinite_at_the_ends_and_counts_neighbours_in_between() -> None:
    # Of the point in the middle: (3 - 0) / 4 of the first objective, (4 - 1) / 4 of the second.
    points = np.array([[0, 4], [1, 2], [3, 1], [4, 0]])
    found = crowding(points)
    assert found[[0, 3]].tolist() == [np.inf, np.inf]
    assert found[1] == pytest.approx(3 / 4 + 3 / 4)
    assert found[2] == pytest.approx(3 / 4 + 2 / 4)


def test_the_best_come_first_by_rank_then_by_loneliness() -> None:
    points = np.array([[0, 0], [0, 10], [4, 5], [5, 4.9], [10, 0], [NAN, 1]])
    order = best_first(points)
    assert set(order[:4]) == {1, 2, 3, 4}
    assert set(order[:2]) == {1, 4}, "the ends of a front are the loneliest"
    assert order[4:] == [0, 5]


def by_inclusion_and_exclusion(points: np.ndarray) -> float:
    total = 0.0
    for size in range(1, len(points) + 1):
        for some in itertools.combinations(points, size):
            total += (-1) ** (size + 1) * float(np.prod(np.min(some, axis=0)))
    return total


@pytest.mark.parametrize("objectives", [2, 3])
@given(data=st.data())
def test_a_hypervolume_is_that_of_the_union_of_boxes(objectives: int, data: st.DataObject) -> None:
    points = data.draw(arrays(np.float64, (5, objectives), elements=st.integers(1, 9).map(float)))
    assert hypervolume(points, np.zeros(objectives)) == pytest.approx(by_inclusion_and_exclusion(points))


def test_what_is_not_above_the_reference_counts_nothing() -> None:
    points = np.array([[2.0, 3.0], [9.0, 0.5], [NAN, 9.0]])
    assert hypervolume(points, np.array([1.0, 1.0])) == 2.0
    assert hypervolume(points[1:], np.array([1.0, 1.0])) == 0.0
