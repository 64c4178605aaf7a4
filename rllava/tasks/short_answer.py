"""Short answers: a question about the image is answered in a word or phrase, and scored by the VQA accuracy."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rllava.tasks.task import TASKS, Task

VQA_PROMPT = "<image>\n{question}\nAnswer the question using a single word or phrase."
"""The paper's prompt for VQA (Robust-LLaVA ``open_flamingo/eval/models/llava.py``)."""

VIZWIZ_PROMPT = (
    "<image>\n{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)
"""The paper's prompt for VizWiz, many of whose images do not show what is asked (same file)."""


@dataclass(frozen=True)
class ShortAnswer(Task):
    """References are annotators' answers; label k is the k-th most common of them."""

    kind: ClassVar[str] = "short_answer"

    metric: str = "vqa_accuracy"

    def labels(self, references: Sequence[str]) -> list[str]:
        """The distinct answers, the most common first; of equally common ones the earlier."""
        return [answer for answer, _ in Counter(references).most_common()]


TASKS.register(ShortAnswer.kind, ShortAnswer)
