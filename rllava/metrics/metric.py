"""The metrics a benchmark can name: how they are prepared, how they score one sample, and how text is cleaned."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rllava.metrics.cider import DocumentFrequencies, cider, document_frequencies
from rllava.metrics.cleaning import clean_caption, clean_vqa_answer
from rllava.metrics.vqa import vqa_accuracy
from rllava.registry import Registry

MetricState = DocumentFrequencies | None
"""What a metric knows about the whole sample list: CIDEr its document frequencies, VQA accuracy nothing."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: its name in :data:`METRICS`.
        unit: of its scores, as in the paper's tables.
        clean: from generated text to the prediction that is scored.
        prepare: from the references of each sample to the frozen state; raises ``UserError`` if they are too few.
        score: from (prediction, references, state) to the sample's score, larger is better, 0 for an empty
            prediction; raises ``ValueError`` if there are no references.
        version: raised when any answer gets another score, or is cleaned otherwise.
    """

    name: str
    unit: str
    clean: Callable[[str], str]
    prepare: Callable[[Sequence[Sequence[str]]], MetricState]
    score: Callable[[str, Sequence[str], MetricState], float]
    version: int = 1


METRICS: Registry[Metric] = Registry("metric")


def metric_to_json(metric: Metric, state: MetricState) -> str:
    """Writes a metric's name and state.

    Args:
        metric: the metric.
        state: what its ``prepare`` returned.

    Returns:
        JSON; the same text for an equal state.
    """
    return json.dumps(
        {"metric": metric.name, "state": None if state is None else json.loads(state.to_json())},
        sort_keys=True,
        ensure_ascii=False,
    )


def metric_from_json(text: str) -> tuple[Metric, MetricState]:
    """Reads what :func:`metric_to_json` wrote.

    Args:
        text: the JSON.

    Returns:
        The metric and an equal state.

    Raises:
        ValueError: if the text is not such JSON.
        UserError: if the metric is unknown.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict) or "metric" not in fields or "state" not in fields:
        raise ValueError("no metric and state in it")
    state = fields["state"]
    return METRICS.get(fields["metric"]), None if state is None else DocumentFrequencies.from_json(json.dumps(state))


def _score_cider(prediction: str, references: Sequence[str], state: MetricState) -> float:
    assert state is not None, "CIDEr needs the state that its prepare returned"
    return cider(prediction, references, state)


def _score_vqa(prediction: str, references: Sequence[str], state: MetricState) -> float:
    assert state is None, "the VQA accuracy has no state"
    return vqa_accuracy(prediction, references)


def _prepare_nothing(references_of_each_sample: Sequence[Sequence[str]]) -> None:
    del references_of_each_sample


METRICS.register("cider", Metric("cider", "CIDEr x 100", clean_caption, document_frequencies, _score_cider))
METRICS.register("vqa_accuracy", Metric("vqa_accuracy", "%", clean_vqa_answer, _prepare_nothing, _score_vqa))
