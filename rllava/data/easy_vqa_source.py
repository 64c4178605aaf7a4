"""The embedded data set: easy-VQA (PyPI package ``easy-vqa`` 1.0, MIT), read into memory.

4000 train and 1000 test images of 64 x 64 pixels, each with one coloured shape on a plain, light background, and
9.6 questions per image. Colour and shape of an image are not given; they are derived here from its questions and
answers (see :func:`derive_attributes`): possible for 3578 train and 888 test images, without a contradiction.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import easy_vqa

from rllava.errors import UserError

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
SPLITS = ("train", "test")
KINDS = ("colour", "shape", "yes/no")
"""Kinds of questions: answered by a colour, by a shape, by yes or no."""


@dataclass(frozen=True)
class Question:
    """One question about an image.

    Attributes:
        text: e.g. ``"what color is the shape?"``.
        answer: one of the 13 answers: a colour, a shape, yes or no.
    """

    text: str
    answer: str

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`."""
        if self.answer in COLOURS:
            return "colour"
        return "shape" if self.answer in SHAPES else "yes/no"


@dataclass(frozen=True)
class EasyImage:
    """One image with all its questions.

    Attributes:
        sample_id: ``"<split>-<number, 4 digits>"``, unique over both splits.
        png: the encoded file, as it is in the package.
        questions: in the package's order; at least two.
        colour: one of :data:`COLOURS`, None where the answers do not determine it.
        shape: one of :data:`SHAPES`, None where the answers do not determine it.
    """

    sample_id: str
    png: bytes
    questions: tuple[Question, ...]
    colour: str | None
    shape: str | None


@functools.cache
def easy_images(split: str) -> tuple[EasyImage, ...]:
    """Reads all images of a split of easy-VQA.

    Args:
        split: ``"train"`` or ``"test"``, the package's own splits; no image is in both.

    Returns:
        The images by number: 4000 of ``train``, 1000 of ``test``. A file that is missing has ``png`` of no bytes.

    Raises:
        UserError: if there is no such split.
    """
    if split not in SPLITS:
        raise UserError(f"easy-VQA has no split '{split}'; use one of {', '.join(SPLITS)}")
    train = split == "train"
    texts, answers, numbers = easy_vqa.get_train_questions() if train else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
    questions: dict[int, list[Question]] = {}
    for text, answer, number in zip(texts, answers, numbers, strict=True):
        questions.setdefault(number, []).append(Question(text, answer))
    return tuple(_image(split, number, paths, questions[number]) for number in sorted(questions))


def _image(split: str, number: int, paths: dict[int, str], questions: Sequence[Question]) -> EasyImage:
    png = Path(paths[number]).read_bytes() if number in paths else b""
    colour, shape = derive_attributes(questions)
    return EasyImage(f"{split}-{number:04d}", png, tuple(questions), colour, shape)


def derive_attributes(questions: Iterable[Question]) -> tuple[str | None, str | None]:
    """Derives an image's colour and shape from its questions and answers.

    Each answer narrows what is possible: "what is the blue shape?" - "circle" tells both, "is there not a circle?" -
    "yes" rules the circle out, "is a teal shape present?" - "yes" leaves teal alone.

    Args:
        questions: all questions about one image, of which each yes/no question names one colour or one shape.

    Returns:
        (colour, shape), each None unless exactly one value is left.
    """
    colours, shapes = set(COLOURS), set(SHAPES)
    for question in questions:
        words = question.text.rstrip("?").split()
        named_colours, named_shapes = set(words) & set(COLOURS), set(words) & set(SHAPES)
        if question.kind == "yes/no":
            negated = "not" in words or "no" in words
            if (question.answer == "yes") == negated:  # the image has not what the question names
                named_colours, named_shapes = _complement(named_colours, COLOURS), _complement(named_shapes, SHAPES)
        elif question.kind == "colour":
            named_colours = {question.answer}
        else:
            named_shapes = {question.answer}
        colours &= named_colours or colours
        shapes &= named_shapes or shapes
    return _only(colours), _only(shapes)


def _complement(named: set[str], values: Sequence[str]) -> set[str]:
    return set(values) - named if named else set()


def _only(values: set[str]) -> str | None:
    return next(iter(values)) if len(values) == 1 else None


def draw(key: str, count: int) -> int:
    """Draws a number in ``[0, count)`` from a text alone (SHA-256), the same in every process and version.

    Args:
        key: e.g. a sample's id and what the number is for.
        count: how many values there are; at least 1.

    Returns:
        The number; over many keys all values are (but for 2^-60) equally frequent.
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big") % count


def shuffled(items: Sequence[str], key: str) -> list[str]:
    """Orders ``items`` at random, from the text ``key`` alone (see :func:`draw`).

    Args:
        key: what the order depends on, besides the items.

    Returns:
        The items in an order that does not depend on how they were given.
    """
    return sorted(items, key=lambda item: hashlib.sha256(json.dumps([key, item]).encode()).digest())
