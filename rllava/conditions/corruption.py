"""Common corruptions: noise, blur, weather and compression, at all severities."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rllava.conditions.condition import CONDITIONS, SHOWN, Condition, Setting
from rllava.data.corruptions import CORRUPTIONS, SEVERITIES, SIZING_VERSION, CorruptedViews, Fit, check_library
from rllava.data.images import encode_png
from rllava.errors import UserError


@dataclass(frozen=True)
class Corruption(Condition):
    """One corruption at all its severities, each a record.

    The image is corrupted once, at a stated size, and then padded and resized as any other: models of 224 and of 336
    pixels are shown the same picture. Severity 0 is the clean image, which gets no stated size: a condition of its own.

    Attributes:
        name: in ``rllava.data.corruptions.CORRUPTIONS``.
        side: size at which images are corrupted, in pixels: that of the longer side.
        fit: how an image gets it.
    """

    kind: ClassVar[str] = "corruption"
    name: str
    side: int = 336
    fit: Fit = "inside"
    precision: str = "float32"

    @classmethod
    def named(cls, what: str, setting: Setting) -> "Corruption":
        """By the corruption's name, at the recipe's size."""
        if not what:
            raise UserError("condition corruption: name one, e.g. corruption:fog")
        CORRUPTIONS.get(what)
        check_library()
        return cls(what, setting.side, precision=setting.precision)

    @property
    def label(self) -> str:
        """Name and version, with what is not the default."""
        changes = [f"{self.side}px" if self.side != 336 else "", self.fit if self.fit != "inside" else ""]
        described = ",".join(filter(None, changes))
        return CORRUPTIONS.get(self.name).label + (f"[{described}]" if described else "")

    @property
    def short(self) -> str:
        """Its name."""
        return self.name

    @property
    def parts(self) -> tuple[Mapping[str, Any], ...]:
        """One per severity."""
        return tuple({"epsilon": None, "severity": severity} for severity in SEVERITIES)

    @property
    def views(self) -> CorruptedViews:
        """One per severity."""
        return CorruptedViews(self.name, SEVERITIES, self.side, self.fit)

    def precisions(self, task: str) -> tuple[str, ...]:
        """One for all tasks."""
        return (self.precision,)

    def versions_for(self, task: str) -> Mapping[str, int]:
        """Of the corruption, and of what gives images their size."""
        return {"corruption": CORRUPTIONS.get(self.name).version, "sizing": SIZING_VERSION}

    def run(self, work: Any) -> list[dict[str, Any]]:
        """Answers to the images of each severity, beside the clean answers."""
        samples = work.shard.samples
        answered = [work.answer([sample.views[number] for sample in samples]) for number in range(len(SEVERITIES))]
        rows = []
        for b, sample in enumerate(samples):
            for number, row in enumerate(work.rows_of(b)):
                (texts, scores), image_HWC = answered[number], sample.views[number]
                row |= {"prediction": texts[b], "score": scores[b]}
                rows.append(row | ({"shown_png": encode_png(image_HWC)} if sample.row < SHOWN else {}))
        return rows


CONDITIONS.register(Corruption.kind, Corruption)
