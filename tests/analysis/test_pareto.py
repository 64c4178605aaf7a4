"""The front against brute force, and its probability against a case that can be computed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.bootstrap import Resampling
from analysis.pareto import non_dominated, pareto_front
from analysis.scores import arrange_scores
from analysis.summary import bootstrap_scores, summarise
from rllava.errors import UserError
from tests.analysis.test_summary import grid

points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=10)


def is_dominated(point: tuple[int, int], others: list[tuple[int, int]]) -> bool:
    return any(
        other[0] >= point[0] and other[1] >= point[1] and (other[0] > point[0] or other[1] > point[1])
        for other in others
    )


@settings(max_examples=200)
@given(points)
def test_front_agrees_with_brute_force(values: list[tuple[int, int]]) -> None:
    expected = [not is_dominated(point, values) for point in values]
    assert non_dominated(np.array([values], dtype=float))[0].tolist() == expected


@settings(max_examples=100)
@given(points, st.integers(0, 9))
def test_a_point_without_a_score_neither_is_on_the_front_nor_changes_it(
    values: list[tuple[int, int]], index: int
) -> None:
    with_gap = np.array([[*values, (9.0, np.nan)]], dtype=float)
    front = non_dominated(with_gap)[0]
    assert not front[-1]
    assert front[:-1].tolist() == non_dominated(np.array([values], dtype=float))[0].tolist()


def front_of(cells: dict[tuple[str, str, float], list[float | None]], epsilon: float = 8.0) -> pd.DataFrame:
    scores = arrange_scores(grid(cells))
    resampling = Resampling(draws=4000)
    bootstraps = bootstrap_scores(scores, resampling)
    return pareto_front(scores, bootstraps, summarise(scores, bootstraps, resampling), epsilon).set_index("candidate")


def test_front_of_known_means() -> None:
    front = front_of(
        {
            ("accurate", "vqa", 0.0): [100, 100], ("accurate", "vqa", 8.0): [0, 0],
            ("robust", "vqa", 0.0): [60, 60], ("robust", "vqa", 8.0): [50, 50],
            ("worse", "vqa", 0.0): [60, 60], ("worse", "vqa", 8.0): [40, 40],
        }
    )  # fmt: skip
    assert front["on_front"].to_dict() == {"accurate": True, "robust": True, "worse": False}
    assert front["front_probability"].to_dict() == {"accurate": 1.0, "robust": 1.0, "worse": 0.0}
    assert front.loc["robust", "retained"] == pytest.approx(5 / 6)


def test_front_probability_is_joint_over_candidates() -> None:
    """b equals a but for one of 20 samples on which a is right: b is on the front when that sample is not drawn."""
    shared = [100.0, 0.0] * 9 + [100.0]
    cells = {("a", "vqa", 0.0): [*shared, 100.0], ("b", "vqa", 0.0): [*shared, 0.0]}
    cells |= {
        (name, "vqa", 8.0): [10.0 * value / 100 for value in values] for (name, _, _), values in list(cells.items())
    }
    front = front_of({key: list(values) for key, values in cells.items()})
    assert front.loc["a", "front_probability"] == 1.0
    assert front.loc["b", "front_probability"] == pytest.approx((19 / 20) ** 20, abs=0.03)
    assert not front.loc["b", "on_front"]


def test_front_needs_clean_records() -> None:
    with pytest.raises(UserError, match="no clean answers"):
        front_of({("a", "vqa", 8.0): [1.0]})


def test_front_needs_a_budget_that_was_run() -> None:
    with pytest.raises(UserError, match="ε = 3/255 is not in the results"):
        front_of({("a", "vqa", 0.0): [1.0]}, epsilon=3.0)
