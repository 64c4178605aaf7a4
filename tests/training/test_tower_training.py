"""Fine-tuning of whole towers: the published numbers, what is done in which mode, kills, and mistakes.

Golden numbers are those of the published scripts; see ``tests/golden/make_robust_clip.py``.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from open_clip_train.scheduler import cosine_lr
from torch import Tensor, nn

from benchmarks.robust_clip_scripts import Case, Given, run_ours
from rllava.attacks.inner import InnerPgd
from rllava.encoders.base import EncoderSpec
from rllava.encoders.whole import WholeTower, bare_whole
from rllava.errors import UserError
from rllava.training.pretraining import read_state
from rllava.training.tower_objectives import TOWER_OBJECTIVES, Views
from rllava.training.tower_recipe import TowerTraining, learning_rate, published
from rllava.training.tower_training import TowerProgress, frozen_copy, step_loss, train_tower
from tests.golden.make_robust_clip import CASES, STEPS, numbers, start

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "robust_clip.json").read_text())
FARE = CASES[0].training


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_losses_images_and_weights_are_the_published_ones(case: Case) -> None:
    expected, found = GOLDEN[case.name], run_ours(case, start())
    # Float64, in which six updates by another build of PyTorch stay together to nine digits.
    assert found.losses == pytest.approx(expected["losses"], rel=1e-9)
    assert [float(batch.square().mean()) for batch in found.images] == pytest.approx(expected["images"], rel=1e-9)
    assert numbers(found.weights[-1]) == pytest.approx(expected["weights"], rel=1e-9)


def test_the_first_update_is_at_the_full_rate_and_the_second_at_two_steps_of_warm_up() -> None:
    training = published("fare", 4.0)
    assert [learning_rate(training, step) for step in (0, 1, 2)] == [1e-5, 1e-5 * 2 / 1400, 1e-5 * 3 / 1400]
    assert learning_rate(training, 1400) == 1e-5
    assert learning_rate(training, 10_700) == pytest.approx(0.5e-5)
    assert learning_rate(training, 19_999) < 1e-12


def test_every_rate_is_open_clips_to_the_bit() -> None:
    training, set_to = replace(FARE, steps=97, warmup=13), [FARE.learning_rate]
    group = {"lr": FARE.learning_rate}
    schedule = cosine_lr(SimpleNamespace(param_groups=[group]), training.learning_rate, 13, 97)
    for step in range(1, 97):  # behind each update, as the published scripts call it
        schedule(step)
        set_to.append(group["lr"])
    assert [learning_rate(training, step) for step in range(97)] == set_to


def test_the_published_recipes_are_those_of_their_readmes() -> None:
    fare, tecoa, simclip = (published(method, 2.0) for method in ("fare", "tecoa", "simclip"))  # type: ignore[arg-type]
    assert replace(fare, objective="tecoa") == tecoa
    assert (fare.steps, fare.warmup, fare.batch_size, fare.learning_rate) == (20_000, 1400, 128, 1e-5)
    assert (fare.weight_decay, fare.optimiser, fare.attack) == (1e-4, "adamw", InnerPgd(2.0, 10, 1.0, 0.9))
    assert (simclip.steps, simclip.batch_size, simclip.learning_rate, simclip.weight_decay) == (10_000, 64, 1e-3, 1e-5)
    assert simclip.objective == "simclip_as_released"


def train(
    given: Given, training: TowerTraining, tower: WholeTower | None = None, **options: Any
) -> tuple[list[float], dict[str, Tensor]]:
    tower = copy.deepcopy(given.tower) if tower is None else tower
    losses: list[float] = []
    arguments: dict[str, Any] = {"text_KE": given.text_KE, "report": lambda row: losses.append(row.loss), **options}
    train_tower(tower, frozen_copy(given.tower), lambda step: iter(given.data[step:]), training, **arguments)
    return losses, tower.state_dict()


def test_the_attack_is_in_evaluation_mode_and_the_update_in_training_mode() -> None:
    given = start()
    tower = copy.deepcopy(given.tower)
    calls: list[tuple[bool, bool]] = []
    tower.register_forward_hook(lambda module, *_: calls.append((module.training, module.tower.proj.requires_grad)))
    step_loss(tower, frozen_copy(given.tower), FARE, *given.data[0], given.starts[0])
    assert calls == [(False, False)] * FARE.attack.steps + [(True, True)]
    calls.clear()
    step_loss(tower, frozen_copy(given.tower), replace(FARE, trades=True), *given.data[0], given.starts[0])
    assert calls == [(False, False)] * FARE.attack.steps + [(True, True)] * 2


def test_a_samples_attack_does_not_depend_on_its_batch() -> None:
    given = start()
    (pixels_BCHW, class_B), delta_BCHW = given.data[0], given.starts[0]
    for objective in ("fare", "tecoa"):
        training = replace(FARE, objective=objective)

        def images(rows: slice, training: TowerTraining = training) -> list[float]:
            tower, base = copy.deepcopy(given.tower), frozen_copy(given.tower)
            arguments = (tower, base, training, pixels_BCHW[rows], class_B[rows], delta_BCHW[rows], given.text_KE)
            return step_loss(*arguments).sample_B.tolist()

        assert images(slice(None))[1:2] == pytest.approx(images(slice(1, 2)), rel=1e-9)


def gradient(objective: str, tower: WholeTower, given: Given) -> Tensor:
    """Of the projection, from a tower that has left its base."""
    base = frozen_copy(given.tower)
    loss = step_loss(tower, base, replace(FARE, objective=objective), *given.data[0], given.starts[0], given.text_KE)
    (found,) = torch.autograd.grad(loss.total, tower.tower.proj)
    return found


def test_half_of_sim_clips_released_loss_teaches_nothing() -> None:
    given = start()
    views = Views(*(torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)), torch.zeros(3))
    views = replace(views, clean_BE=torch.randn(3, 5, dtype=torch.float64, requires_grad=True))
    released, stated = (TOWER_OBJECTIVES.get(name).outer for name in ("simclip_as_released", "simclip"))
    cosine_B = nn.functional.cosine_similarity(views.attacked_BE, views.base_BE, dim=-1)
    torch.testing.assert_close(released(views), -cosine_B, rtol=0, atol=1e-12)
    (found,) = torch.autograd.grad(released(views).sum(), views.attacked_BE)
    (whole,) = torch.autograd.grad(-cosine_B.sum(), views.attacked_BE)
    torch.testing.assert_close(found, whole / 2, rtol=0, atol=1e-12)
    assert views.clean_BE is not None
    both = torch.autograd.grad(stated(views).sum(), (views.attacked_BE, views.clean_BE))
    cosine_B = nn.functional.cosine_similarity(views.attacked_BE, views.clean_BE, dim=-1)
    for half, full in zip(both, torch.autograd.grad(-cosine_B.sum(), (views.attacked_BE, views.clean_BE)), strict=True):
        torch.testing.assert_close(half, full / 2, rtol=0, atol=1e-12)
    tower = copy.deepcopy(given.tower)
    assert not torch.allclose(gradient("simclip", tower, given), gradient("simclip_as_released", tower, given))


DROPPING = EncoderSpec(
    "dropping", "rllava.encoders.towers.open_clip:build", None, 28, 0, 0, architecture="ViT-L-14",
    arguments=(("layers", 1), ("width", 32), ("head_width", 16), ("patch_dropout", 0.5), ("patch_size", 7)), layer=-1,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["fare", "tecoa", "sgd", "patch dropout"])
def test_what_was_cut_off_comes_to_the_same_weights(kind: str, dtype: torch.dtype) -> None:
    given = start()
    tower = bare_whole(DROPPING) if kind == "patch dropout" else given.tower
    pixels = [(pixels.to(dtype), classes) for pixels, classes in given.data]
    given = Given(tower.to(dtype), pixels, given.starts, given.text_KE.to(dtype))
    training = replace(FARE, objective="tecoa" if kind == "tecoa" else "fare", seed=3)
    training = replace(training, optimiser="sgd" if kind == "sgd" else "adamw")
    states: dict[int, bytes] = {}
    losses, whole = train(given, training, checkpoint_every=2, save=states.__setitem__)
    assert list(states) == [2, 4]
    assert len(set(losses)) == STEPS
    for done, state in states.items():
        torch.rand(done)  # whatever else was drawn before
        rest, resumed = train(given, training, resume=read_state(state))
        assert rest == losses[done:]
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_statistics_of_batch_norm_stay_and_its_scales_learn() -> None:
    spec = EncoderSpec("bn", "rllava.encoders.towers.timm:build", None, 64, 0, 0, architecture="test_resnet")
    tower = bare_whole(spec)
    before = copy.deepcopy(tower.state_dict())
    data = [(torch.rand(3, 3, 64, 64), torch.zeros(3, dtype=torch.long)) for _ in range(2)]
    train_tower(tower, frozen_copy(tower), lambda step: iter(data), replace(FARE, steps=2, warmup=1))
    moved = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
    assert "bn1.weight" in {name.removeprefix("tower.") for name in moved}
    assert not any("running" in name or "num_batches" in name for name in moved)


def test_a_library_decides_what_learns() -> None:
    fixed = replace(DROPPING, arguments=(*DROPPING.arguments, ("pos_embed_type", "sin_cos_2d")))
    tower = bare_whole(fixed)
    data = [(torch.rand(3, 3, 28, 28), torch.zeros(3, dtype=torch.long))]
    before = copy.deepcopy(tower.state_dict())
    train_tower(tower, frozen_copy(tower), lambda step: iter(data), replace(FARE, steps=1, warmup=1))
    still = [name for name, value in tower.state_dict().items() if torch.equal(value, before[name])]
    assert "tower.positional_embedding" in still
    assert "tower.proj" not in still


# Mistakes: one line, and nothing spoilt.


def broken(given: Given, step: int) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """The data with a sample that makes the loss of a step NaN."""
    data = copy.deepcopy(given.data)
    data[step][0][1, 0, 0, 0] = torch.nan
    return lambda first: iter(data[first:])


def test_a_loss_that_is_nan_names_step_and_sample_and_keeps_the_last_state() -> None:
    given, states, rows = start(), dict[int, bytes](), list[TowerProgress]()
    tower = copy.deepcopy(given.tower)
    with pytest.raises(
        UserError, match=r"step 4: the loss of sample 1 of the batch is nan; the last checkpoint"
    ) as caught:
        train_tower(
            tower, frozen_copy(given.tower), broken(given, 3), FARE, starts=lambda step, _: given.starts[step],
            checkpoint_every=1, save=states.__setitem__, report=rows.append,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert (len(rows), list(states)) == (3, [1, 2, 3])
    kept = read_state(states[3])["model"]
    assert all(torch.equal(value, kept[name]) for name, value in tower.state_dict().items())
    assert all(bool(value.isfinite().all()) for value in kept.values())


def test_a_gradient_that_is_not_finite_is_no_update() -> None:
    given = start()
    tower = copy.deepcopy(given.tower)
    tower.tower.proj.register_hook(lambda found: found * torch.inf)
    with pytest.raises(UserError, match="step 1: a gradient is not finite though the loss is"):
        train(given, FARE, tower)
    assert torch.equal(tower.tower.proj, given.tower.tower.proj)


def test_texts_that_are_missing_or_of_another_clip_are_refused() -> None:
    given, tecoa = start(), replace(FARE, objective="tecoa")
    with pytest.raises(UserError, match="tecoa compares images with the texts of their classes, and there is no text"):
        train(given, tecoa, text_KE=None)
    with pytest.raises(UserError, match="its embeddings are 768 wide, those of the texts 512"):
        train(given, tecoa, text_KE=given.text_KE[:, :512])
    with pytest.raises(UserError, match="data with one class teach tecoa nothing"):
        train(given, tecoa, text_KE=given.text_KE[:1])
    with pytest.raises(UserError, match=r"step \d: classes \d to 3, 3 texts"):
        train(given, tecoa, text_KE=given.text_KE[:3])


def test_batches_of_another_size_and_data_that_end_are_refused() -> None:
    given = start()
    with pytest.raises(UserError, match="step 1: a batch of 3 images and 3 classes, not of 5"):
        train(given, replace(FARE, batch_size=5))
    with pytest.raises(UserError, match=f"step {STEPS + 1} of 9: there are no more images"):
        train(given, replace(FARE, steps=9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "fair"}, "unknown objective of a tower 'fair'; did you mean fare"),
        ({"optimiser": "adam"}, "expected 'adamw' or 'sgd', got 'adam'"),
        ({"warmup": 7, "steps": 6}, "expected 0 to 6 of the 6 steps, got 7"),
        ({"clean_weight": 1.5}, "clean_weight: expected a share"),
        ({"objective": "simclip", "trades": True}, "would change nothing in simclip"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FARE, **changes)
