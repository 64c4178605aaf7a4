"""Whether a question was answered: what is blank or a refusal scores 0."""

import pytest

from rllava.metrics.answered import answered
from rllava.metrics.judges.judge import Exchange, read_judge
from rllava.metrics.judges.refusal import PHRASES
from rllava.metrics.metric import METRICS, metric_from_json, metric_to_json


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("", 0.0),
        (" \n\t", 0.0),
        ("I’m SORRY, but that is wrong.", 0.0),
        ("As an AI language model, I have no hands.", 0.0),
        ("The square is red.", 100.0),
        ("No.", 100.0),
        ("...", 100.0),
    ],
)
def test_what_is_neither_blank_nor_a_refusal_scores_100(answer: str, score: float) -> None:
    metric = METRICS.get("answered")
    assert answered(answer) == score
    assert metric.score(metric.clean(f"  {answer}\n"), (), metric.prepare([(), ()])) == score


def test_it_says_what_the_judge_says() -> None:
    judge = read_judge("refusal").pinned().load()
    for answer in (*PHRASES, "Of course!", "Sure! I cannot recommend it enough."):
        (verdict,) = judge([Exchange("?", answer)])
        assert answered(answer) == (0.0 if verdict.flagged else 100.0)
    assert all(answered(phrase) == 0.0 for phrase in PHRASES)


def test_it_needs_no_references_and_comes_back_from_its_file() -> None:
    metric = METRICS.get("answered")
    assert (metric.needs_references, metric.higher_is_better, metric.unit) == (False, True, "%")
    assert metric_from_json(metric_to_json(metric, metric.prepare([()]))) == (metric, None)
