"""The DeepSpeed loop with real process groups: ZeRO-2 and ZeRO-3, one and two workers, killed and resumed."""

import json
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_cosine_schedule_with_warmup

from rllava.encoders import build_encoder, encoder_spec
from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.model.assemble import build_connector
from rllava.model.causal_lm import layers
from rllava.model.llava import Connector
from rllava.recipes import PRESETS
from rllava.specs import Rates
from rllava.training.loop import (
    conversation_tokens,
    deepspeed_config,
    learning_rate,
    only_weights,
    recompute_layers,
)
from tests.fixtures.forks import Forks
from tests.fixtures.ray_cluster import free_port

CONVERSATION = [
    {"from": "human", "value": "<image>\nwhat color is the shape?"},
    {"from": "gpt", "value": "red"},
]
BOTH = {"projectors": 1e-3, "language_model": 1e-3}
OPTIONS = {"steps": 5, "micro": 4, "zero": 2, "rates": BOTH}


def train(
    forks: Forks, out: Path, workers: int, packages: Path | None = None, **options: Any
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Runs a stage with so many processes; a deliberate death is no error."""
    out.mkdir(exist_ok=True)
    arguments = [json.dumps({**OPTIONS, "out": str(out), **options})]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(workers),
        "LOCAL_RANK": "0",
    }
    group = [(arguments, {**shared, "RANK": str(rank)}) for rank in range(workers)]
    log = out / "printed.txt"
    codes = set(forks.run("tests.training.stage_process", group, log, packages))
    if "die_at" in options:
        assert codes == {9}, log.read_text()[-3000:]
        return {}, []
    assert codes == {0}, log.read_text()[-3000:]
    return load_file(out / "weights.safetensors"), json.loads((out / "losses.json").read_text())


def assert_same(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], *, atol: float, rtol: float = 0.0
) -> None:
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], atol=atol, rtol=rtol, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.fixture(scope="module")
def uninterrupted(
    forks: Forks, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """Final weights by (workers, ZeRO stage)."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return {
        (workers, zero): train(forks, folder / f"{workers}-{zero}", workers, zero=zero)[0]
        for workers, zero in ((1, 2), (2, 2), (2, 3))
    }


def test_zero_stages_and_worker_counts_reach_the_same_weights(
    uninterrupted: dict[tuple[int, int], dict[str, torch.Tensor]],
) -> None:
    assert_same(uninterrupted[2, 3], uninterrupted[2, 2], atol=1e-5)
    assert all(torch.isfinite(value).all() for weights in uninterrupted.values() for value in weights.values())
    assert uninterrupted[1, 2].keys() == uninterrupted[2, 2].keys()


@pytest.mark.parametrize(("workers", "zero"), [(1, 2), (2, 3)])
def test_a_killed_stage_goes_on_to_the_same_weights(
    forks: Forks, uninterrupted: dict[tuple[int, int], dict[str, torch.Tensor]], tmp_path: Path, workers: int, zero: int
) -> None:
    train(forks, tmp_path / "killed", workers, zero=zero, die_at=2)
    resumed, losses = train(
        forks, tmp_path / "resumed", workers, zero=zero, resume=str(tmp_path / "killed" / "checkpoint-2")
    )
    assert len(losses) == OPTIONS["steps"] - 2
    assert_same(resumed, uninterrupted[workers, zero], atol=0.0)


@pytest.mark.parametrize(("workers", "zero"), [(1, 2), (2, 3)])
def test_layers_that_are_computed_again_reach_the_same_weights(
    forks: Forks, uninterrupted: dict[tuple[int, int], dict[str, torch.Tensor]], tmp_path: Path, workers: int, zero: int
) -> None:
    weights, _ = train(forks, tmp_path / "again", workers, zero=zero, gradient_checkpointing=True)
    assert_same(weights, uninterrupted[workers, zero], atol=0.0)


@pytest.mark.parametrize("train_language_model", [False, True])
def test_layers_run_again_in_the_backward_pass_to_the_same_gradients(train_language_model: bool) -> None:
    spec = replace(PRESETS.get("smoke").model, encoders=(encoder_spec("tiny-clip"),))
    gradients, runs, kept = [], [], []
    for recompute in (False, True):
        connector, tokenizer = build_connector(spec)
        connector.train().language_model.requires_grad_(train_language_model)
        if recompute:
            recompute_layers(connector)
        counted: list[int] = []
        attention = next(layers(connector.language_model)[0].children())
        attention.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        tokens = [conversation_tokens(tokenizer, "vicuna_v1_short", json.dumps(CONVERSATION))]
        features = [torch.linspace(-1, 1, 16 * encoder.width).view(1, 16, -1) for encoder in spec.encoders]
        held: list[int] = []

        def pack(value: torch.Tensor, held: list[int] = held) -> torch.Tensor:
            held.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            loss_B, _ = connector(features, tokens, 2048)
        forward = sum(held)
        loss_B.sum().backward()
        gradients.append({name: p.grad for name, p in connector.named_parameters() if p.grad is not None})
        runs.append(len(counted))
        kept.append(forward)
    assert runs == [1, 2]
    assert kept[1] < kept[0] / 2
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith("language_model") for name in gradients[0]) == train_language_model
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_language_model_that_cannot_run_its_layers_again_is_refused() -> None:
    with pytest.raises(UserError, match="gradient_checkpointing: Linear cannot"):
        recompute_layers(Connector([torch.nn.Linear(2, 2)], torch.nn.Linear(2, 2)))


