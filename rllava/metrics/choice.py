"""Letters of multiple choice, read as LLaVA does for ScienceQA (``llava/eval/eval_science_qa.py``)."""

import re
from collections.abc import Sequence

from rllava.metrics.metric import METRICS, Metric, MetricState

LETTERS = ("A", "B", "C", "D", "E")
"""Of choices, in order; there are never more."""

_SAID = re.compile(r"The answer is ([A-Z]).")


def read_letter(answer: str) -> str | None:
    """Reads which choice an answer takes.

    It is the letter alone; or begins with the letter, a full stop and a blank; or says once "The answer is B.", of
    which the last character may be any (the published pattern does not escape its full stop).

    Returns:
        A letter, which may be beyond the question's choices; None if none can be read.
    """
    if answer in LETTERS:
        return answer
    if answer[:1] in LETTERS and answer[1:3] == ". ":
        return answer[0]
    said = _SAID.findall(answer)
    return str(said[0]) if len(said) == 1 else None


def _score(prediction: str, references: Sequence[str], state: MetricState) -> float:
    assert state is None, "the letter of a choice has no state"
    if not references:
        raise ValueError("no references; the right letter is needed")
    return 100.0 * (read_letter(prediction) == references[0])


METRICS.register("choice_letter", Metric("choice_letter", "%", clean=str.strip, score=_score))
