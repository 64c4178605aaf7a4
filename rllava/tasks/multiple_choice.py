"""Multiple choice: a question with lettered choices is answered by a letter; asked and scored as LLaVA's ScienceQA."""

from dataclasses import dataclass
from typing import ClassVar

from rllava.tasks.short_answer import ShortAnswer
from rllava.tasks.task import TASKS

CHOICE_PROMPT = "<image>\n{question}\nAnswer with the option's letter from the given choices directly."
"""The question ends with its choices, a line each (LLaVA ``llava/eval/model_vqa_science.py``)."""

MULTIPLE_CHOICE = "multiple_choice"
"""Its name among the kinds of tasks."""


@dataclass(frozen=True)
class MultipleChoice(ShortAnswer):
    """The one reference, and label, is the right letter. Rows may have no image.

    Protocols attack it as the short answer that it is; decoys are the other letters.
    """

    version: ClassVar[int] = 1
    needs_image: ClassVar[bool] = False

    metric: str = "choice_letter"


TASKS.register(MULTIPLE_CHOICE, MultipleChoice)
