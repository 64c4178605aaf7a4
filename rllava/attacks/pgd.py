"""Projected gradient descent with momentum on the sign of the gradient, as adversarial (pre-)training uses it.

With ``momentum=0.9`` this is the inner attack of RobustVLM (``train/pgd_train.py``); with 0 it is plain PGD.

Shapes: B batch, C channel, H/W image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rllava.attacks.common import (
    PIXEL,
    LossFunction,
    Start,
    check_budget,
    check_finite,
    check_images,
    loss_and_gradient,
    project,
    start_point,
)


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
