"""What all attacks share: the loss interface, argument checks, projection, start points, results.

Shapes: B batch, C channel, H/W image, S steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``loss(pixels_BCHW, index_B) -> loss_B``: what an attack maximises. ``index_B`` says which samples of the batch the
pixels belong to. The loss of a sample must not depend on its batch mates."""

Start = Literal["clean", "random"] | Tensor
"""Where an attack starts: the clean image, a uniformly random point of the budget, or given images [B, C, H, W]."""

PIXEL = 1.0 / 255.0
"""The unit of budgets."""


@dataclass(frozen=True)
class History:
    """What happened at each step.

    Attributes:
        loss_SB: loss of the point reached at each step, [steps + 1, B]; row 0 is the start point.
        step_size_SB: step size taken at each step, in pixel units, [steps, B].
        zero_gradient_SB: share of exactly zero entries of each gradient used, [steps, B].
    """

    loss_SB: Tensor
    step_size_SB: Tensor
    zero_gradient_SB: Tensor


@dataclass(frozen=True)
class AttackResult:
    """What an attack leaves.

    Attributes:
        images_BCHW: the point of highest loss of each sample, in [0, 1] and within the budget.
        loss_B: its loss.
        history: every step, per sample.
        broken_B: samples whose loss or gradient was not finite at some step; they stopped there, at their best point.
        forwards: forward passes per sample.
        backwards: backward passes per sample.
    """

    images_BCHW: Tensor
    loss_B: Tensor
    history: History
    broken_B: Tensor
    forwards: int
    backwards: int


def check_images(images_BCHW: Tensor) -> None:
    """Refuses images an attack cannot keep its promises on.

    Args:
        images_BCHW: clean images.

    Raises:
        ValueError: if they are not float32 or float64 in [0, 1], or not of four dimensions.
    """
    if images_BCHW.ndim != 4 or images_BCHW.shape[0] == 0:
        raise ValueError(f"images: expected shape [B, C, H, W] with B > 0, got {list(images_BCHW.shape)}")
    if images_BCHW.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"images: expected float32 or float64, got {images_BCHW.dtype}; "
            "half precision rounds images out of the budget, so cast inside the loss instead"
        )
    low_B, high_B = images_BCHW.flatten(1).amin(1), images_BCHW.flatten(1).amax(1)
    outside_B = ~((low_B >= 0) & (high_B <= 1))  # also true for NaN
    if bool(outside_B.any()):
        sample = int(outside_B.nonzero()[0, 0])
        raise ValueError(
            f"images: sample {sample} lies in [{float(low_B[sample]):.4g}, {float(high_B[sample]):.4g}], "
            "not in [0, 1]; attacks work in pixel space, before normalisation"
        )


def check_budget(epsilon: float, steps: int, step_size: float) -> None:
    """Refuses budgets and step counts out of range.

    Args:
        epsilon: budget in 1/255.
        steps: number of steps.
        step_size: in units of epsilon.

    Raises:
        ValueError: naming the argument.
    """
    if not 0 <= epsilon <= 255:
        raise ValueError(f"epsilon: expected a number in [0, 255] (units of 1/255), got {epsilon}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if not step_size > 0:
        raise ValueError(f"step_size: expected a positive multiple of epsilon, got {step_size}")


def project(images_BCHW: Tensor, clean_BCHW: Tensor, epsilon: float) -> Tensor:
    """Nearest images within ``epsilon`` (in 1/255, L-inf) of the clean ones and within [0, 1].

    Args:
        images_BCHW: any images.
        clean_BCHW: clean images.
        epsilon: budget in 1/255.

    Returns:
        Projected images, [B, C, H, W].
    """
    radius = epsilon * PIXEL
    return images_BCHW.clamp(clean_BCHW - radius, clean_BCHW + radius).clamp(0.0, 1.0)


def start_point(start: Start, clean_BCHW: Tensor, epsilon: float, seeds: Sequence[int] | None) -> Tensor:
    """The first point of an attack.

    Args:
        start: see :data:`Start`.
        clean_BCHW: clean images.
        epsilon: budget in 1/255.
        seeds: one seed per sample, needed for a random start, so that a sample's noise does not depend on its batch.

    Returns:
        Start points within the budget, [B, C, H, W].

    Raises:
        ValueError: if a random start comes without one seed per sample, or given images are of another shape.
    """
    if isinstance(start, Tensor):
        if start.shape != clean_BCHW.shape:
            raise ValueError(f"start: expected images of shape {list(clean_BCHW.shape)}, got {list(start.shape)}")
        return project(start.to(clean_BCHW), clean_BCHW, epsilon)
    if start == "clean":
        return clean_BCHW.clone()
    if start != "random":
        raise ValueError(f"start: expected 'clean', 'random' or images, got {start!r}")
    if seeds is None or len(seeds) != clean_BCHW.shape[0]:
        raise ValueError(f"seeds: a random start needs one seed per sample ({clean_BCHW.shape[0]})")
    noise_BCHW = torch.stack(
        [
            torch.rand(clean_BCHW.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
    )
    noise_BCHW = (2 * noise_BCHW - 1).to(clean_BCHW) * (epsilon * PIXEL)
    return project(clean_BCHW + noise_BCHW, clean_BCHW, epsilon)


def loss_and_gradient(loss: LossFunction, images_BCHW: Tensor, index_B: Tensor) -> tuple[Tensor, Tensor]:
    """One forward and one backward pass to the pixels; no gradient reaches anything else.

    Args:
        loss: see :data:`LossFunction`.
        images_BCHW: points.
        index_B: which samples they belong to.

    Returns:
        loss_B and gradient_BCHW, detached.

    Raises:
        ValueError: if the loss is not one value per sample, or does not depend on the pixels differentiably.
    """
    leaf_BCHW = images_BCHW.detach().requires_grad_(True)
    with torch.enable_grad():
        loss_B = loss(leaf_BCHW, index_B)
    check_loss(loss_B, images_BCHW)
    if not loss_B.requires_grad:
        raise ValueError("loss: its value does not depend on the pixels through autograd (a no_grad in the model?)")
    (gradient_BCHW,) = torch.autograd.grad(loss_B.sum(), leaf_BCHW)
    return loss_B.detach(), gradient_BCHW


def loss_only(loss: LossFunction, images_BCHW: Tensor, index_B: Tensor) -> Tensor:
    """One forward pass without graph.

    Args:
        loss: see :data:`LossFunction`.
        images_BCHW: points.
        index_B: which samples they belong to.

    Returns:
        loss_B.
    """
    with torch.no_grad():
        loss_B = loss(images_BCHW, index_B)
    check_loss(loss_B, images_BCHW)
    return loss_B


def check_loss(loss_B: Tensor, images_BCHW: Tensor) -> None:
    """Refuses a loss that is not one value per sample.

    Args:
        loss_B: what the loss function returned.
        images_BCHW: what it was given.

    Raises:
        ValueError: if their batch sizes differ.
    """
    if loss_B.shape != images_BCHW.shape[:1]:
        raise ValueError(
            f"loss: expected one value per sample, shape [{images_BCHW.shape[0]}], got {list(loss_B.shape)}; "
            "attack state is per sample, so do not average over the batch"
        )


def expand(value_B: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return value_B[:, None, None, None]
