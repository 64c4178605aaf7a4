"""One picture in every sample's place, or none: what the answers to an attacked image are compared with."""

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from rllava.conditions.condition import CONDITIONS, Condition, Setting
from rllava.data.images import PADDING_COLOUR, preprocess
from rllava.errors import UserError
from rllava.universal_spec import Picture


@dataclass(frozen=True)
class Shown(Condition):
    """The same picture for all samples, or none.

    Attributes:
        what: no picture, one of the padding's colour, one of uniform noise (always the same), or :attr:`picture`.
    """

    kind: ClassVar[str] = "shown"
    needs_image: ClassVar[bool] = False

    what: Literal["no_image", "blank", "noise", "picture"]
    picture: Picture | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        if (self.what == "picture") != (self.picture is not None):
            raise ValueError(f"picture: it goes with 'picture', and with nothing else; got {self.what}, {self.picture}")

    @classmethod
    def named(cls, what: str, setting: Setting) -> "Shown":
        """``shown:no_image``, ``shown:blank``, ``shown:noise``, or ``shown:FILE``."""
        if what in ("no_image", "blank", "noise"):
            return cls(what, precision=setting.precision)  # type: ignore[arg-type]
        if not what:
            raise UserError("condition shown: say what, one of no_image, blank, noise, or an image file")
        return cls("picture", Picture(what).pinned(), setting.precision)

    @property
    def label(self) -> str:
        """What is shown, and the version; a picture by the first digits of its hash."""
        which = "" if self.picture is None else f"-{str(self.picture.sha256)[:8]}"
        return f"{self.what}{which}-v{self.version}"

    def precisions(self, task: str) -> tuple[str, ...]:
        """One for all tasks."""
        return (self.precision,)

    def image(self, side: int) -> np.ndarray | None:
        """What is shown to a model that sees a square of so many pixels.

        Returns:
            uint8 [side, side, 3]; None: nothing.
        """
        if self.picture is not None:
            return preprocess(self.picture.read(), side, self.picture.fit)
        if self.what == "blank":
            return np.broadcast_to(np.array(PADDING_COLOUR, np.uint8), (side, side, 3)).copy()
        if self.what == "noise":
            seed = int.from_bytes(hashlib.sha256(b"noise").digest()[:8], "big")
            return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        return None

    def run(self, work: Any) -> list[dict[str, Any]]:
        """Answers to it, beside the clean answers."""
        rows: list[dict[str, Any]] = work.show(self.image(work.victim.image_size))
        return rows


CONDITIONS.register(Shown.kind, Shown)
