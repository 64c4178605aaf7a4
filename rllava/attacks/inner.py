"""The attack within adversarial fine-tuning as FARE, TeCoA and Sim-CLIP were published with it (``pgd_train.py``).

:func:`rllava.attacks.pgd.pgd` is the same rule for evaluations, where every point is an image. Here the start is not:
the first pass sees ``clean + delta`` wherever that lies. Sums are taken in the published order, so that in float32 too
every point is the published one to the bit.

Shapes: B batch, C channel, H/W image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rllava.attacks.common import LossFunction, check_budget, split_loss


@dataclass(frozen=True)
class InnerPgd:
    """PGD with momentum on the sign of the gradient, L-inf; the defaults are the published ones.

    Attributes:
        epsilon: budget in 1/255.
        step_size: in 1/255 as published, not in units of epsilon.
        momentum: weight of the last direction; the gradient's sign is added to it, and the sign of the sum is the step.
    """

    epsilon: float = 4.0
    steps: int = 10
    step_size: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_budget(self.epsilon, self.steps, step_size=1.0)
        if not self.step_size > 0:
            raise ValueError(f"step_size: expected a positive number (units of 1/255), got {self.step_size}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum: expected a number from 0 to 1, got {self.momentum}")


def uniform_delta(like_BCHW: Tensor, epsilon: float, seeds: Sequence[int]) -> Tensor:
    """Uniform noise within the budget, drawn in float64 on the CPU whatever the device.

    Args:
        epsilon: in 1/255.
        seeds: one per sample, so that its noise does not depend on its batch.

    Returns:
        [B, C, H, W], in pixel units.
    """
    if len(seeds) != like_BCHW.shape[0]:
        raise ValueError(f"seeds: expected one per sample ({like_BCHW.shape[0]}), got {len(seeds)}")
    shape = like_BCHW.shape[1:]
    draws = [torch.rand(shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    return ((2 * torch.stack(draws) - 1) * (epsilon / 255)).to(like_BCHW)


def inner_pgd(loss: LossFunction, images_BCHW: Tensor, delta_BCHW: Tensor, settings: InnerPgd) -> Tensor:
    """Raises the mean of a loss within the budget; no gradient reaches anything but the perturbation.

    Args:
        loss: see :data:`rllava.attacks.common.LossFunction`.
        images_BCHW: clean ones, in [0, 1].
        delta_BCHW: first perturbation, in pixel units; taken as it is.

    Returns:
        The last point, [B, C, H, W]: within the budget and [0, 1] up to rounding. Where a gradient is not a number its
        pixel goes on as it came, as published.
    """
    if delta_BCHW.shape != images_BCHW.shape:
        raise ValueError(f"delta: expected shape {list(images_BCHW.shape)}, got {list(delta_BCHW.shape)}")
    clean_BCHW, delta_BCHW = images_BCHW.detach(), delta_BCHW.detach()
    index_B = torch.arange(clean_BCHW.shape[0], device=clean_BCHW.device)
    radius, step_size = settings.epsilon / 255, settings.step_size / 255
    velocity_BCHW = torch.zeros_like(clean_BCHW)
    for _ in range(settings.steps):
        leaf_BCHW = delta_BCHW.detach().requires_grad_(True)
        with torch.enable_grad():
            loss_B, _ = split_loss(loss(clean_BCHW + leaf_BCHW, index_B), clean_BCHW)
            (gradient_BCHW,) = torch.autograd.grad(loss_B.mean(), leaf_BCHW)
        velocity_BCHW = (settings.momentum * velocity_BCHW + gradient_BCHW.sign().nan_to_num(nan=0.0)).sign()
        delta_BCHW = (delta_BCHW + step_size * velocity_BCHW).clamp(-radius, radius)
        delta_BCHW = (clean_BCHW + delta_BCHW).clamp(0, 1) - clean_BCHW
    return clean_BCHW + delta_BCHW
