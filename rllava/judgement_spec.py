"""What is judged by whom: the spec of a judgements step."""

from collections.abc import Mapping
from dataclasses import dataclass

from rllava.judgements import ANSWERS
from rllava.metrics.judges.judge import JudgeSpec
from rllava.specs import EvalSpec

VERDICTS_VERSION = 1
"""Of what is judged of a record whatever the judge: which answers it is asked about, what an empty one counts as."""


@dataclass(frozen=True)
class JudgementSpec:
    """One judge on the records of one evaluation.

    Attributes:
        answers: columns of a record that are judged, of :data:`rllava.judgements.ANSWERS`. The clean answer of an
            attacked sample is not among them by default: it is the answer of the clean evaluation, which is judged by
            itself.
    """

    evaluation: EvalSpec
    judge: JudgeSpec
    answers: tuple[str, ...] = ("prediction", "prediction_8bit")

    def __post_init__(self) -> None:
        if not self.answers or set(self.answers) - set(ANSWERS):
            raise ValueError(f"answers: expected some of {', '.join(ANSWERS)}, got {self.answers}")

    @property
    def name(self) -> str:
        """Readable name of the judgements artifact."""
        return f"{self.evaluation.name}-{self.judge.label}"

    def versions(self) -> Mapping[str, int]:
        """Of what holds for every judge."""
        return {"verdicts": VERDICTS_VERSION}