def test_memory_for_time_is_the_same_model() -> None:
    spec = PRESETS.get("paper").model.stages[1]
    assert spec.gradient_checkpointing
    assert fingerprint(spec) == fingerprint(replace(spec, gradient_checkpointing=False))


PARTS = ("projectors", "language_model", "encoders")


def untrained() -> dict[str, torch.Tensor]:
    """What a stage begins with, under the names by which it hands its weights over."""
    encoder = build_encoder(encoder_spec("tiny-clip"))
    connector, _ = build_connector(replace(PRESETS.get("tiny").model, encoders=(encoder.spec,)))
    return {**connector.state_dict(), **{f"encoders.0.{key}": value for key, value in encoder.state_dict().items()}}


def test_a_part_without_a_rate_stays_as_it_is(forks: Forks, tmp_path: Path) -> None:
    before = untrained()
    after, losses = train(forks, tmp_path / "out", 1, rates={"projectors": 1e-3}, steps=2)
    assert {key.split(".")[0] for key in after} == {"projectors", "language_model"}
    assert {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])} == {"projectors"}
    assert len(losses) == 2


def test_each_part_learns_at_its_own_rate(forks: Forks, tmp_path: Path) -> None:
    """AdamW's first step changes every weight that has a gradient by the rate, whatever the gradient's size."""
    rates = {"projectors": 1e-3, "language_model": 1e-4, "encoders": 1e-5}
    before = untrained()
    after, _ = train(forks, tmp_path / "out", 1, rates=rates, steps=1, warmup=0.0)
    for part, rate in rates.items():
        moved = [(after[key] - before[key]).abs().max() for key in after if key.startswith(part) and key in before]
        assert float(max(moved)) == pytest.approx(rate, rel=0.02), part


def test_trained_encoders_go_on_after_a_kill(forks: Forks, tmp_path: Path) -> None:
    stage = {"rates": dict.fromkeys(PARTS, 1e-3), "zero": 3, "steps": 4}
    whole, _ = train(forks, tmp_path / "whole", 2, **stage)
    before = untrained()
    assert {key.split(".")[0] for key in whole if not torch.equal(whole[key], before[key])} == set(PARTS)
    train(forks, tmp_path / "killed", 2, die_at=2, **stage)
    resumed, _ = train(forks, tmp_path / "resumed", 2, resume=str(tmp_path / "killed" / "checkpoint-2"), **stage)
    assert_same(resumed, whole, atol=0.0)


def test_an_objective_of_another_package_draws_the_same_on_any_number_of_workers(
    forks: Forks, packages: Path, tmp_path: Path
) -> None:
    """Its noise comes from the samples' places in the stream, not from the workers that they are on."""
    stage = {"objective": "llava_on_noise", "steps": 2, "packages": packages}
    alone, losses = train(forks, tmp_path / "alone", 1, **stage)
    shared, same = train(forks, tmp_path / "shared", 2, **stage)
    assert losses == pytest.approx(same, abs=1e-5)  # sums of other portions
    assert_same(alone, shared, atol=1e-4)
    _, without = train(forks, tmp_path / "without", 1, steps=2)
    assert abs(losses[0] - without[0]) > 1e-4


def test_a_worker_with_text_alone_stays_in_step_with_one_with_images(forks: Forks, tmp_path: Path) -> None:
    weights, losses = train(forks, tmp_path / "mixed", 2, steps=1, text_alone=[1])
    assert len(losses) == 1
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    stage = PRESETS.get("tiny").model.stages[1]
    rates = [learning_rate(stage, 1e-3, step) for step in range(stage.steps + 1)]
    warm = rates.index(max(rates))
    assert 0 < rates[0] < rates[warm - 1] <= 1e-3 == pytest.approx(max(rates))
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("number", [0, 1])
def test_the_papers_learning_rates_are_hugging_faces(number: int) -> None:
    """LLaVA's trainer: ``--lr_scheduler_type cosine --warmup_ratio 0.03``."""
    stage, peak = PRESETS.get("paper").model.stages[number], 2e-5
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    warm = math.ceil(stage.warmup * stage.steps)  # TrainingArguments.get_warmup_steps
    schedule = get_cosine_schedule_with_warmup(optimiser, warm, stage.steps)
    for step in range(stage.steps):
        assert learning_rate(stage, peak, step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12, abs=1e-18)
        optimiser.step()
        schedule.step()
    assert learning_rate(stage, peak, 0) == 0.0


def test_a_stage_that_trains_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is trained; give one of projectors, language_model, encoders"):
        Rates()
    with pytest.raises(ValueError, match=r"rates: encoders has 0\.0; expected a number above 0, or None"):
        Rates(projectors=1e-3, encoders=0.0)


def test_accumulation_follows_from_batches_and_workers() -> None:
    stage = PRESETS.get("smoke").model.stages[1]
    assert deepspeed_config(stage, 2)["gradient_accumulation_steps"] == 1
    assert deepspeed_config(stage, 1)["gradient_accumulation_steps"] == 2


def test_checkpoints_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "pwned"),))

    torch.save({"state": Evil()}, tmp_path / "evil.pt")
    with only_weights(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "evil.pt", weights_only=False)
    assert not (tmp_path / "pwned").exists()
