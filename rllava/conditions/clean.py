"""The clean image: what every other condition is compared with."""

from dataclasses import dataclass
from typing import Any, ClassVar

from rllava.conditions.condition import CONDITIONS, Condition, Setting
from rllava.data.images import encode_png
from rllava.errors import UserError
from rllava.records import CLEAN


@dataclass(frozen=True)
class Clean(Condition):
    """Nothing is done to the image; a sample without one is asked without one."""

    kind: ClassVar[str] = CLEAN
    needs_image: ClassVar[bool] = False
    precision: str = "float32"

    @classmethod
    def named(cls, what: str, setting: Setting) -> "Clean":
        """Nothing stands after its name."""
        if what:
            raise UserError(f"condition clean:{what}: nothing stands after clean")
        return cls(setting.precision)

    @property
    def label(self) -> str:
        """The word itself."""
        return CLEAN

    @property
    def phrase(self) -> str:
        """As a budget, beside those of attacks."""
        return "at 0/255"

    @property
    def epsilon(self) -> float:
        """No budget at all."""
        return 0.0

    def precisions(self, task: str) -> tuple[str, ...]:
        """One for all tasks."""
        return (self.precision,)

    def run(self, work: Any) -> list[dict[str, Any]]:
        """The clean answers, with the images that the encoder saw."""
        rows: list[dict[str, Any]] = work.clean_rows()
        for row, sample in zip(rows, work.shard.samples, strict=True):
            if sample.pixels_HWC is not None:
                row["clean_png"] = encode_png(sample.pixels_HWC)
        return rows


CONDITIONS.register(Clean.kind, Clean)
