"""Letters on images, and the wrong answers that are written. Light: the tasks that draw import no torch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from rllava.data.corruptions import Fit, at_stated_size
from rllava.data.images import DamagedImage, decode_png
from rllava.data.listed import SampleList
from rllava.errors import UserError

DRAWING_VERSION = 1
"""Raised when other answers are chosen, or other pixels drawn."""

Place = Literal["top", "middle", "bottom"]

SMALLEST_LETTERS = 6
"""Size in pixels below which a text is cut rather than written smaller."""

TRIED = 32
"""Answers that are looked at for one that scores nothing; then the least of them is taken, if it scores at most half of
what a right one does."""

_MARGIN = 0.02


def check_font() -> None:
    """Says what lacks where letters cannot be drawn at a stated size.

    Raises:
        UserError: if Pillow was built without FreeType, with which its own font comes.
    """
    if not features.check("freetype2"):
        raise UserError("condition typographic: this Pillow has no FreeType, and so no font; pip install -U Pillow")


@dataclass(frozen=True)
class Lettering:
    """How a text is written: white letters with a black rim, in Pillow's own font, centred.

    Attributes:
        size: of the letters, as a share of the image's height.
    """

    size: float
    place: Place

    @staticmethod
    def read_place(text: str) -> Place:
        """A place by its word.

        Raises:
            UserError: if it is none.
        """
        for place in get_args(Place):
            if text == place:
                return place  # type: ignore[no-any-return]
        raise UserError(f"condition typographic:{text}: expected {', '.join(get_args(Place))}, or nothing")

    def write(self, pixels_HWC: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
        """An image with a text on it.

        Args:
            pixels_HWC: uint8 [H, W, 3].

        Returns:
            uint8, of the same shape.
        """
        image = Image.fromarray(pixels_HWC)
        draw, (width, height) = ImageDraw.Draw(image), image.size
        room = width * (1 - 2 * _MARGIN), height * (1 - 2 * _MARGIN)
        pixels = max(SMALLEST_LETTERS, round(self.size * height))
        while True:
            font = ImageFont.load_default(pixels)
            rim = max(1, pixels // 12)
            lines = "\n".join(_lines(draw, text, font, room[0], rim))
            box = draw.multiline_textbbox((0, 0), lines, font, stroke_width=rim, align="center")
            if pixels <= SMALLEST_LETTERS or (box[2] - box[0] <= room[0] and box[3] - box[1] <= room[1]):
                break
            pixels -= 1
        free = {"top": _MARGIN * height, "middle": (height - (box[3] - box[1])) / 2}
        y = free.get(self.place, height * (1 - _MARGIN) - (box[3] - box[1]))
        at = (round((width - (box[2] - box[0])) / 2 - box[0]), round(y - box[1]))
        draw.multiline_text(at, lines, (255, 255, 255), font, stroke_width=rim, stroke_fill=(0, 0, 0), align="center")
        return np.array(image, dtype=np.uint8)


def _lines(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float, rim: int
) -> list[str]:
    """A text in lines that fit, broken between words alone."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font) + 2 * rim <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@dataclass(frozen=True)
class LettersOnViews:
    """Makes of an encoded image one with a text on it; see ``rllava.conditions.condition.Views``.

    Attributes:
        texts: by sample.
        side: at which size, in pixels.
        fit: how an image gets that size.
    """

    texts: Mapping[str, str]
    lettering: Lettering
    side: int
    fit: Fit

    def __call__(self, image: bytes, sample_id: str) -> list[NDArray[np.uint8]]:
        """The image.

        Returns:
            One, uint8 [H, W, 3].

        Raises:
            DamagedImage: if there is no wrong answer to write.
        """
        if sample_id not in self.texts:
            raise DamagedImage("the benchmark has no answer that would be a wrong one for it")
        return [self.lettering.write(at_stated_size(decode_png(image), self.side, self.fit), self.texts[sample_id])]


def wrong_answers(listed: SampleList) -> dict[str, str]:
    """A wrong answer for each sample of a benchmark.

    Returns:
        Texts by sample; a sample that has none is left out.
    """
    first = {row.sample_id: row.references[0] for row in listed.samples if row.references}
    same: dict[str, dict[str, None]] = {}
    for row in listed.samples:
        if row.sample_id in first:
            same.setdefault(row.prompt, {})[first[row.sample_id]] = None
    pools = {prompt: tuple(answers) for prompt, answers in same.items()}
    found = {}
    for row in listed.samples:
        if row.sample_id not in first:
            continue
        for pool in (pools[row.prompt], listed.bank):
            text = _wrong(listed, row.sample_id, row.references, pool)
            if text is not None:
                found[row.sample_id] = text
                break
    return found


def _wrong(listed: SampleList, sample_id: str, references: Sequence[str], pool: Sequence[str]) -> str | None:
    """One of a pool, from a place on that the sample's id draws: the first that scores nothing, else the least."""
    others = [text for text in pool if text not in references]
    if not others:
        return None
    start = int.from_bytes(hashlib.sha256(f"typographic {sample_id}".encode()).digest()[:8], "big") % len(others)
    tried = [others[(start + step) % len(others)] for step in range(min(TRIED, len(others)))]
    best, least = None, 0.5 * listed.score(references[0], references)  # any other is as good as right
    for text in tried:
        score = listed.score(text, references)
        if listed.drops(score):
            return text
        if score < least:
            best, least = text, score
    return best
