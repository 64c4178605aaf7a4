"""What a metric is: how it is prepared, scores one sample, and cleans text before; and the registry of metrics."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rllava.registry import Registry

MetricState = Any
"""What a metric knows about the whole sample list. Only the metric itself looks into it: CIDEr finds its document
frequencies there, the VQA accuracy None."""


def prepare_nothing(references_of_each_sample: Sequence[Sequence[str]]) -> None:
    """Prepares a metric that knows nothing about the sample list.

    Args:
        references_of_each_sample: not looked at.
    """
    del references_of_each_sample


def _none_to_json(state: MetricState) -> None:
    assert state is None, f"a metric without state_to_json has no state, but was given {state!r}"


def _none_from_json(value: Any) -> None:
    if value is not None:
        raise ValueError(f"the metric has no state, but one lies there: {value!r}")


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: its name in :data:`METRICS`.
        unit: of its scores, as in the paper's tables.
        clean: from generated text to the prediction that is scored.
        score: from (prediction, references, state) to the sample's score; raises ``ValueError`` if it needs references
            and there are none. An attack takes a score of 0 for the worst there is, as that of an empty prediction.
        prepare: from the references of each sample to the frozen state; raises ``UserError`` if they are too few.
        state_to_json: from the state to plain JSON values, the same for an equal state.
        state_from_json: its inverse; raises ``ValueError`` if the values are not such.
        version: raised when any answer gets another score, or is cleaned otherwise.
        higher_is_better: whether a larger score is a better answer.
        needs_references: whether a sample without references has no score.
        learn: takes the place of ``prepare``: from all references of the data set, in and beyond the sample list, each
            as it was written and as it stands; raises ``UserError`` if there are none. None: ``prepare`` it is.
    """

    name: str
    unit: str
    clean: Callable[[str], str]
    score: Callable[[str, Sequence[str], MetricState], float]
    prepare: Callable[[Sequence[Sequence[str]]], MetricState] = prepare_nothing
    state_to_json: Callable[[MetricState], Any] = _none_to_json
    state_from_json: Callable[[Any], MetricState] = _none_from_json
    version: int = 1
    higher_is_better: bool = True
    needs_references: bool = True
    learn: Callable[[Iterable[tuple[str, str]]], MetricState] | None = None


METRICS: Registry[Metric] = Registry("metric", "rllava.metrics")


def metric_to_json(metric: Metric, state: MetricState) -> str:
    """Writes a metric's name and state.

    Args:
        state: what its ``prepare`` returned.

    Returns:
        JSON; the same text for an equal state.
    """
    fields = {"metric": metric.name, "state": metric.state_to_json(state)}
    return json.dumps(fields, sort_keys=True, ensure_ascii=False)


def metric_from_json(text: str) -> tuple[Metric, MetricState]:
    """Reads what :func:`metric_to_json` wrote.

    Returns:
        The metric and an equal state.

    Raises:
        ValueError: if the text is not such JSON.
        UserError: if the metric is unknown.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict) or "metric" not in fields or "state" not in fields:
        raise ValueError("no metric and state in it")
    metric = METRICS.get(fields["metric"])
    return metric, metric.state_from_json(fields["state"])
