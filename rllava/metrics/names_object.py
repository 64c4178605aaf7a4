"""Whether a description names something: by its words, as a judge that needs no model.

MultiTrust asks a chat model instead; a ``chat`` judge asks its question (``docs/data.md``). The two do not agree
everywhere: a synonym is not found here, and "there is no dog" names a dog.
"""

import re
from collections.abc import Sequence

from rllava.metrics.metric import METRICS, Metric, MetricState


def names(text: str, label: str) -> bool:
    """Whether a label's words stand in a text one after the other, in singular or a regular plural, in any case."""
    words = [re.escape(word) for word in label.lower().split()]
    if not words:
        return False
    last = words[-1]
    if last.endswith("y"):
        last = f"(?:{last}|{last[:-1]}ies)"
    found = rf"\b{' '.join([*words[:-1], last])}(?:s|es)?\b".replace(" ", r"[\s-]+")
    return re.search(found, text.lower()) is not None


def _score(prediction: str, references: Sequence[str], state: MetricState) -> float:
    assert state is None, "whether something is named has no state"
    if not references:
        raise ValueError("no references; whether something is named needs its name")
    return 100.0 if any(names(prediction, label) for label in references) else 0.0


METRICS.register("names_object", Metric("names_object", "%", clean=str.strip, score=_score))
