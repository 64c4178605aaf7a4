"""The AutoAttack preset against AutoAttack's own trajectories, and the rules between its attacks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rllava.attacks import apgd
from rllava.attacks.autoattack import apgd_ce, apgd_t, autoattack
from rllava.attacks.common import Norm
from rllava.attacks.losses import classifier_loss
from tests.attacks.classifier import Classifier, images, start_points

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "autoattack.json").read_text())
MODEL = Classifier()
PIXELS_BCHW, LABEL_B = images(6)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['norm']}-{row['epsilon']}-{row['loss']}-{row['steps']}")
def test_trajectories_are_those_of_the_reference(row: dict[str, Any]) -> None:
    norm: Norm = "linf" if row["norm"] == "Linf" else "l2"
    loss = (
        classifier_loss(MODEL, LABEL_B)
        if row["loss"] == "ce"
        else classifier_loss(MODEL, LABEL_B, "targeted_dlr", (LABEL_B + 1) % 5)
    )
    result = apgd(
        loss,
        PIXELS_BCHW,
        epsilon=row["epsilon"],
        steps=row["steps"],
        norm=norm,
        start=start_points(PIXELS_BCHW, row["epsilon"], norm),
        step_size=2.0,
    )
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(result.history.loss_SB, torch.tensor(row["losses"], dtype=torch.float64), **close)
    torch.testing.assert_close(result.loss_B, torch.tensor(row["best_loss"], dtype=torch.float64), **close)
    assert result.solved_B.tolist() == row["solved"]
    for ours_BCHW, theirs in ((result.images_BCHW, row["best_sum"]), (result.solved_BCHW, row["solved_sum"])):
        torch.testing.assert_close(
            ours_BCHW.flatten(1).sum(1), torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_lie_where_they_should(norm: Norm) -> None:
    grey_BCHW = torch.full((4, 3, 8, 8), 0.5, dtype=torch.float64)
    order = float("inf") if norm == "linf" else 2
    sizes = {}
    for start in ("random", "surface"):
        seen = []

        def loss(pixels_BCHW: Tensor, index_B: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(pixels_BCHW.detach())
            return pixels_BCHW.flatten(1).sum(1)

        apgd(loss, grey_BCHW, epsilon=16, steps=1, norm=norm, start=start, seeds=[0, 1, 2, 3])  # type: ignore[arg-type]
        sizes[start] = (seen[0] - grey_BCHW).flatten(1).norm(order, dim=1) * 255
    torch.testing.assert_close(sizes["surface"], torch.full((4,), 16.0, dtype=torch.float64))
    assert float(sizes["random"].max()) < 16.0
    assert float(sizes["random"].min()) > 8.0  # of so many dimensions, nearly all of the ball is near its surface


def test_a_sample_is_attacked_until_it_breaks_and_keeps_its_budget() -> None:
    label_B = MODEL(PIXELS_BCHW).argmax(1)
    label_B[0] = (label_B[0] + 1) % 5  # wrong from the start
    left = autoattack(MODEL, PIXELS_BCHW, label_B, epsilon=4, steps=10, queries=20)
    assert left.beaten_by[0] == "clean"
    torch.testing.assert_close(left.images_BCHW[0], PIXELS_BCHW[0], rtol=0, atol=0)
    wrong_B = MODEL(left.images_BCHW).argmax(1) != label_B
    assert wrong_B.tolist() == [name is not None for name in left.beaten_by]
    assert left.robust_B.tolist() == [name is None for name in left.beaten_by]
    assert any(name not in (None, "clean") for name in left.beaten_by), "the budget was meant to beat some samples"
    assert float((left.images_BCHW - PIXELS_BCHW).abs().max()) <= 4 / 255 + 1e-12


@pytest.mark.parametrize("attack", [apgd_ce, apgd_t])
def test_a_sample_does_not_depend_on_the_others(attack: Callable[..., Any]) -> None:
    label_B = MODEL(PIXELS_BCHW).argmax(1)
    whole = attack(MODEL, PIXELS_BCHW, label_B, epsilon=3, steps=8)
    first = attack(MODEL, PIXELS_BCHW[:3], label_B[:3], epsilon=3, steps=8)
    assert first.beaten_by == whole.beaten_by[:3]
    torch.testing.assert_close(first.images_BCHW, whole.images_BCHW[:3], rtol=0, atol=1e-9)


def test_a_sample_without_finite_logits_is_named_and_left_alone() -> None:
    label_B = MODEL(PIXELS_BCHW).argmax(1)
    count = len(label_B)
    seen: list[int] = []

    def broken(pixels_BCHW: Tensor) -> Tensor:
        seen.append(len(pixels_BCHW))
        lost_B = (pixels_BCHW[:, 0, 0, 0] - PIXELS_BCHW[1, 0, 0, 0]).abs() < 0.02
        # Right on the clean images, and nowhere finite afterwards.
        return MODEL(pixels_BCHW) + torch.where(lost_B & (len(seen) > 1), float("nan"), 0.0)[:, None]

    assert float((PIXELS_BCHW[:, 0, 0, 0] - PIXELS_BCHW[1, 0, 0, 0]).abs().sort().values[1]) > 0.04
    left = autoattack(broken, PIXELS_BCHW, label_B, epsilon=4, steps=5, queries=20)
    whole = autoattack(MODEL, PIXELS_BCHW, label_B, epsilon=4, steps=5, queries=20)
    assert left.failed_B.tolist() == [sample == 1 for sample in range(count)]
    assert not whole.failed_B.any()
    assert [name for sample, name in enumerate(left.beaten_by) if sample != 1] == [
        name for sample, name in enumerate(whole.beaten_by) if sample != 1
    ]


def test_restarts_and_targets_only_help() -> None:
    label_B = MODEL(PIXELS_BCHW).argmax(1)
    once = apgd_ce(MODEL, PIXELS_BCHW, label_B, epsilon=1, steps=3)
    often = apgd_ce(MODEL, PIXELS_BCHW, label_B, epsilon=1, steps=3, restarts=4)
    assert torch.all(often.robust_B <= once.robust_B)
    one = apgd_t(MODEL, PIXELS_BCHW, label_B, epsilon=1, steps=3, targets=1)
    every = apgd_t(MODEL, PIXELS_BCHW, label_B, epsilon=1, steps=3)
    assert torch.all(every.robust_B <= one.robust_B)
