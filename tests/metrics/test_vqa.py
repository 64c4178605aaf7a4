"""VQA accuracy against the official evaluation, whose results on awkward texts are in golden/metrics/vqa.json."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllava.metrics.cleaning import clean_caption, clean_vqa_answer
from rllava.metrics.vqa import normalise_answer, vqa_accuracy

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden/metrics/vqa.json").read_text("utf-8"))
WORDS = st.text(alphabet="abcdefgz019.,'-/?! ", max_size=24)


@pytest.mark.parametrize(("text", "normalised"), GOLDEN["normalised"])
def test_normalisation_is_the_official_one(text: str, normalised: str) -> None:
    assert normalise_answer(text) == normalised


@pytest.mark.parametrize(("prediction", "answers", "accuracy"), GOLDEN["accuracy"])
def test_accuracy_is_the_official_one(prediction: str, answers: list[str], accuracy: float) -> None:
    assert vqa_accuracy(prediction, answers) == accuracy


@pytest.mark.parametrize(("generated", "answer"), GOLDEN["postprocessed"])
def test_cleaning_is_the_papers(generated: str, answer: str) -> None:
    assert clean_vqa_answer(generated) == answer


@given(WORDS)
def test_normalisation_is_idempotent(text: str) -> None:
    once = normalise_answer(text)
    assert normalise_answer(once) == once


@given(st.text(max_size=40))
def test_normalised_answers_ignore_case_of_ascii_and_outer_space(text: str) -> None:
    assert normalise_answer(f"  {text}\n") == normalise_answer(text)
    assert "  " not in normalise_answer(text)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_accuracy_is_a_percentage_whatever_the_order(
    prediction: str, answers: list[str], chance: random.Random
) -> None:
    accuracy = vqa_accuracy(prediction, answers)
    assert 0.0 <= accuracy <= 100.0
    shuffled = answers.copy()
    chance.shuffle(shuffled)
    assert vqa_accuracy(prediction, shuffled) == pytest.approx(accuracy, abs=0.01)


@given(st.integers(0, 10), st.integers(0, 10))
def test_more_agreeing_annotators_never_score_less(fewer: int, more: int) -> None:
    low, high = sorted((fewer, more))

    def score(agreeing: int) -> float:
        return vqa_accuracy("red", ["red"] * agreeing + ["blue"] * (10 - agreeing))

    assert score(low) <= score(high)


@pytest.mark.parametrize("prediction", ["", " ", "\n\t"])
def test_an_empty_prediction_scores_zero(prediction: str) -> None:
    assert vqa_accuracy(prediction, ["yes"] * 10) == 0.0
    assert vqa_accuracy(prediction, [""] * 10) == 0.0


def test_no_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="no references"):
        vqa_accuracy("yes", [])


@pytest.mark.parametrize(
    ("generated", "caption"),
    [
        (' A "red" circle. ', "A red circle."),
        ("A dog. Output: A cat.", "A dog."),
        ("Output", ""),
        ("", ""),
        ("two, three\nlines", "two, three\nlines"),
    ],
)
def test_captions_end_before_output_and_lose_double_quotes(generated: str, caption: str) -> None:
    assert clean_caption(generated) == caption
