"""A metric: 100 where the answer is what the first reference says, whatever the case and the full stop."""

from collections.abc import Callable, Sequence

from rllava.metrics.metric import Metric


def cleaned(text: str) -> str:
    return text.strip().rstrip(".").lower()


def score(prediction: str, references: Sequence[str], state: object) -> float:
    if not references:
        raise ValueError("no references")
    return 100.0 * (prediction == cleaned(references[0]))


def add(register: Callable[[str, Metric], Metric]) -> None:
    register("exact", Metric("exact", "%", clean=cleaned, score=score, version=1))
