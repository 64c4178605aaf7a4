"""Answers to yes/no questions: two ways of reading them, and the rates of POPE (Li et al. 2023, arXiv 2305.10355).

Positive is "yes", that something is there. An answer that is read as neither is wrong, and no "yes".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rllava.errors import UserError
from rllava.metrics.metric import METRICS, Metric, MetricState

FloatArray = npt.NDArray[np.float64]

YES, NO = "yes", "no"

RATES = ("accuracy", "precision", "recall", "f1", "yes")
"""Names of the rates; the last is the share of answers that are "yes"."""

_DENIALS = frozenset({"No", "not", "no"})


def read_leniently(answer: str) -> str:
    """Reads an answer as LLaVA does (``llava/eval/eval_pope.py``): what does not say no says yes, an empty one too.

    Its first sentence counts, without commas, and words are what blanks separate: "NO" and "no!" are a yes.

    Returns:
        ``"yes"`` or ``"no"``.
    """
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return YES if _DENIALS.isdisjoint(words) else NO


def read_exactly(answer: str) -> str | None:
    """Reads an answer that is the word alone, whatever its case, as lmms-eval scores POPE.

    Returns:
        ``"yes"`` or ``"no"``; None if it is anything else, "Yes." too.
    """
    word = answer.strip().lower()
    return word if word in (YES, NO) else None


READERS = {"yes_no": read_leniently, "yes_no_exact": read_exactly}
"""How each metric reads an answer."""


@dataclass(frozen=True)
class YesNoRates:
    """Rates of a list of answers, in [0, 1]; None where one is undefined.

    Attributes:
        precision: None if none is "yes".
        recall: None if none should be.
        f1: 2 TP / (2 TP + FP + FN), the harmonic mean of both where they are defined; None if neither is.
        yes: the share of answers that are "yes".
    """

    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    yes: float | None


def yes_no_rates(said: Sequence[str | None], gold: Sequence[str]) -> YesNoRates:
    """Computes the rates of answers.

    Args:
        said: as they are read; None: neither.
        gold: what is right, ``"yes"`` or ``"no"``.
    """
    pairs = list(zip(said, gold, strict=True))
    counts = (
        sum(answer == right for answer, right in pairs),
        sum(answer == right == YES for answer, right in pairs),
        sum(answer == YES for answer in said),
        sum(right == YES for right in gold),
        len(pairs),
    )
    found = rates_of(*(np.asarray(count, np.float64) for count in counts))
    return YesNoRates(*(None if np.isnan(found[name]) else float(found[name]) for name in RATES))


def rates_of(
    right: FloatArray, hits: FloatArray, said: FloatArray, gold: FloatArray, n: FloatArray
) -> dict[str, FloatArray]:
    """The rates, from counts or from shares of one total, in arrays of one shape.

    Args:
        right: answers that are right.
        hits: of these, "yes".
        said: answers "yes", right or not.
        gold: questions to which that is right.
        n: all.

    Returns:
        By name, see :data:`RATES`; NaN where one is undefined.
    """

    def over(part: FloatArray, whole: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(whole > 0, part / whole, np.nan), np.float64)

    found = (over(right, n), over(hits, said), over(hits, gold), over(2 * hits, said + gold), over(said, n))
    return dict(zip(RATES, found, strict=True))


def right_answer(references: Sequence[str]) -> str | None:
    """What is right of a sample.

    Returns:
        ``"yes"`` or ``"no"``; None if it has another number of references than one, or another reference.
    """
    return read_exactly(references[0]) if len(references) == 1 else None


def _prepare(references_of_each_sample: Sequence[Sequence[str]]) -> None:
    for references in references_of_each_sample:
        if references and right_answer(references) is None:
            raise UserError(
                f"metrics yes_no and yes_no_exact: a sample has the references {', '.join(references)}; give each "
                "sample one reference, yes or no, or its task another metric"
            )


def _metric(name: str) -> Metric:
    read = READERS[name]

    def score(prediction: str, references: Sequence[str], state: MetricState) -> float:
        assert state is None, "what is read as yes and no has no state"
        right = right_answer(references)
        if right is None:
            raise ValueError("no reference that is yes or no")
        return 100.0 * (read(prediction) == right)

    return Metric(name, "%", clean=str.strip, score=score, prepare=_prepare)


for _name in READERS:
    METRICS.register(_name, _metric(_name))
