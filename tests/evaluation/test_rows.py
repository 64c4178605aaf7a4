"""What a record says of where it comes from."""

import dataclasses
from typing import Any

import pytest

from rllava.attacks.protocols import PROTOCOLS
from rllava.conditions.attack import within
from rllava.conditions.clean import Clean
from rllava.data.benchmarks import BENCHMARKS
from rllava.encoders import encoder_spec
from rllava.evaluation.rows import record_head
from rllava.evaluation.samples import Sample
from rllava.fingerprint import fingerprint
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.recipes import PRESETS
from rllava.specs import EvalSpec
from rllava.weights import pin_weights

CLIP, ROBUST = (pin_weights(encoder_spec(name)) for name in ("tiny-clip", "tiny-fare4"))
SAMPLE = Sample("s0", "what?", ("red",), None, None)
MODEL = dataclasses.replace(PRESETS.get("smoke").model, encoders=(CLIP,))
SPEC = EvalSpec("a", MODEL, (CLIP,), BENCHMARKS.get("easy_vqa"), within(PROTOCOLS.get("fast"), 8.0), 4)


def head(**changes: Any) -> dict[str, Any]:
    spec = dataclasses.replace(SPEC, **changes)
    (part,) = spec.condition.parts
    return record_head(spec, SAMPLE, part)


def test_the_condition_says_what_was_shown() -> None:
    assert {key: head()[key] for key in ("condition", "kind", "epsilon")} == {
        "condition": PROTOCOLS.get("fast").label, "kind": "attack", "epsilon": 8.0,
    }  # fmt: skip
    clean = head(condition=Clean())
    assert (clean["condition"], clean["kind"], clean["epsilon"]) == ("clean", "clean", 0.0)


def test_the_seed_is_the_trainings_and_a_checkpoint_from_elsewhere_has_none() -> None:
    assert head(model=dataclasses.replace(MODEL, seed=7))["seed"] == 7
    checkpoint = CheckpointSpec(
        "c", "original", ("folder",), "0" * 64, (CLIP,), ("projector",), MODEL.projector, "vicuna_v1"
    )
    found = head(model=checkpoint)
    assert (found["seed"], found["draw"]) == (None, 0)
    assert len(found["model"]) == 16


def test_the_evaluation_is_its_specs_fingerprint() -> None:
    assert head()["evaluation"] == fingerprint(SPEC)
    assert head(condition=within(PROTOCOLS.get("fast"), 4.0))["evaluation"] != head()["evaluation"]


LONGER = dataclasses.replace(
    MODEL, stages=(MODEL.stages[0], dataclasses.replace(MODEL.stages[1], steps=MODEL.stages[1].steps + 1))
)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"candidate": "another name"}, True),
        ({"condition": Clean()}, True),
        ({"benchmark": BENCHMARKS.get("easy_captions")}, True),
        ({"condition": within(PROTOCOLS.get("strong"), 8.0)}, True),
        ({"batch_size": 1}, True),
        ({"model": LONGER}, False),
        ({"model": dataclasses.replace(MODEL, seed=1)}, False),
        ({"encoders": (ROBUST,)}, False),
    ],
)
def test_the_model_is_what_is_judged_whatever_its_name_and_whatever_it_is_asked(
    changes: dict[str, Any], same: bool
) -> None:
    assert (head(**changes)["model"] == head()["model"]) == same
