"""Questions other than which encoder: over language models and projectors; seeds are in test_seeds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.loading import load_sweep
from rllava.errors import UserError
from rllava.model.assemble import build_connector
from rllava.model.language import TINY_LLAMA
from rllava.specs import ModelSpec
from rllava.weights import find_weights, weights_of
from sweeps import language_models, projectors, seeds
from sweeps.plan import Plan, check_inputs
from tests.fixtures.processes import Tracked
from tests.sweeps.driver import finish, start
from tests.sweeps.shown import unexpected


@pytest.fixture
def other_llama(tmp_path: Path) -> Path:
    """A language model of the embedded one's kind with other weights."""
    source, folder = find_weights(weights_of(TINY_LLAMA) or ""), tmp_path / "other-llama"
    model = AutoModelForCausalLM.from_pretrained(source)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.mark.processes
def test_the_same_encoder_under_two_language_models(other_llama: Path, tmp_path: Path, tracked: Tracked) -> None:
    storage = tmp_path / "results"
    options = ("--language-models", "tiny-llama", str(other_llama), "--encoders", "tiny-clip")
    output = finish(
        start(str(storage), tracked, *options, "--benchmarks", "easy_vqa", script="sweeps/language_models.py")
    )
    assert unexpected(output) == []
    names = {"tiny-clip:tiny-llama", "tiny-clip:other-llama"}
    records = load_sweep(str(storage), "language_models").records
    assert set(records["candidate"]) == names
    assert records.groupby("candidate")["model"].nunique().to_dict() == dict.fromkeys(names, 1)
    assert records["model"].nunique() == 2
    assert records["error"].isna().all()
    specs = [json.loads((model / "spec.json").read_text()) for model in (storage / "models").iterdir()]
    assert sorted(spec["language_model"]["name"] for spec in specs) == ["other-llama", "tiny-llama"]


def trained(plan: Plan) -> dict[str, ModelSpec]:
    return {c.name: c.model for c in plan.grid.candidates if isinstance(c.model, ModelSpec)}


def test_every_projector_is_a_model_of_its_own() -> None:
    plan = check_inputs(projectors.make_plan(projectors.Options(preset="smoke", projectors=("linear", "mlp3x_gelu"))))
    models = trained(plan)
    plugged = "tiny-fare4@tiny-clip"
    assert list(models) == ["tiny-clip:linear", "tiny-clip:mlp3x_gelu", f"{plugged}:linear", f"{plugged}:mlp3x_gelu"]
    assert models["tiny-clip:linear"] == models[f"{plugged}:linear"], "who is plugged in needs no training of its own"
    assert [len(list(build_connector(model)[0].projectors.parameters())) for model in plan.grid.models] == [2, 6]


def test_a_conversation_is_that_of_the_last_stage_alone(other_llama: Path) -> None:
    asked = language_models.Options(
        preset="smoke", language_models=(str(other_llama),), encoders=("tiny-clip",), conversation="chat", micro_batch=4
    )
    (model,) = trained(language_models.make_plan(asked)).values()
    assert [stage.conversation for stage in model.stages] == ["plain", "chat"]
    assert {stage.micro_batch for stage in model.stages} == {4}
    assert model.language_model.name == "other-llama"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: seeds.make_plan(seeds.Options(seeds=(3, 3))), "--seeds 3 3: one training has no spread"),
        (
            lambda: projectors.make_plan(projectors.Options(projectors=("mlpx_gelu",))),
            "unknown projector 'mlpx_gelu'; known: linear",
        ),
        (lambda: language_models.make_plan(language_models.Options()), "--language-models: give at least one"),
        (
            lambda: language_models.make_plan(language_models.Options(language_models=("tiny-lama",))),
            "unknown language model 'tiny-lama'; did you mean tiny-llama",
        ),
        (
            lambda: language_models.make_plan(language_models.Options(language_models=("no/such",))),
            "language model 'no/such': no such file or folder; for one of the hub write hub:no/such",
        ),
        (
            lambda: language_models.make_plan(
                language_models.Options(language_models=("tiny-llama",) * 2, conversation="x")
            ),
            "unknown conversation template 'x'",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
