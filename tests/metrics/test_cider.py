"""CIDEr against pycocoevalcap 1.2, whose tokens and scores of our own captions are in golden/metrics/cider.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllava.errors import UserError
from rllava.metrics.cider import DocumentFrequencies, cider, document_frequencies
from rllava.metrics.ptb import ptb_tokenize

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden/metrics/cider.json").read_text("utf-8"))
IMAGES: list[dict[str, Any]] = GOLDEN["images"]


@pytest.fixture(scope="module")
def frequencies() -> DocumentFrequencies:
    return document_frequencies([image["references"] for image in IMAGES])


@pytest.mark.parametrize("image", IMAGES, ids=[f"{index:02d}" for index in range(len(IMAGES))])
def test_tokens_and_score_of_an_image_are_the_reference_implementations(
    image: dict[str, Any], frequencies: DocumentFrequencies
) -> None:
    assert ptb_tokenize(image["prediction"]) == image["prediction_tokens"]
    assert [ptb_tokenize(reference) for reference in image["references"]] == image["reference_tokens"]
    score = cider(image["prediction"], image["references"], frequencies)
    assert score == pytest.approx(image["cider"], abs=1e-9)


def test_corpus_score_is_the_mean_of_samples(frequencies: DocumentFrequencies) -> None:
    scores = [cider(image["prediction"], image["references"], frequencies) for image in IMAGES]
    assert sum(scores) / len(scores) == pytest.approx(GOLDEN["corpus"], abs=1e-9)


def test_state_survives_json_and_equal_states_give_equal_text(frequencies: DocumentFrequencies) -> None:
    again = DocumentFrequencies.from_json(frequencies.to_json())
    assert again == frequencies
    assert json.dumps(again.to_json()) == json.dumps(frequencies.to_json())
    backwards = document_frequencies([image["references"][::-1] for image in reversed(IMAGES)])
    assert json.dumps(backwards.to_json()) == json.dumps(frequencies.to_json())


@pytest.mark.parametrize("fields", [{}, [], {"documents": 2}, {"documents": 2, "counts": []}, "no object", None])
def test_damaged_state_is_a_value_error(fields: Any) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        DocumentFrequencies.from_json(fields)


def test_an_ngram_counts_once_per_image() -> None:
    frequencies = document_frequencies([["a dog a dog", "a dog"], ["a cat"]])
    assert frequencies.documents == 2
    assert frequencies.counts["a"] == 2
    assert frequencies.counts["a dog"] == 1


def test_one_image_has_no_cider() -> None:
    assert GOLDEN["one_image"] == 0.0
    with pytest.raises(UserError, match="at least 2 samples"):
        document_frequencies([["a dog", "the dog"]])
    with pytest.raises(UserError, match="over 1 image"):
        document_frequencies([["a dog"], []])


def test_images_without_references_are_no_documents() -> None:
    assert document_frequencies([["a dog"], [], ["a cat"]]) == document_frequencies([["a dog"], ["a cat"]])


@pytest.mark.parametrize("prediction", ["", "   ", "\n", ".", "...,!", "😀"])
def test_a_caption_without_words_scores_zero(prediction: str, frequencies: DocumentFrequencies) -> None:
    assert cider(prediction, IMAGES[0]["references"], frequencies) == 0.0


def test_no_references_is_an_error(frequencies: DocumentFrequencies) -> None:
    with pytest.raises(ValueError, match="no references"):
        cider("a dog", [], frequencies)


def test_the_only_reference_itself_scores_1000(frequencies: DocumentFrequencies) -> None:
    assert cider("Zebras graze near the river.", ["zebras graze near the river"], frequencies) == pytest.approx(1000)


@given(st.text(max_size=60), st.text(max_size=60))
def test_scores_are_in_range_for_any_text(prediction: str, reference: str) -> None:
    frequencies = document_frequencies([[reference], ["a dog on a beach"], ["another caption"]])
    assert 0.0 <= cider(prediction, [reference], frequencies) <= 1000.0 + 1e-6
