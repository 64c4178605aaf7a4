"""Letters of multiple choice are read as the published evaluation reads them."""

import json
from pathlib import Path

import pytest

from rllava.metrics.choice import read_letter
from rllava.metrics.metric import METRICS

GOLDEN = Path(__file__).parents[1] / "golden/metrics/scienceqa.json"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("E", "E"),
        ("F", None),
        ("b", None),
        ("B.", None),
        ("B. ", "B"),
        ("B. red", "B"),
        ("B is red", None),
        ("The answer is C.", "C"),
        ("The answer is C, of course", "C"),
        ("I think. The answer is Z. Yes", "Z"),
        ("The answer is C", None),
        ("The answer is A. The answer is B.", None),
        ("", None),
    ],
)
def test_a_letter_is_read_as_published(answer: str, letter: str | None) -> None:
    assert read_letter(answer) == letter


def test_an_answer_scores_all_or_nothing() -> None:
    metric = METRICS.get("choice_letter")
    assert [metric.score(metric.clean(answer), ["B"], None) for answer in (" B\n", "B. red", "A", "E", "red")] == [
        100.0, 100.0, 0.0, 0.0, 0.0,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no references"):
        metric.score("B", [], None)


@pytest.mark.parametrize(
    ("of", "right", "asked", "unread"), [((False, True), 3155, 4241, 5), ((True,), 1445, 2017, None)]
)
def test_llavas_published_answers_score_as_published(
    of: tuple[bool, ...], right: int, asked: int, unread: int | None
) -> None:
    """LLaVA-1.5-13B's, from a table of counts: answer, right letter, number of choices, whether there is an image."""
    metric = METRICS.get("choice_letter")
    rows = [row for row in json.loads(GOLDEN.read_text()) if row[3] in of]
    assert sum(count for *_, count in rows) == asked
    assert {choices for _, _, choices, _, _ in rows} == {2, 3, 4, 5}
    scores = [count * metric.score(metric.clean(answer), [gold], None) for answer, gold, _, _, count in rows]
    assert sum(scores) == 100.0 * right
    if unread is not None:
        assert sum(count for answer, *_, count in rows if read_letter(answer) is None) == unread
