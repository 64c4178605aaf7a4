"""A condition: the image in a mirror. It is turned round in tasks without a GPU, before any model's own padding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rllava.conditions.condition import Condition, Setting
from rllava.data.images import decode_png


def mirror(image: bytes, sample_id: str) -> list[np.ndarray]:
    return [np.ascontiguousarray(decode_png(image)[:, ::-1])]


@dataclass(frozen=True)
class Mirrored(Condition):
    kind: ClassVar[str] = "mirrored"
    version: ClassVar[int] = 1

    precision: str = "float32"

    @classmethod
    def named(cls, what: str, setting: Setting) -> "Mirrored":
        return cls(setting.precision)

    @property
    def label(self) -> str:
        return f"mirrored-v{self.version}"

    @property
    def views(self) -> Callable[[bytes, str], list[np.ndarray]]:
        return mirror

    def precisions(self, task: str) -> tuple[str, ...]:
        return (self.precision,)

    def run(self, work: Any) -> list[dict[str, Any]]:
        texts, scores = work.answer([sample.views[0] for sample in work.shard.samples])
        return [
            row | {"prediction": texts[b], "score": scores[b]} for b in range(len(texts)) for row in work.rows_of(b)
        ]


def add(register: Callable[[str, type[Condition]], type[Condition]]) -> None:
    register(Mirrored.kind, Mirrored)
