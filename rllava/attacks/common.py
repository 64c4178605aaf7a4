"""What all attacks share: the loss interface, argument checks, projection, start points, results.

Shapes: B batch, C channel, H/W image, S steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LossFunction = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]
"""``loss(pixels_BCHW, index_B) -> loss_B``: what an attack maximises. ``index_B`` says which samples of the batch the
pixels belong to. The loss of a sample must not depend on its batch mates.

A loss that knows when an attack has reached its goal returns ``(loss_B, solved_B)``, the second of bools: the loss of a
classifier says which samples it gets wrong (:func:`rllava.attacks.losses.classifier_loss`)."""

Norm = Literal["linf", "l2"]
"""Of the perturbation of all pixels and channels of an image."""

Start = Literal["clean", "random", "surface"] | Tensor
"""Where an attack starts: the clean image, a random point of the budget, one on its surface (AutoAttack's), or given
images [B, C, H, W]."""

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
        solved_BCHW: the last point at which the loss said that the goal was reached; the start point if it never did.
        failed_B: samples whose loss or gradient was not finite at some step; they stopped there, at their best point.
    """

    images_BCHW: Tensor
    loss_B: Tensor
    solved_BCHW: Tensor
    solved_B: Tensor
    history: History
    failed_B: Tensor
    forwards: int
    backwards: int


def check_images(images_BCHW: Tensor) -> None:
    """Refuses images an attack cannot keep its promises on.

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


def check_budget(epsilon: float, steps: int, step_size: float, norm: str = "linf") -> None:
    """Refuses budgets and step counts out of range.

    Args:
        epsilon: budget in 1/255.
        step_size: in units of epsilon.

    Raises:
        ValueError: naming the argument.
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm: expected 'linf' or 'l2', got {norm!r}")
    if not (0 <= epsilon <= 255 or (norm == "l2" and 0 <= epsilon < float("inf"))):
        allowed = "in [0, 255]" if norm == "linf" else "that is not negative"
        raise ValueError(f"epsilon: expected a number {allowed} (units of 1/255), got {epsilon}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if not step_size > 0:
        raise ValueError(f"step_size: expected a positive multiple of epsilon, got {step_size}")


def project(images_BCHW: Tensor, clean_BCHW: Tensor, epsilon: float, norm: Norm = "linf") -> Tensor:
    """Images within ``epsilon`` (in 1/255) of the clean ones and within [0, 1].

    L-inf: the nearest such images. L2: along the ray to the clean image first, then into [0, 1], as AutoAttack does.

    Args:
        epsilon: budget in 1/255.

    Returns:
        Projected images, [B, C, H, W].
    """
    return project_to_radius(images_BCHW, clean_BCHW, clean_BCHW.new_full(clean_BCHW.shape[:1], epsilon * PIXEL), norm)


def project_to_radius(images_BCHW: Tensor, clean_BCHW: Tensor, radius_B: Tensor, norm: Norm) -> Tensor:
    """:func:`project` with one budget per sample.

    Args:
        radius_B: budgets in pixel units.

    Returns:
        Projected images, [B, C, H, W].
    """
    if norm == "linf":
        radius_B111 = expand(radius_B)
        return images_BCHW.clamp(clean_BCHW - radius_B111, clean_BCHW + radius_B111).clamp(0.0, 1.0)
    delta_BCHW = images_BCHW - clean_BCHW
    return (clean_BCHW + unit(delta_BCHW) * expand(torch.minimum(l2_norm(delta_BCHW), radius_B))).clamp(0.0, 1.0)


def ascent(gradient_BCHW: Tensor, norm: Norm) -> Tensor:
    """The direction of steepest ascent whose norm is 1.

    Returns:
        Sign of the gradient (L-inf), or the gradient over its length (L2).
    """
    return gradient_BCHW.sign() if norm == "linf" else unit(gradient_BCHW)


def l2_norm(values_BCHW: Tensor) -> Tensor:
    """Length of each sample's vector.

    Returns:
        [B].
    """
    return values_BCHW.square().flatten(1).sum(1).sqrt()


def unit(values_BCHW: Tensor) -> Tensor:
    """Each sample's vector with length 1; a zero vector stays one.

    Returns:
        [B, C, H, W].
    """
    return values_BCHW / expand(l2_norm(values_BCHW) + 1e-12)


def start_point(
    start: Start, clean_BCHW: Tensor, epsilon: float, seeds: Sequence[int] | None, norm: Norm = "linf"
) -> Tensor:
    """The first point of an attack.

    Args:
        start: see :data:`Start`.
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
        return project(start.to(clean_BCHW), clean_BCHW, epsilon, norm)
    if start == "clean":
        return clean_BCHW.clone()
    if start not in ("random", "surface"):
        raise ValueError(f"start: expected 'clean', 'random', 'surface' or images, got {start!r}")
    if seeds is None or len(seeds) != clean_BCHW.shape[0]:
        raise ValueError(f"seeds: a random start needs one seed per sample ({clean_BCHW.shape[0]})")
    noise_BCHW = torch.stack([_noise(list(clean_BCHW.shape[1:]), seed, norm, start == "surface") for seed in seeds])
    return project(clean_BCHW + noise_BCHW.to(clean_BCHW) * (epsilon * PIXEL), clean_BCHW, epsilon, norm)


def _noise(shape: list[int], seed: int, norm: Norm, surface: bool) -> Tensor:
    """One sample's random point of the unit ball, or of its surface, in float64 on the CPU whatever the device."""
    generator = torch.Generator().manual_seed(seed)
    if norm == "linf":
        noise_CHW = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
        return noise_CHW / noise_CHW.abs().max() if surface else noise_CHW
    noise_CHW = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise_CHW = noise_CHW / noise_CHW.square().sum().sqrt()
    # The share of a ball of dimension n within radius r is r^n.
    radius = torch.rand((), generator=generator, dtype=torch.float64) ** (1 / noise_CHW.numel())
    return noise_CHW if surface else noise_CHW * radius


class Look(NamedTuple):
    """What one pass over some points shows; all detached.

    Attributes:
        solved_B: whether the attack's goal is reached there; all False where the loss does not say.
        gradient_BCHW: of the loss; zeros after a pass without one.
    """

    loss_B: Tensor
    solved_B: Tensor
    gradient_BCHW: Tensor


def loss_and_gradient(loss: LossFunction, images_BCHW: Tensor, index_B: Tensor) -> Look:
    """One forward and one backward pass to the pixels; no gradient reaches anything else.

    Args:
        loss: see :data:`LossFunction`.
        index_B: which samples they belong to.

    Raises:
        ValueError: if the loss is not one value per sample, or does not depend on the pixels differentiably.
    """
    leaf_BCHW = images_BCHW.detach().requires_grad_(True)
    with torch.enable_grad():
        loss_B, solved_B = split_loss(loss(leaf_BCHW, index_B), images_BCHW)
    if not loss_B.requires_grad:
        raise ValueError("loss: its value does not depend on the pixels through autograd (a no_grad in the model?)")
    (gradient_BCHW,) = torch.autograd.grad(loss_B.sum(), leaf_BCHW)
    return Look(loss_B.detach(), solved_B, gradient_BCHW)


def loss_only(loss: LossFunction, images_BCHW: Tensor, index_B: Tensor) -> Look:
    """One forward pass without graph.

    Args:
        loss: see :data:`LossFunction`.
        index_B: which samples they belong to.

    Returns:
        Loss and goal; a gradient of zeros.
    """
    with torch.no_grad():
        loss_B, solved_B = split_loss(loss(images_BCHW, index_B), images_BCHW)
    return Look(loss_B, solved_B, torch.zeros_like(images_BCHW))


def split_loss(value: Tensor | tuple[Tensor, Tensor], images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and goal of what a loss function returned.

    Args:
        value: loss_B, or loss_B and solved_B.

    Returns:
        loss_B, and solved_B (all False where the loss does not say), detached.

    Raises:
        ValueError: if either is not one value per sample.
    """
    if isinstance(value, tuple):
        loss_B, solved_B = value
        check_loss(loss_B, images_BCHW)
        if solved_B.shape != loss_B.shape:
            raise ValueError(f"loss: expected solved_B of shape {list(loss_B.shape)}, got {list(solved_B.shape)}")
        return loss_B, solved_B.detach().bool()
    check_loss(value, images_BCHW)
    return value, torch.zeros(value.shape, dtype=torch.bool, device=value.device)


def check_loss(loss_B: Tensor, images_BCHW: Tensor) -> None:
    """Refuses a loss that is not one value per sample.

    Args:
        loss_B: what the loss function returned.

    Raises:
        ValueError: if their batch sizes differ.
    """
    if loss_B.shape != images_BCHW.shape[:1]:
        raise ValueError(
            f"loss: expected one value per sample, shape [{images_BCHW.shape[0]}], got {list(loss_B.shape)}; "
            "attack state is per sample, so do not average over the batch"
        )


class NonFiniteLossError(ValueError):
    """A loss that is finite for no sample."""


def check_finite(loss_B: Tensor) -> None:
    """Refuses a first look that is finite for no sample: the loss is at fault then, not a sample.

    A single sample that is not finite is flagged instead, and leaves the others untouched.

    Raises:
        NonFiniteLossError: naming the samples.
    """
    if len(loss_B) and not bool(loss_B.isfinite().any()):
        which = "sample 0" if len(loss_B) == 1 else f"samples 0 to {len(loss_B) - 1}"
        raise NonFiniteLossError(
            f"loss: not finite at the start point of {which} ({loss_B[0].item():g}), so there is nothing to climb; "
            "look for the first operation of the model that overflows, or attack it in float32"
        )


def expand(value_B: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return value_B[:, None, None, None]
