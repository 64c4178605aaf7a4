"""The checks of an evaluation on a small classifier: what the attack left is compared with attacks of their own."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllava.attacks import apgd
from rllava.attacks.common import AttackResult, NonFiniteLossError
from rllava.attacks.engine import Aim
from rllava.attacks.outcome import Evidence, Outcome
from rllava.evaluation import shard_checks
from tests.attacks.classifier import Classifier, images

MODEL = Classifier()
COUNT, STEPS, EPSILON = 6, 20, 8.0
PIXELS_BCHW, LABEL_B = (values.float() if values.is_floating_point() else values for values in images(COUNT))


def answer_loss(pixels_NCHW: Tensor, tasks: Sequence[Aim], precision: str) -> Tensor:
    label_N = LABEL_B[[task.sample for task in tasks]]
    return F.cross_entropy(MODEL(pixels_NCHW), label_N, reduction="none")


def outcomes(result: AttackResult) -> list[Outcome]:
    """As an engine leaves them whose only round found no worse answer."""
    found = []
    for b in range(COUNT):
        history = result.history
        evidence = Evidence(
            "text", False, "float32", history.loss_SB[:, b], history.step_size_SB[:, b], history.zero_gradient_SB[:, b],
            result.images_BCHW[b], bool(result.failed_B[b]),
        )  # fmt: skip
        found.append(Outcome("right", 100.0, PIXELS_BCHW[b], rounds=["only"], evidence=evidence))
    return found


def check_shard(result: AttackResult, dropped: bool = False) -> dict[int, list[str]]:
    return shard_checks.check_shard(
        outcomes(result), PIXELS_BCHW, ["right"] * COUNT, epsilon=EPSILON, clean_precision="float32",
        seeds=list(range(COUNT)), solved=[dropped] * COUNT, answer_loss=answer_loss,
        answer=lambda images_NCHW, who, precision: ["right"] * len(who), most=4,
    )  # fmt: skip


def attack(steps: int, faulty: Sequence[int] = (), factor: float = float("nan")) -> AttackResult:
    def loss(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        loss_B = answer_loss(pixels_BCHW, [Aim(b, "text") for b in index_B.tolist()], "float32")
        return loss_B * torch.where(torch.isin(index_B, torch.tensor(faulty)), factor, 1.0)

    return apgd(loss, PIXELS_BCHW, epsilon=EPSILON, steps=steps)


def test_a_sound_attack_raises_nothing() -> None:
    assert check_shard(attack(STEPS)) == {b: [] for b in range(COUNT)}


def test_an_attack_that_half_as_many_steps_beat_is_named() -> None:
    lost = attack(STEPS, faulty=range(COUNT), factor=-1.0)  # it goes downhill
    lost.loss_B.neg_()
    lost.history.loss_SB.neg_()
    found = check_shard(lost)
    assert all("more_steps_weaker" in names for names in found.values()), found
    order = [check.name for check in shard_checks.CHECKS]
    assert all(names == sorted(names, key=order.index) for names in found.values())
    assert all("more_steps_weaker" not in names for names in check_shard(lost, dropped=True).values())


def test_a_single_step_has_no_half() -> None:
    assert all("more_steps_weaker" not in names for names in check_shard(attack(1)).values())


def test_long_rounds_are_compared_with_a_bounded_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(*arguments: Any, steps: int, **options: Any) -> AttackResult:
        asked.append(steps)
        return apgd(*arguments, steps=steps, **options)

    monkeypatch.setattr(shard_checks, "apgd", noted)
    check_shard(attack(30))
    check_shard(attack(3 * shard_checks.FEWER_STEPS))
    assert set(asked) == {15, shard_checks.FEWER_STEPS}


def test_a_black_box_that_cannot_start_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflowing(*arguments: Any, **options: Any) -> None:
        raise NonFiniteLossError("loss: not finite at the start point of sample 0 (inf)")

    monkeypatch.setattr(shard_checks, "square", overflowing)
    assert check_shard(attack(STEPS)) == {b: [] for b in range(COUNT)}


def test_a_sample_that_broke_off_is_flagged_and_not_compared() -> None:
    found = check_shard(attack(STEPS, faulty=[2]))
    assert found == {b: ["non_finite"] if b == 2 else [] for b in range(COUNT)}
