"""Known-broken defences are caught, each by its check; a sound model raises nothing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllava.attacks import LossFunction, apgd
from rllava.attacks.checks import CHECKS, Finding, check_attack, compare_results
from tests.attacks.classifier import Classifier, images

PAGE = (Path(__file__).parents[2] / "docs" / "attack-checks.md").read_text()
MODEL = Classifier()
PIXELS_BCHW = images(8)[0].float()
LABEL_B = MODEL(PIXELS_BCHW).argmax(1)
SEEDS = range(len(LABEL_B))

Logits = Callable[[Tensor], Tensor]


def sound(pixels_BCHW: Tensor) -> Tensor:
    # The classifier's own logits are so large that its softmax saturates, which is one of the defences below.
    return 0.05 * MODEL(pixels_BCHW)


def quantised(pixels_BCHW: Tensor) -> Tensor:
    return sound((pixels_BCHW * 16).round() / 16)


def hot(pixels_BCHW: Tensor) -> Tensor:
    return 1e4 * MODEL(pixels_BCHW)


def detached(pixels_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        logits_BK = sound(pixels_BCHW)
    return logits_BK + 0 * pixels_BCHW.flatten(1).sum(1, keepdim=True)


class Shifted:
    """Shifts the image by up to two pixels at random before it is classified."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        shifts = torch.randint(-2, 3, (2,), generator=self.generator).tolist()
        return sound(pixels_BCHW.roll(shifts, (2, 3)))


def shattered(pixels_BCHW: Tensor) -> Tensor:
    return sound(pixels_BCHW + 0.002 * torch.sin(4000 * pixels_BCHW))


def jagged(pixels_BCHW: Tensor) -> Tensor:
    return sound(pixels_BCHW + 0.02 * torch.sin(2000 * pixels_BCHW))


class Misled(torch.autograd.Function):
    """Passes pixels on as they are, and a gradient that has nothing to do with them back."""

    @staticmethod
    def forward(context: Any, pixels_BCHW: Tensor) -> Tensor:
        return pixels_BCHW.clone()

    @staticmethod
    def backward(context: Any, gradient_BCHW: Tensor) -> Tensor:  # type: ignore[override]
        noise_BCHW = torch.randn(gradient_BCHW.shape, generator=torch.Generator().manual_seed(1))
        return noise_BCHW * gradient_BCHW.abs().mean()


def misled(pixels_BCHW: Tensor) -> Tensor:
    return sound(Misled.apply(pixels_BCHW))


def loss_of(logits: Logits) -> LossFunction:
    return lambda pixels_BCHW, index_B: F.cross_entropy(logits(pixels_BCHW), LABEL_B[index_B], reduction="none")


def findings(loss: LossFunction, epsilon: float = 8.0, steps: int = 40, **options: Any) -> dict[str, Finding]:
    images_BCHW = options.pop("images_BCHW", PIXELS_BCHW)
    attack = {name: options.pop(name) for name in ("step_size", "start") if name in options}
    result = apgd(loss, images_BCHW, epsilon=epsilon, steps=steps, norm=options.get("norm", "linf"), **attack)
    seeds = list(SEEDS)[: len(images_BCHW)]
    found = check_attack(loss, images_BCHW, result, epsilon=epsilon, seeds=seeds, **options)
    return {finding.check: finding for finding in found}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 8.0, 32.0])
def test_a_sound_model_raises_nothing(epsilon: float, dtype: torch.dtype) -> None:
    loss = loss_of(sound)
    clean_B = F.cross_entropy(sound(PIXELS_BCHW), LABEL_B, reduction="none")
    others = {"clean": clean_B, "the same": PIXELS_BCHW}
    found = findings(loss, epsilon, images_BCHW=PIXELS_BCHW.to(dtype), others=others, clean_loss=clean_B)
    assert found == {}


