"""A judge: flags answers of more than so many words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rllava.errors import UserError
from rllava.metrics.judges.judge import Exchange, Judge, JudgeSpec, Verdict


@dataclass(frozen=True)
class Brevity(JudgeSpec):
    kind: ClassVar[str] = "brevity"
    version: ClassVar[int] = 1

    most: int

    @property
    def label(self) -> str:
        return f"brevity{self.most}-v{self.version}"

    @property
    def description(self) -> str:
        return f"more than {self.most} words"

    def pinned(self) -> "Brevity":
        return self

    def load(self) -> Judge:
        def judge(exchanges: Sequence[Exchange]) -> list[Verdict]:
            counts = [len(exchange.answer.split()) for exchange in exchanges]
            return [Verdict(count > self.most, float(count)) for count in counts]

        return judge


def of_command_line(what: str) -> Brevity:
    if not what.isdecimal():
        raise UserError(f"judge brevity:{what}: give the most words, e.g. brevity:3")
    return Brevity(int(what))


def add(register: Callable[[str, Callable[[str], JudgeSpec]], Callable[[str], JudgeSpec]]) -> None:
    register(Brevity.kind, of_command_line)
