"""A kind of task: a question that is answered by yes or no. An attack raises the loss of the right one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rllava.tasks.task import Task


@dataclass(frozen=True)
class YesNo(Task):
    kind: ClassVar[str] = "example_yes_no"
    version: ClassVar[int] = 1

    metric: str = "exact"

    def labels(self, references: Sequence[str]) -> list[str]:
        return list(references[:1])


def add(register: Callable[[str, type[Task]], type[Task]]) -> None:
    register(YesNo.kind, YesNo)
