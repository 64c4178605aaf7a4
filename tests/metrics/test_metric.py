"""The registry of metrics: one way to prepare, store, restore and score."""

import json
import subprocess
import sys

import pytest

from rllava.errors import UserError
from rllava.metrics.metric import METRICS, metric_from_json, metric_to_json

CAPTIONS = [["a red circle", "the circle is red"], ["a blue square", "the square is blue"], ["a dog"]]
ANSWERS = [["red"] * 10, ["blue"] * 10, ["dog"] * 10]
REFERENCES = {"cider": CAPTIONS, "vqa_accuracy": ANSWERS}


def test_metrics_are_registered_under_their_names() -> None:
    assert list(METRICS) == [
        "answered",
        "choice_letter",
        "cider",
        "names_object",
        "okvqa_learnt",
        "okvqa_stemmed",
        "vqa_accuracy",
        "yes_no",
        "yes_no_exact",
    ]
    assert all(METRICS.get(name).name == name for name in METRICS)
    with pytest.raises(UserError, match="did you mean cider"):
        METRICS.get("ciderr")


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_a_restored_metric_scores_the_same(name: str) -> None:
    metric, references = METRICS.get(name), REFERENCES[name]
    state = metric.prepare(references)
    text = metric_to_json(metric, state)
    restored, restored_state = metric_from_json(text)
    assert restored is metric
    assert metric_to_json(restored, restored_state) == text
    for own in references:
        right = metric.score(own[0], own, state)
        assert right == restored.score(own[0], own, restored_state)
        assert right > metric.score("zebra", own, state) == 0.0
        assert metric.score("", own, state) == 0.0


def test_a_right_answer_of_agreeing_annotators_scores_100() -> None:
    metric = METRICS.get("vqa_accuracy")
    assert metric.score(metric.clean("Red."), ["red"] * 10, metric.prepare([["red"] * 10])) == 100.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"metric": "cider", "state": {"documents": 1}}),
        json.dumps({"metric": "cider", "state": None}),
        json.dumps({"metric": "vqa_accuracy", "state": {"documents": 1, "counts": {}}}),
    ],
)
def test_damaged_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        metric_from_json(text)


def test_the_text_of_a_state_stays_what_it_was() -> None:
    """It lies beside the shards of benchmarks that were built before."""
    metric = METRICS.get("cider")
    state = metric.prepare([["roter Kreis", "é"], ["roter"]])
    counts = '{"kreis": 1, "roter": 2, "roter kreis": 1, "é": 1}'
    assert metric_to_json(metric, state) == f'{{"metric": "cider", "state": {{"counts": {counts}, "documents": 2}}}}'
    stateless = METRICS.get("vqa_accuracy")
    assert metric_to_json(stateless, stateless.prepare([["a"]])) == '{"metric": "vqa_accuracy", "state": null}'


def test_metrics_import_neither_ray_nor_torch() -> None:
    code = "import sys, rllava.metrics.metric; assert not {'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