def test_neither_does_it_targeted_in_l2_or_in_half_precision() -> None:
    def targeted(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        return -F.cross_entropy(sound(pixels_BCHW), (LABEL_B[index_B] + 1) % 5, reduction="none")

    def rounded(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        logits_BK = sound(pixels_BCHW.bfloat16().float()).bfloat16().float()
        return F.cross_entropy(logits_BK, LABEL_B[index_B], reduction="none")

    assert findings(targeted) == {}
    assert findings(loss_of(sound), 128.0, norm="l2") == {}
    assert findings(rounded, tolerance=1e-2) == {}


@pytest.mark.parametrize(
    ("logits", "checks"),
    [
        (quantised, {"zero_gradient", "no_descent", "noise_wins"}),
        (hot, {"zero_gradient", "no_descent"}),
        (detached, {"zero_gradient", "no_descent", "noise_wins"}),
        (Shifted(), {"stochastic", "non_monotone"}),
        (shattered, {"gradient_does_not_predict", "noise_wins"}),
        (jagged, {"non_monotone"}),
        (misled, {"gradient_does_not_predict", "noise_wins"}),
    ],
    ids=["quantised", "hot", "detached", "shifted", "shattered", "jagged", "misled"],
)
def test_a_broken_defence_is_caught(logits: Logits, checks: set[str]) -> None:
    found = findings(loss_of(logits))
    assert checks <= set(found), found
    assert ("zero_gradient" in found) == ("zero_gradient" in checks)
    assert ("stochastic" in found) == ("stochastic" in checks)


def test_what_a_finding_says() -> None:
    finding = findings(loss_of(quantised))["zero_gradient"]
    assert finding.share == 1.0
    assert finding.samples == tuple(SEEDS)
    assert (
        finding.text == "8 of 8 samples: 100% of the gradient's entries are exactly zero; 8 never saw a gradient at all"
    )


def test_a_black_box_or_a_transferred_image_that_does_better_is_named() -> None:
    transferred = apgd(loss_of(sound), PIXELS_BCHW, epsilon=8, steps=10)
    others = {"transfer": transferred.images_BCHW, "square": transferred.loss_B, "nothing": PIXELS_BCHW}
    result = apgd(loss_of(quantised), PIXELS_BCHW, epsilon=8, steps=10)
    found = check_attack(loss_of(quantised), PIXELS_BCHW, result, epsilon=8, seeds=SEEDS, others=others)
    wins = [finding.text for finding in found if finding.check == "black_box_wins"]
    assert len(wins) == 2
    assert "transfer reached" in wins[0]
    assert "square reached" in wins[1]


def test_an_attack_stopped_too_early_is_still_rising() -> None:
    assert set(findings(loss_of(sound), steps=10, step_size=0.08)) == {"still_rising"}


def test_a_broken_sample_is_reported_once() -> None:
    def broken(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        loss_B = F.cross_entropy(sound(pixels_BCHW), LABEL_B[index_B], reduction="none")
        return loss_B + torch.where(index_B == 2, float("nan"), 0.0)

    found = findings(broken)
    assert set(found) == {"non_finite"}
    assert found["non_finite"].samples == (2,)
    assert found["non_finite"].share == 1 / 8


def test_samples_that_the_attack_broke_need_no_excuse() -> None:
    solved_B = torch.ones(8, dtype=torch.bool)
    solved_B[3] = False
    found = findings(loss_of(quantised), solved=solved_B)
    assert found["zero_gradient"].samples == (3,)
    assert found["zero_gradient"].share == 1.0

    def telling(pixels_BCHW: Tensor, index_B: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(quantised(pixels_BCHW), LABEL_B[index_B], reduction="none"), index_B != 3

    assert findings(telling) == found, "the loss says itself which samples are solved"


def test_the_clean_loss_must_be_the_one_that_is_known() -> None:
    known_B = F.cross_entropy(sound(PIXELS_BCHW), LABEL_B, reduction="none")
    known_B[5] += 0.01
    found = findings(loss_of(sound), clean_loss=known_B)
    assert set(found) == {"clean_mismatch"}
    assert found["clean_mismatch"].samples == (5,)


def test_an_attack_without_budget_must_not_move() -> None:
    result = apgd(loss_of(sound), PIXELS_BCHW, epsilon=8, steps=3)
    found = check_attack(loss_of(sound), PIXELS_BCHW, result, epsilon=0, seeds=SEEDS)
    assert [finding.check for finding in found] == ["clean_mismatch"]
    assert "8 images moved" in found[0].text


def test_an_attack_that_falls_behind_a_smaller_one_is_reported() -> None:
    few, many = (apgd(loss_of(sound), PIXELS_BCHW, epsilon=8, steps=steps) for steps in (2, 20))
    wide = apgd(loss_of(sound), PIXELS_BCHW, epsilon=16, steps=20)
    assert compare_results(few, many, grew="steps") == []
    assert compare_results(many, wide, grew="budget") == []
    assert [finding.check for finding in compare_results(wide, many, grew="budget")] == ["larger_budget_weaker"]
    stuck = apgd(loss_of(detached), PIXELS_BCHW, epsilon=8, steps=20)
    found = compare_results(few, stuck, grew="steps")
    assert [(finding.check, finding.share) for finding in found] == [("more_steps_weaker", 1.0)]
    assert compare_results(few, stuck, grew="steps", solved=torch.ones(8, dtype=torch.bool)) == []


@pytest.mark.parametrize("logits", [shattered, quantised, jagged])
def test_a_verdict_does_not_depend_on_the_batch(logits: Logits) -> None:
    which = [1, 4, 6]

    def subset(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        return F.cross_entropy(logits(pixels_BCHW), LABEL_B[which][index_B], reduction="none")

    def checked(loss: LossFunction, places: list[int]) -> dict[str, set[int]]:
        # In float64, as a jagged loss blows rounding errors up.
        images_BCHW = PIXELS_BCHW[places].double()
        result = apgd(loss, images_BCHW, epsilon=8, steps=20)
        found = check_attack(loss, images_BCHW, result, epsilon=8, seeds=places)
        return {finding.check: {places[sample] for sample in finding.samples} for finding in found}

    alone, together = checked(subset, which), checked(loss_of(logits), list(SEEDS))
    by_any_sample = {check.name for check in CHECKS if check.limit == 0}
    for name in by_any_sample | (alone.keys() & together.keys()):
        assert alone.get(name, set()) == together.get(name, set()) & set(which), name


def test_it_costs_as_many_passes_as_it_says() -> None:
    passes = {True: 0, False: 0}

    def counted(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        passes[torch.is_grad_enabled()] += 1
        return F.cross_entropy(sound(pixels_BCHW), LABEL_B[index_B], reduction="none")

    result = apgd(loss_of(sound), PIXELS_BCHW, epsilon=8, steps=3)
    others = {"images": PIXELS_BCHW, "loss": result.loss_B}
    check_attack(counted, PIXELS_BCHW, result, epsilon=8, seeds=SEEDS, others=others, noise_points=5)
    assert passes == {True: 1, False: 12 + 5 + 1}
    passes.update({True: 0, False: 0})
    check_attack(counted, PIXELS_BCHW, result, epsilon=0, seeds=SEEDS)
    assert passes == {True: 0, False: 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1]}, "seeds"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"solved": torch.ones(3)}, "solved"),
        ({"clean_loss": torch.ones(8, 1)}, "clean_loss"),
        ({"others": {"square": PIXELS_BCHW.flatten(1)}}, "'square' is neither"),
        ({"others": {"square": 1 - PIXELS_BCHW}}, "'square' left the budget"),
        ({"others": {"square": torch.ones(3)}}, "one value per sample"),
        ({"images_BCHW": PIXELS_BCHW[:2], "seeds": [1, 2]}, "result"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    result = apgd(loss_of(sound), PIXELS_BCHW, epsilon=8, steps=2)
    arguments = {"images_BCHW": PIXELS_BCHW, "epsilon": 8.0, "seeds": SEEDS, **change}
    with pytest.raises(ValueError, match=message):
        check_attack(loss_of(sound), arguments.pop("images_BCHW"), result, **arguments)


def test_bad_comparisons_are_named() -> None:
    result, fewer = (apgd(loss_of(sound), PIXELS_BCHW[:count], epsilon=8, steps=2) for count in (8, 3))
    with pytest.raises(ValueError, match="samples"):
        compare_results(result, fewer, grew="steps")
    with pytest.raises(ValueError, match="grew"):
        compare_results(result, result, grew="epsilon")  # type: ignore[arg-type]


@pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
def test_the_page_says_what_the_code_does(check: Any) -> None:
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S))
    assert list(sections) == [entry.name for entry in CHECKS]
    section = " ".join(sections[check.name].split())
    for fact in (check.raised_when, check.means, check.remedy):
        assert fact in section
    assert (f"above {check.limit:.0%}" in section) == (check.limit > 0)
