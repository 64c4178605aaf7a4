"""Questions of the embedded data that are put as POPE and ScienceQA put theirs: yes or no, and lettered choices.

One per labelled test image of easy-VQA, so that samples are independent. Yes/no questions have the wordings of the
package's own, those without a negation, so that a "yes" says that something is there. Of every two images one is asked
about what it shows, the other about a colour or shape that it does not show: any of them (``random``), or the one that
most training images show (``popular``: teal, or green for a teal image; circle, or rectangle for an image of one). All
are about equally frequent there, so the latter says little. An adversarial strategy has no meaning here: objects are
adversarial that often stand beside those shown, and an image of easy-VQA shows one shape in one colour.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence

from rllava.data.easy_vqa_source import COLOURS, SHAPES, EasyImage, draw, easy_images, shuffled
from rllava.data.entries import Entry
from rllava.data.pairs import labelled_images
from rllava.metrics.choice import LETTERS

WORDINGS = (
    "is there a {named}?",
    "is there a {named} in the image?",
    "is a {named} present?",
    "does the image contain a {named}?",
)
"""Of the package's questions; a colour is named as "red shape"."""

_CHOICES = 4
"""Colours to choose from; of shapes there are three."""

_Absent = Callable[[Sequence[str], str, str], str]
"""From the values of an attribute, the one shown and the image's id to one that is not shown."""


def easy_yes_no(split: str) -> list[Entry]:
    """Asks about what is there and, at random, about what is not.

    Args:
        split: ``"train"`` or ``"test"``.

    Returns:
        One sample per labelled image, by number: 3578 or 888. Half of the answers are "yes".
    """
    return _yes_no(split, _random)


def easy_yes_no_popular(split: str) -> list[Entry]:
    """As :func:`easy_yes_no`, where what is not there is the most frequent of its kind in the training images."""
    return _yes_no(split, _popular)


def easy_choices(split: str) -> list[Entry]:
    """Asks for the colour or the shape, with choices in an order that the image's id decides.

    Args:
        split: ``"train"`` or ``"test"``.

    Returns:
        One sample per labelled image, by number: 3578 or 888. The reference is the right letter.
    """
    return [_choice(image, colour, shape) for image, colour, shape in labelled_images(split)]


def _yes_no(split: str, absent: _Absent) -> list[Entry]:
    entries = []
    for number, (image, colour, shape) in enumerate(labelled_images(split)):
        name, there = image.sample_id, number % 2 == 0
        about_colour = draw(f"yes or no: about what, {name}", 2) == 0
        values, shown = (COLOURS, colour) if about_colour else (SHAPES, shape)
        value = shown if there else absent(values, shown, name)
        wording = WORDINGS[draw(f"yes or no: wording, {name}", len(WORDINGS))]
        question = wording.format(named=f"{value} shape" if about_colour else value)
        entries.append(Entry(name, functools.partial(bytes, image.png), ("yes" if there else "no",), question))
    return entries


def _random(values: Sequence[str], shown: str, name: str) -> str:
    others = [value for value in values if value != shown]
    return others[draw(f"yes or no: absent, {name}", len(others))]


def _popular(values: Sequence[str], shown: str, name: str) -> str:
    return next(value for value in _by_frequency() if value in values and value != shown)


@functools.cache
def _by_frequency() -> tuple[str, ...]:
    """Colours and shapes by how many training images show them, the most first."""
    counts = Counter(value for image in easy_images("train") for value in (image.colour, image.shape) if value)
    return tuple(value for value, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _choice(image: EasyImage, colour: str, shape: str) -> Entry:
    name = image.sample_id
    about_colour = draw(f"choice: about what, {name}", 2) == 0
    values, right = (COLOURS, colour) if about_colour else (SHAPES, shape)
    others = shuffled([value for value in values if value != right], f"choice: others, {name}")
    choices = shuffled([right, *others[: _CHOICES - 1]], f"choice: order, {name}")
    lines = [f"{letter}. {value}" for letter, value in zip(LETTERS, choices, strict=False)]
    asked = "what color is the shape?" if about_colour else "what shape is in the image?"
    letter = LETTERS[choices.index(right)]
    return Entry(name, functools.partial(bytes, image.png), (letter,), "\n".join([asked, *lines]))
