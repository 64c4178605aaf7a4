"""How answers to yes/no questions are read, and the rates over them."""

import pytest

from rllava.errors import UserError
from rllava.metrics.metric import METRICS
from rllava.metrics.yes_no import RATES, YesNoRates, read_exactly, read_leniently, yes_no_rates


@pytest.mark.parametrize(
    ("answer", "leniently", "exactly"),
    [
        ("Yes", "yes", "yes"),
        ("no", "no", "no"),
        (" NO\n", "yes", "no"),  # the published words are No, not and no
        ("No.", "no", None),
        ("No, there is none", "no", None),
        ("There is not. Yes", "no", None),
        ("Yes. There is no dog", "yes", None),  # a second sentence does not count
        ("nothing", "yes", None),
        ("no!", "yes", None),
        ("a dog", "yes", None),
        ("", "yes", None),
    ],
)
def test_answers_are_read_as_llava_and_as_lmms_eval_read_them(answer: str, leniently: str, exactly: str | None) -> None:
    assert read_leniently(answer) == leniently
    assert read_exactly(answer) == exactly


@pytest.mark.parametrize(
    ("metric", "answer", "gold", "score"),
    [
        ("yes_no", "No, it is red", "No", 100.0),
        ("yes_no", "a dog", "yes", 100.0),
        ("yes_no", "a dog", "no", 0.0),
        ("yes_no_exact", "yes", "Yes", 100.0),
        ("yes_no_exact", "a dog", "Yes", 0.0),
        ("yes_no_exact", "a dog", "No", 0.0),
    ],
)
def test_an_answer_scores_all_or_nothing(metric: str, answer: str, gold: str, score: float) -> None:
    own = METRICS.get(metric)
    assert own.score(own.clean(f" {answer}\n"), [gold], own.prepare([[gold], []])) == score
    with pytest.raises(ValueError, match="no reference"):
        own.score(answer, [], None)


def test_references_that_are_neither_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^metrics yes_no .* references maybe; give each sample one reference, yes or"):
        METRICS.get("yes_no").prepare([["Yes"], ["maybe"]])
    with pytest.raises(UserError, match="references yes, yes;"):
        METRICS.get("yes_no_exact").prepare([["yes", "yes"]])


def test_rates_of_a_list_worked_out_by_hand() -> None:
    gold = ["yes"] * 4 + ["no"] * 6
    said = ["yes", "yes", "yes", None, "yes", "no", "no", "no", None, "no"]
    found = yes_no_rates(said, gold)
    # 3 hits among 4 "yes" and 4 that should be; 7 of 10 are right, since neither is wrong.
    assert found == YesNoRates(accuracy=0.7, precision=0.75, recall=0.75, f1=0.75, yes=0.4)


@pytest.mark.parametrize(
    ("said", "gold", "rates"),
    [
        ([], [], (None, None, None, None, None)),
        (["no", "no"], ["no", "no"], (1.0, None, None, None, 0.0)),
        (["no", "no"], ["yes", "no"], (0.5, None, 0.0, 0.0, 0.0)),
        (["yes", "yes"], ["no", "no"], (0.0, 0.0, None, 0.0, 1.0)),
        (["yes", "no"], ["no", "yes"], (0.0, 0.0, 0.0, 0.0, 0.5)),
    ],
)
def test_what_is_undefined_is_none(said: list[str], gold: list[str], rates: tuple[float | None, ...]) -> None:
    found = yes_no_rates(said, gold)
    assert tuple(getattr(found, name) for name in RATES) == rates


def test_the_harmonic_mean_is_that_of_precision_and_recall() -> None:
    found = yes_no_rates(["yes", "yes", "no", "yes", "no"], ["yes", "no", "yes", "yes", "yes"])
    assert found.precision == 2 / 3
    assert found.recall == 0.5
    assert found.f1 == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
