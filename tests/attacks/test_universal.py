"""One image against many targets: a small linear model "says" one of 20 sentences of four words."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllava.attacks.universal import UNCONSTRAINED, UniversalAttack, UniversalResult, UniversalSettings
from tests.attacks.classifier import images

WORDS, LENGTH, SENTENCES = 10, 4, 20
WEIGHT = torch.from_numpy(np.random.RandomState(3).randn(LENGTH * WORDS, 3 * 8 * 8))
# Three words make up the sentences, so that one image can make all of them likelier.
CORPUS_NT = torch.from_numpy(np.random.RandomState(5).randint(0, 3, (SENTENCES, LENGTH)))
IMAGE_CHW = images(1)[0][0]


def say(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
    """Minus the cross-entropy of each drawn sentence: to be maximised."""
    logits_TV = (WEIGHT.to(image_1CHW.dtype) @ image_1CHW.flatten()).reshape(LENGTH, WORDS)
    words_NT = CORPUS_NT[index_N]
    loss_NT = F.cross_entropy(logits_TV.T.expand(len(index_N), -1, -1), words_NT, reduction="none")
    return -loss_NT.mean(1)


def begin(**change: Any) -> UniversalAttack:
    arguments = {
        "loss": say, "image_CHW": IMAGE_CHW, "weights": [1.0] * SENTENCES, "epsilon": 32.0, "seed": 0, "steps": 60,
        **change,
    }  # fmt: skip
    names = {field.name for field in dataclasses.fields(UniversalSettings)} & set(arguments)
    settings = UniversalSettings(**{name: arguments.pop(name) for name in names})
    return UniversalAttack(settings=settings, **arguments)


def attack(**change: Any) -> UniversalResult:
    found = begin(**change)
    while not found.done:
        found.step()
    return found.result()


def mean_loss(image_CHW: Tensor) -> float:
    return float(say(image_CHW[None], torch.arange(SENTENCES)).mean())


@pytest.mark.parametrize("epsilon", [4.0, 32.0, UNCONSTRAINED])
def test_all_targets_become_likelier_and_the_budget_is_kept(epsilon: float) -> None:
    result = attack(epsilon=epsilon)
    first_S, last_S = result.loss_S[:10], result.loss_S[-10:]
    assert result.loss_S.shape == result.zero_gradient_S.shape == (60,)
    assert float(last_S.mean()) > float(first_S.mean())
    assert mean_loss(result.image_CHW) > mean_loss(IMAGE_CHW) + 0.3
    radius = epsilon / 255
    assert torch.all(result.image_CHW >= (IMAGE_CHW - radius).clamp(min=0))
    assert torch.all(result.image_CHW <= (IMAGE_CHW + radius).clamp(max=1))
    assert not result.failed
    assert float(result.zero_gradient_S.max()) == 0


def test_a_larger_budget_does_better_and_an_attack_better_than_its_start() -> None:
    reached = [mean_loss(attack(epsilon=epsilon, steps=200).image_CHW) for epsilon in (1.0, 4.0, 16.0, 64.0)]
    assert reached == sorted(reached)
    assert reached[-1] > reached[0] + 0.5


def test_unconstrained_uses_the_whole_box_and_forgets_the_image() -> None:
    result = attack(epsilon=UNCONSTRAINED, steps=255)
    assert torch.equal(
        result.image_CHW, attack(epsilon=UNCONSTRAINED, steps=255, image_CHW=torch.zeros_like(IMAGE_CHW)).image_CHW
    )
    assert float(result.image_CHW.min()) == 0
    assert float(result.image_CHW.max()) == 1
    assert float((result.image_CHW - IMAGE_CHW).abs().max()) > 128 / 255
    start_CHW = attack(epsilon=UNCONSTRAINED, steps=1, step_size=1e-9).image_CHW
    assert 0.4 < float(start_CHW.mean()) < 0.6
    assert 0.25 < float(start_CHW.std()) < 0.33, "uniform noise in [0, 1] has a standard deviation of 0.289"


def test_the_start_is_noise_within_the_budget_and_a_step_is_one_level() -> None:
    grey_CHW = torch.full((3, 8, 8), 0.5, dtype=torch.float64)
    start_CHW = attack(image_CHW=grey_CHW, steps=1, step_size=1e-9).image_CHW
    noise_CHW = (start_CHW - grey_CHW) * 255 / 32
    assert 0.9 < float(noise_CHW.abs().max()) <= 1
    assert abs(float(noise_CHW.mean())) < 0.15
    step_CHW = attack(image_CHW=grey_CHW, steps=1).image_CHW - start_CHW
    free_CHW = noise_CHW.abs() < 0.95  # elsewhere the budget may cut the step short
    torch.testing.assert_close(step_CHW[free_CHW].abs() * 255, torch.ones_like(step_CHW[free_CHW]), rtol=0, atol=1e-6)


def test_the_step_follows_the_gradient_of_the_drawn_targets() -> None:
    drawn: list[Tensor] = []

    def watch(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
        assert image_1CHW.shape == (1, 3, 8, 8)
        drawn.append(index_N)
        return say(image_1CHW, index_N)

    before_CHW, after_CHW = (attack(loss=watch, steps=steps, epsilon=UNCONSTRAINED).image_CHW for steps in (9, 10))
    leaf_1CHW = before_CHW[None].clone().requires_grad_(True)
    (gradient_1CHW,) = torch.autograd.grad(say(leaf_1CHW, drawn[-1]).mean(), leaf_1CHW)
    expected_CHW = (before_CHW + gradient_1CHW[0].sign() / 255).clamp(0, 1)
    torch.testing.assert_close(after_CHW, expected_CHW, rtol=0, atol=1e-12)

    attack(loss=watch, steps=100)
    draws_SN = torch.stack(drawn)
    assert draws_SN.shape[1] == 8
    assert all(len(draw_N.unique()) == 8 for draw_N in draws_SN), "a target was drawn twice in a step"
    assert set(draws_SN.flatten().tolist()) == set(range(SENTENCES))
    assert len({tuple(draw_N.tolist()) for draw_N in draws_SN[-100:]}) > 90, "the draws repeat"


def test_the_seed_decides() -> None:
    first, again, other = attack(seed=1), attack(seed=1), attack(seed=2)
    assert torch.equal(first.image_CHW, again.image_CHW)
    assert torch.equal(first.loss_S, again.loss_S)
    assert not torch.equal(first.image_CHW, other.image_CHW)
    state = torch.random.get_rng_state()
    attack()
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was used"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_type_of_the_image(dtype: torch.dtype) -> None:
    assert attack(image_CHW=IMAGE_CHW.to(dtype), steps=3).image_CHW.dtype == dtype


def test_a_loss_that_breaks_stops_the_attack_before_the_step() -> None:
    def broken(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
        calls.append(0)
        return say(image_1CHW, index_N) * (float("nan") if len(calls) == 5 else 1.0)

    calls: list[int] = []
    result = attack(loss=broken)
    assert result.failed
    assert result.loss_S.shape == (5,)
    assert result.loss_S[-1].isnan()
    assert torch.equal(result.image_CHW, attack(steps=4).image_CHW)


def no_gradient(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
    with torch.no_grad():
        return say(image_1CHW, index_N)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": 256.0}, "epsilon"),
        ({"steps": 0}, "steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"batch": 0}, "batch"),
        ({"batch": 21}, "batch: expected 1 to 20"),
        ({"weights": [1.0] * 19 + [0.0]}, "weights"),
        ({"momentum": 1.5}, "momentum"),
        ({"rate_every": 0}, "rate_every"),
        ({"image_CHW": IMAGE_CHW * 2}, "not in"),
        ({"image_CHW": IMAGE_CHW.half()}, "float16"),
        ({"image_CHW": IMAGE_CHW[0]}, "shape"),
        ({"loss": lambda x, i: say(x, i).mean()}, "one value per target"),
        ({"loss": no_gradient}, "does not depend on the image"),
        (
            {"loss": lambda x, i: say(x, i) * float("nan")},
            r"loss: its mean over targets \[.*\] is not finite",
        ),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack(**change)


def published(image_1CHW: Tensor, start_1CHW: Tensor, draws_SN: Tensor, tokens_M: Tensor, epsilon: float) -> Tensor:
    """The update rule of VisualAdv's code, written down from its description: the mean is over all drawn tokens, noise
    moves by a level against the sign of the gradient of what the words cost, and is cut to the budget and the box."""
    noise_1CHW = start_1CHW - image_1CHW
    for index_N in draws_SN:
        leaf_1CHW = noise_1CHW.clone().requires_grad_(True)
        cost_N = -say(image_1CHW + leaf_1CHW, index_N)
        mean = (cost_N * tokens_M[index_N]).sum() / tokens_M[index_N].sum()
        (gradient_1CHW,) = torch.autograd.grad(mean, leaf_1CHW)
        noise_1CHW = (noise_1CHW - gradient_1CHW.sign() / 255).clamp(-epsilon / 255, epsilon / 255)
        noise_1CHW = (image_1CHW + noise_1CHW).clamp(0, 1) - image_1CHW
    return image_1CHW + noise_1CHW


def test_the_image_is_the_published_rule_s_from_the_same_start_and_draws() -> None:
    tokens_M = torch.from_numpy(np.random.RandomState(7).randint(1, 30, SENTENCES)).double()
    drawn: list[Tensor] = []
    points: list[Tensor] = []

    def watch(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
        drawn.append(index_N)
        points.append(image_1CHW.detach())
        return say(image_1CHW, index_N)

    found = attack(loss=watch, weights=tokens_M.tolist(), steps=200)
    expected_1CHW = published(IMAGE_CHW[None], points[0], torch.stack(drawn), tokens_M, 32.0)
    torch.testing.assert_close(found.image_CHW, expected_1CHW[0], rtol=0, atol=1e-12)
    assert float((found.image_CHW - attack(steps=200).image_CHW).abs().max()) > 0.01, "weights made no difference"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("at", [0, 1, 25, 59])
def test_an_attack_that_was_kept_goes_on_to_the_same_bits(momentum: float, at: int) -> None:
    def rate(image_CHW: Tensor) -> float:
        return -float((mean_loss(image_CHW) * 3) ** 2 % 1)  # up and down, so that the best is not the last

    how = {"momentum": momentum, "rate": rate, "rate_every": 10}
    whole = attack(**how)
    first = begin(**how)
    for _ in range(at):
        first.step()
    state = first.state_dict()
    kept = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
    first.step()  # what was kept does not change with it
    second = begin(**how)
    second.step()
    second.load_state_dict(kept)
    assert second.taken == at
    while not second.done:
        second.step()
    found = second.result()
    for name in ("image_CHW", "loss_S", "zero_gradient_S"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    assert (found.step, found.rating, found.failed) == (whole.step, whole.rating, whole.failed)
    assert state.keys() == kept.keys()
    assert all(torch.equal(state[name], kept[name]) for name in kept if isinstance(kept[name], Tensor))


def test_the_image_rated_best_is_returned_of_equal_ones_the_latest() -> None:
    ratings = iter([1.0, 3.0, 2.0, 3.0, 0.0, 1.0])
    seen: list[Tensor] = []

    def rate(image_CHW: Tensor) -> float:
        seen.append(image_CHW)
        return next(ratings)

    found = attack(rate=rate, rate_every=12, steps=62)
    assert len(seen) == 6, "five on the way, and the last"
    assert (found.step, found.rating) == (48, 3.0)
    assert torch.equal(found.image_CHW, seen[3])
    assert torch.equal(seen[3], attack(steps=48).image_CHW)


def test_momentum_follows_what_was_gathered() -> None:
    points: list[Tensor] = []

    def watch(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
        points.append(image_1CHW.detach())
        drawn.append(index_N)
        return say(image_1CHW, index_N)

    drawn: list[Tensor] = []
    found = attack(loss=watch, steps=3, momentum=0.5, epsilon=UNCONSTRAINED)
    velocity_1CHW = torch.zeros_like(points[0])
    for point_1CHW, index_N, after_1CHW in zip(points, drawn, [*points[1:], found.image_CHW[None]], strict=True):
        leaf_1CHW = point_1CHW.clone().requires_grad_(True)
        (gradient_1CHW,) = torch.autograd.grad(say(leaf_1CHW, index_N).mean(), leaf_1CHW)
        velocity_1CHW = 0.5 * velocity_1CHW + gradient_1CHW / gradient_1CHW.abs().mean()
        expected_1CHW = (point_1CHW + velocity_1CHW.sign() / 255).clamp(0, 1)
        torch.testing.assert_close(after_1CHW, expected_1CHW, rtol=0, atol=1e-12)
