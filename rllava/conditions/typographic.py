"""Text on the image that names a wrong answer: what a model reads, it may say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rllava.conditions.condition import CONDITIONS, SHOWN, Condition, Setting
from rllava.data.corruptions import SIZING_VERSION, Fit
from rllava.data.images import encode_png
from rllava.data.listed import SampleList
from rllava.data.typography import DRAWING_VERSION, Lettering, LettersOnViews, Place, check_font, wrong_answers


@dataclass(frozen=True)
class Typographic(Condition):
    """A wrong answer written onto the image, once at a stated size, before a model's own padding and resizing.

    The answer is one that others of the benchmark give to the very same question, else one that is common in it; it
    scores nothing for the sample (of captions, where every text scores something, as little as drops a sample). Which
    one is drawn by the sample's id. An attack it is not: nothing is searched for.

    Attributes:
        size: of the letters, as a share of the image's height; smaller where the text would not fit.
        place: top, middle or bottom.
        side: size at which images are written on, in pixels: that of the longer side.
    """

    kind: ClassVar[str] = "typographic"
    size: float = 0.15
    place: Place = "bottom"
    side: int = 336
    fit: Fit = "inside"
    precision: str = "float32"

    def __post_init__(self) -> None:
        if not 0 < self.size <= 1:
            raise ValueError(f"size: expected a share of the image's height above 0 and at most 1, got {self.size:g}")

    @classmethod
    def named(cls, what: str, setting: Setting) -> "Typographic":
        """``typographic``, or with the place of the text: ``typographic:top``."""
        check_font()
        place = Lettering.read_place(what or "bottom")
        return cls(place=place, side=setting.side, precision=setting.precision)

    @property
    def label(self) -> str:
        """Name and version, with what is not the default."""
        changes = [
            f"{self.size:g}" if self.size != 0.15 else "",
            self.place if self.place != "bottom" else "",
            f"{self.side}px" if self.side != 336 else "",
            self.fit if self.fit != "inside" else "",
        ]
        described = ",".join(filter(None, changes))
        return f"typographic-v{self.version}" + (f"[{described}]" if described else "")

    @property
    def short(self) -> str:
        """Its kind; the fingerprint beside it tells the rest."""
        return self.kind

    @property
    def changes_images(self) -> bool:
        """Always; how, depends on the benchmark."""
        return True

    def views_in(self, listed: Callable[[], SampleList]) -> LettersOnViews:
        """One, with the sample's wrong answer on it."""
        return LettersOnViews(wrong_answers(listed()), Lettering(self.size, self.place), self.side, self.fit)

    def precisions(self, task: str) -> tuple[str, ...]:
        """One for all tasks."""
        return (self.precision,)

    def versions_for(self, task: str) -> Mapping[str, int]:
        """Of what is written and how, and of what gives images their size."""
        return {"drawing": DRAWING_VERSION, "sizing": SIZING_VERSION}

    def run(self, work: Any) -> list[dict[str, Any]]:
        """Answers to the images, beside the clean answers."""
        samples = work.shard.samples
        texts, scores = work.answer([sample.views[0] for sample in samples])
        rows = []
        for b, sample in enumerate(samples):
            (row,) = work.rows_of(b)
            row |= {"prediction": texts[b], "score": scores[b]}
            rows.append(row | ({"shown_png": encode_png(sample.views[0])} if sample.row < SHOWN else {}))
        return rows


CONDITIONS.register(Typographic.kind, Typographic)
