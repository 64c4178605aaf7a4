"""Comparing two attacks on a sample where rounding may decide: step by step, up to the first tie.

In another batch the same sum may be taken in another order, so losses and gradients are the same up to rounding only.
An attack turns them into decisions, and at a tie, where the decision hangs on the rounding, it may go either way:

- the sign of a gradient that is zero but for rounding moves a pixel by a whole step, up or down;
- of two losses that are equal but for rounding, either may count as the higher one (APGD's best point, and whether a
  step was a rise, on which its step size hangs).

All that follows a tie may differ, so :func:`same_course` compares points, losses and gradients up to the first one, and
without a tie up to the final image; :func:`assert_hardly_any_tie` sees to it that this is no way out.

Shapes: B batch, C channel, H/W image.
"""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rllava.attacks import LossFunction

EXACT = 1e-9
"""What float64 values of one sample in two batches may differ by, relative to their scale: rounding is 1e-16, times the
thousands of terms of a sum, times the steps that carry it on; a leak between samples is 1e-3 and more."""


@dataclasses.dataclass(frozen=True)
class Look:
    """What a sample's loss was asked, and what it said."""

    point_CHW: Tensor
    loss: float
    gradient_CHW: Tensor


@dataclasses.dataclass(frozen=True)
class Course:
    """An attack on one sample: all looks, and the image it ended with."""

    looks: list[Look]
    image_CHW: Tensor


def look(loss: LossFunction, pixels_BCHW: Tensor, index_B: Tensor) -> list[Look]:
    """Loss and gradient of each sample, from one pass over the batch."""
    leaf_BCHW = pixels_BCHW.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        loss_B = loss(leaf_BCHW, index_B)
        assert isinstance(loss_B, Tensor)
        (gradient_BCHW,) = torch.autograd.grad(loss_B.sum(), leaf_BCHW)
    values = zip(leaf_BCHW.detach(), loss_B.tolist(), gradient_BCHW, strict=True)
    return [Look(point_CHW, value, gradient_CHW) for point_CHW, value, gradient_CHW in values]


class Recorder:
    """A loss as attacks want it that keeps every sample's looks, in whatever portions they are asked for."""

    def __init__(self, loss: LossFunction, samples: int) -> None:
        self.loss = loss
        self.looks: list[list[Look]] = [[] for _ in range(samples)]

    def __call__(self, pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        looks = look(self.loss, pixels_BCHW, index_B)
        for sample, seen in zip(index_B.tolist(), looks, strict=True):
            self.looks[sample].append(seen)
        gradient_BCHW = torch.stack([seen.gradient_CHW for seen in looks])
        loss_B = torch.tensor([seen.loss for seen in looks], dtype=pixels_BCHW.dtype)
        # Adds zero, whose derivative is the gradient.
        return loss_B + (gradient_BCHW * (pixels_BCHW - pixels_BCHW.detach())).flatten(1).sum(1)

    def courses(self, images_BCHW: Tensor) -> list[Course]:
        """The samples' courses, which ended with these images."""
        return [Course(looks, image_CHW) for looks, image_CHW in zip(self.looks, images_BCHW, strict=True)]


def assert_same_look(seen: Look, expected: Look, loss_tolerance: float, gradient_tolerance: float) -> None:
    """Loss relative to itself or to 1, gradient relative to its largest component."""
    scale = float(expected.gradient_CHW.abs().max())
    assert seen.loss == pytest.approx(expected.loss, rel=loss_tolerance, abs=loss_tolerance)
    torch.testing.assert_close(
        seen.gradient_CHW, expected.gradient_CHW, rtol=0, atol=gradient_tolerance * scale + 1e-3 * gradient_tolerance
    )


def same_course(seen: Course, expected: Course) -> bool:
    """Asserts that two attacks on a sample are the same up to the first tie; tells whether there was none."""
    for step, (one, other) in enumerate(zip(seen.looks, expected.looks, strict=True)):
        torch.testing.assert_close(one.point_CHW, other.point_CHW, rtol=0, atol=EXACT)
        assert_same_look(one, other, EXACT, EXACT)
        if not torch.equal(one.gradient_CHW.sign(), other.gradient_CHW.sign()):
            return False
        if order(seen.looks[: step + 1]) != order(expected.looks[: step + 1]):
            return False
    torch.testing.assert_close(seen.image_CHW, expected.image_CHW, rtol=0, atol=EXACT)
    return True


def order(looks: Sequence[Look]) -> list[int]:
    """How the last loss compares with those before it and with 0; APGD asks nothing else of losses."""
    last = looks[-1].loss
    return [(last > before) - (last < before) for before in (0.0, *(seen.loss for seen in looks[:-1]))]


def first_tie(losses: Sequence[float]) -> int:
    """The step after the first one whose loss equals an earlier one but for rounding; their number if there is none.

    Losses that are exactly equal are no tie: they are the same point, looked at again.
    """
    for step, loss in enumerate(losses):
        if any(0 < abs(loss - before) <= 1e-12 * max(abs(before), 1.0) for before in losses[:step]):
            return step + 1
    return len(losses)


def assert_hardly_any_tie(whole: Sequence[bool]) -> None:
    """Asserts that nearly all attacks could be followed to their ends: where ties abound, a leak may hide."""
    assert sum(whole) >= 0.9 * len(whole), f"{len(whole) - sum(whole)} of {len(whole)} attacks met a tie"
