"""Projected gradient descent with momentum on the sign of the gradient, as adversarial (pre-)training uses it.

With ``momentum=0.9`` this is the inner attack of RobustVLM (``train/pgd_train.py``); with 0 it is plain PGD.

Shapes: B batch, C channel, H/W image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rllava.attacks.common import (
    PIXEL,
    Look,
    LossFunction,
    Start,
    check_budget,
    check_finite,
    check_images,
    expand,
    loss_and_gradient,
    project,
    project_to_radius,
    start_point,
)
from rllava.attacks.stepper import ATTACKS, Entering, Lanes


def pgd(
    loss: LossFunction,
    images_BCHW: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    start: Start = "random",
    momentum: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Maximises ``loss`` within an L-inf budget and returns the last point.

    Args:
        loss: ``loss(pixels_BCHW, index_B) -> loss_B``, maximised.
        images_BCHW: clean images, float32 or float64 in [0, 1].
        epsilon: L-inf budget in units of 1/255.
        steps: number of gradient steps, one forward and one backward pass each.
        step_size: in units of epsilon.
        start: ``"clean"``, ``"random"`` or start images.
        momentum: weight of the previous velocity; the gradient's sign is added to it.
        seeds: one per sample, for a random start.

    Returns:
        Adversarial images, [B, C, H, W]. A sample without a usable gradient keeps its start point.

    Raises:
        ValueError: naming the argument, and the sample where one is at fault.
    """
    check_images(images_BCHW)
    check_budget(epsilon, steps, step_size)
    clean_BCHW = images_BCHW.detach()
    index_B = torch.arange(clean_BCHW.shape[0], device=clean_BCHW.device)
    point_BCHW = start_point(start, clean_BCHW, epsilon, seeds)
    velocity_BCHW = torch.zeros_like(point_BCHW)
    for step in range(steps):
        look = loss_and_gradient(loss, point_BCHW, index_B)
        if step == 0:
            check_finite(look.loss_B)
        # A sample whose gradient is not a number stays where it is, or goes on as it came.
        direction_BCHW = look.gradient_BCHW.sign().nan_to_num(nan=0.0)
        velocity_BCHW = (momentum * velocity_BCHW + direction_BCHW).sign()
        point_BCHW = project(point_BCHW + step_size * epsilon * PIXEL * velocity_BCHW, clean_BCHW, epsilon)
    return point_BCHW


MOMENTUM = 0.9
"""Of PGD as a round: that of RobustVLM's and VEAttack's."""


@dataclass
class PgdLanes(Lanes):
    """PGD with momentum on the sign of the gradient, in flight; steps keep their size.

    Attributes:
        velocity_LCHW: direction of the last step.
    """

    velocity_LCHW: Tensor
    gradient_LCHW: Tensor

    @classmethod
    def enter(cls, entering: Entering) -> "PgdLanes":
        """See the base class."""
        zeros_LCHW = torch.zeros_like(entering.clean_LCHW)
        return cls(**entering.common(), velocity_LCHW=zeros_LCHW, gradient_LCHW=zeros_LCHW.clone())  # type: ignore[arg-type]

    def absorb(self, look: Look) -> None:
        """Keeps the best points."""
        self.note_loss(look)
        self.gradient_LCHW = torch.where(expand(self.failed_L), 0.0, look.gradient_BCHW.to(self.point_LCHW.dtype))

    def move(self) -> None:
        """One step along the velocity."""
        self.note_step((self.gradient_LCHW == 0).flatten(1).to(self.zero_gradient_LS.dtype).mean(1))
        self.velocity_LCHW = (MOMENTUM * self.velocity_LCHW + self.gradient_LCHW.sign()).sign()
        moved_LCHW = self.point_LCHW + expand(self.step_size_L) * self.velocity_LCHW
        moved_LCHW = project_to_radius(moved_LCHW, self.clean_LCHW, self.radius_L, self.norm)
        self.point_LCHW = torch.where(expand(self.failed_L), self.point_LCHW, moved_LCHW)


ATTACKS.register("pgd", PgdLanes)
