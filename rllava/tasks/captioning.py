"""Captioning: the image is described in a sentence, and scored by CIDEr."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rllava.tasks.task import TASKS, Task

CAPTION_PROMPT = "<image>\nProvide a short caption for this image."
"""The paper's prompt for captioning (Robust-LLaVA ``open_flamingo/eval/models/llava.py``)."""


@dataclass(frozen=True)
class Captioning(Task):
    """References are captions; label k is the k-th of them."""

    kind: ClassVar[str] = "captioning"

    metric: str = "cider"

    def labels(self, references: Sequence[str]) -> list[str]:
        """The captions in order."""
        return list(references)


TASKS.register(Captioning.kind, Captioning)
