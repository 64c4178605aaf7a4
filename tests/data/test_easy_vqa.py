"""The embedded data set: what is in it, what is derived from it, and that its splits stay apart."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from rllava.data.corpus import easy_corpus
from rllava.data.easy_vqa_source import (
    COLOURS,
    KINDS,
    SHAPES,
    Question,
    derive_attributes,
    draw,
    easy_images,
    shuffled,
)
from rllava.data.pairs import CAPTION_TEMPLATES, caption_of, captions_of, easy_pairs, labelled_images
from rllava.errors import UserError
from rllava.model.conversation import TEMPLATES, pieces

DRAWN = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}


@pytest.mark.parametrize(
    ("split", "images", "labelled", "questions"), [("train", 4000, 3578, 38575), ("test", 1000, 888, 9673)]
)
def test_sizes(split: str, images: int, labelled: int, questions: int) -> None:
    assert len(easy_images(split)) == images
    assert len(labelled_images(split)) == labelled
    assert sum(len(image.questions) for image in easy_images(split)) == questions
    assert len({image.sample_id for image in easy_images(split)}) == images


def test_kinds_of_questions() -> None:
    kinds = Counter(question.kind for image in easy_images("test") for question in image.questions)
    assert kinds == {"yes/no": 7136, "colour": 1280, "shape": 1257}
    assert set(kinds) == set(KINDS)


def test_unknown_split_is_a_user_error() -> None:
    with pytest.raises(UserError, match="no split 'val'; use one of train, test"):
        easy_images("val")


def test_no_image_is_in_both_splits() -> None:
    files = {split: {image.png for image in easy_images(split)} for split in ("train", "test")}
    assert not files["train"] & files["test"]
    pixels = {split: {image.tobytes() for image in easy_pairs(split).images} for split in ("train", "test")}
    assert not pixels["train"] & pixels["test"]
    assert len(files["test"]) == 1000


@pytest.mark.parametrize(
    ("questions", "attributes"),
    [
        ([("what is the blue shape?", "circle")], ("blue", "circle")),
        ([("what color is the circle?", "red")], ("red", "circle")),
        ([("what color is the shape?", "red")], ("red", None)),
        ([("is there a teal shape?", "yes")], ("teal", None)),
        ([("is there not a circle?", "yes"), ("is no triangle present?", "yes")], (None, "rectangle")),
        ([("is there not a circle?", "no")], (None, "circle")),
        ([("is a circle present?", "no")], (None, None)),
        ([("is a circle present?", "yes"), ("is there a triangle?", "yes")], (None, None)),
        ([], (None, None)),
    ],
)
def test_attributes_follow_from_answers(
    questions: list[tuple[str, str]], attributes: tuple[str | None, str | None]
) -> None:
    assert derive_attributes([Question(*question) for question in questions]) == attributes


def test_derived_colours_are_the_colours_drawn() -> None:
    pairs = easy_pairs("test")
    for pixels, index in zip(pairs.images, pairs.colour_index, strict=True):
        colour = np.array(DRAWN[COLOURS[index]])
        assert (np.abs(pixels.astype(int) - colour).max(axis=-1) <= 8).sum() >= 10


def test_pairs_hold_every_class_about_equally_often() -> None:
    pairs = easy_pairs("train")
    assert pairs.images.shape == (3578, 64, 64, 3)
    assert pairs.images.dtype == np.uint8
    classes = Counter(zip(pairs.colour_index.tolist(), pairs.shape_index.tolist(), strict=True))
    assert len(classes) == len(COLOURS) * len(SHAPES)
    assert min(classes.values()) > 0.7 * 3578 / 24


def test_captions_are_different_and_fixed() -> None:
    captions = captions_of("test-0000", "red", "triangle", 3)
    assert captions == captions_of("test-0000", "red", "triangle", 3)
    assert len(set(captions)) == 3
    assert captions != captions_of("test-0001", "red", "triangle", 3)
    assert captions[:1] == captions_of("test-0000", "red", "triangle", 1)
    assert len(set(captions_of("x", "red", "circle", 99))) == len(CAPTION_TEMPLATES) == 8
    assert caption_of("red", "circle") == "A red circle."


def test_all_templates_are_used_about_equally_often() -> None:
    counts = Counter(captions_of(f"id-{index}", "red", "circle", 1)[0] for index in range(800))
    assert len(counts) == 8
    assert min(counts.values()) > 60


def test_draws_are_uniform_and_do_not_depend_on_order() -> None:
    counts = Counter(draw(f"key {index}", 3) for index in range(3000))
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 900
    assert shuffled(["a", "b", "c", "d"], "key") == shuffled(["d", "b", "a", "c"], "key")
    assert len({tuple(shuffled(["a", "b", "c", "d"], str(index))) for index in range(200)}) == 24


def test_corpus_is_fixed_and_holds_every_word_of_the_benchmarks() -> None:
    lines = easy_corpus()
    assert lines == easy_corpus()
    assert 50_000 < len(lines) < 60_000
    texts = [line.prompt + line.text for line in lines]
    assert all(text.strip() == text and text for text in texts)
    words = {word for text in texts for word in text.split()}
    for image in easy_images("test"):
        for question in image.questions:
            assert {*question.text.split(), question.answer} <= words
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert digest == "8677ae077f02a51296523b2b5a7c6c53ac7919ac9e968c7729680fca04034d3e"


def test_conversations_of_the_corpus_have_the_form_that_training_uses() -> None:
    conversations = [line for line in easy_corpus() if line.prompt]
    for line in conversations[::500]:
        asked = line.prompt.removeprefix("USER: ").removesuffix(" ASSISTANT:")
        laid_out = pieces(TEMPLATES.get("vicuna_v1_short"), [(asked, line.text.strip())])
        assert [(piece.text, piece.labelled) for piece in laid_out] == [(line.prompt, False), (line.text, True)]
