"""Images that an attack on one candidate found, shown to another: what of an attack carries over, at no new step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from rllava.conditions.attack import Attack
from rllava.conditions.condition import CONDITIONS, SHOWN, Condition, Setting
from rllava.data.images import encode_png, fit
from rllava.errors import UserError

RESAMPLED = "resampled"
"""Finding of an image that was made for another input size: resized once more (bicubic, to 8 bits), it may be further
from the clean image than its budget says."""


@dataclass(frozen=True)
class Transferred(Condition):
    """The stored 8-bit images of a candidate, shown as they are.

    A sample that the source never attacked, because its clean answer left nothing to attack, has no image to show, and
    so no score. Shown to their own candidate, images score what its records call ``score_8bit``.

    Attributes:
        attack: under which they were found.
        shown_of: the source; empty: every candidate of a sweep, each a condition of its own (:meth:`over`).
    """

    kind: ClassVar[str] = "transferred"
    attack: Attack
    shown_of: str = ""

    @classmethod
    def all_named(cls, what: str, setting: Setting) -> tuple[Condition, ...]:
        """``transferred``, or ``transferred:CANDIDATE`` for the images of one: at every budget of the sweep's attacks.

        Raises:
            UserError: if there are no attacks.
        """
        return tuple(cls(attack, what) for attack in attacks_of(setting, "transferred"))

    def over(self, candidates: Sequence[str]) -> tuple[Condition, ...]:
        """One per source."""
        return (self,) if self.shown_of else tuple(replace(self, shown_of=name) for name in candidates)

    @property
    def label(self) -> str:
        """With source, protocol and budget."""
        return (
            f"transferred[{self.shown_of},non-adaptive,{self.attack.label},{self.attack.epsilon:g}/255]-v{self.version}"
        )

    @property
    def short(self) -> str:
        """Source and budget; the fingerprint beside it tells protocols apart."""
        return f"from-{self.shown_of}-{self.attack.short}"

    @property
    def phrase(self) -> str:
        """Source and budget."""
        return f"under images of {self.shown_of} {self.attack.phrase}"

    @property
    def adaptive(self) -> bool:
        """They were searched for against the source."""
        return False

    @property
    def source(self) -> str:
        """Whose images."""
        return self.shown_of

    @property
    def stored_under(self) -> Attack:
        """The attack."""
        return self.attack

    def precisions(self, task: str) -> tuple[str, ...]:
        """Those of the attack, in the finest of which its 8-bit images were answered."""
        return self.attack.precisions(task)

    def run(self, work: Any) -> list[dict[str, Any]]:
        """Answers to the images, beside the clean answers."""
        samples = work.shard.samples
        found: list[np.ndarray | None] = work.stored(work.spec.sources[0], samples)
        return rows_of_stored(work, found, f"{self.shown_of} was not attacked on it: its own clean answer was beaten")


CONDITIONS.register(Transferred.kind, Transferred)


def attacks_of(setting: Setting, kind: str) -> tuple[Attack, ...]:
    """The attacks of a sweep.

    Raises:
        UserError: if there are none.
    """
    found = tuple(attack for attack in setting.attacks if isinstance(attack, Attack))
    if not found:
        raise UserError(
            f"condition {kind}: it shows what attacks found, of which there are none; give --budgets above 0"
        )
    return found


def rows_of_stored(work: Any, found: Sequence[np.ndarray | None], lacking: str) -> list[dict[str, Any]]:
    """Records of a condition of one part that shows stored images.

    Args:
        work: a :class:`rllava.evaluation.shard.ShardWork`.
        found: per sample, uint8 [H, W, 3] of any square size; None: there is none.
        lacking: why there is none, for the record's error.
    """
    samples, side = work.shard.samples, work.victim.image_size
    own = {b: image for b, image in enumerate(found) if image is not None}
    shown, there = {b: fit(image, side) for b, image in own.items()}, list(own)
    texts, scores = work.answer([shown[b] for b in there], there, work.victim.finest) if there else ([], [])
    answered = dict(zip(there, zip(texts, scores, strict=True), strict=True))
    rows = []
    for b, sample in enumerate(samples):
        (row,) = work.rows_of(b)
        if b not in answered:
            rows.append(row | {"error": lacking})
            continue
        text, score = answered[b]
        change = np.abs(shown[b].astype(np.int16) - sample.pixels_HWC.astype(np.int16)).max()
        row |= {"prediction": text, "score": score, "linf": float(change)}
        row |= {"findings": [RESAMPLED] if own[b].shape != shown[b].shape else []}
        rows.append(row | ({"shown_png": encode_png(shown[b])} if sample.row < SHOWN else {}))
    return rows
