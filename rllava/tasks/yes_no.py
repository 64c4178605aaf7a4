"""Yes or no: whether something is in the image. Prompt and default metric as LLaVA's for POPE."""

from dataclasses import dataclass
from typing import ClassVar

from rllava.tasks.short_answer import ShortAnswer
from rllava.tasks.task import TASKS

YES_NO = "yes_no"
"""Its name among the kinds of tasks."""


@dataclass(frozen=True)
class YesNo(ShortAnswer):
    """The one reference is the right answer as the model says it, "Yes" or "yes": it is the label as well.

    Protocols attack it as the short answer that it is; the wrong answer is the one decoy.
    """

    version: ClassVar[int] = 1

    metric: str = "yes_no"


TASKS.register(YES_NO, YesNo)
