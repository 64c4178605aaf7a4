"""One image against a corpus of target sentences (VisualAdv, Qi et al. 2023).

The attack draws some targets at each step and moves one image along the sign of their mean gradient. Hyper-parameters
and start points are those of its authors (``visual_attacker.py``), the code is our own. Published: 5000 steps, 8
targets per step, 1/255 per step, epsilon 16, 32, 64 or unconstrained.

Shapes: C channel, H/W image, N targets drawn in a step, S steps.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from rllava.attacks.common import PIXEL, NonFiniteLossError, check_budget, check_images, project
from rllava.errors import UserError

TargetLoss = Callable[[Tensor, Tensor], Tensor]
"""``loss(image_1CHW, index_N) -> loss_N``: the loss of each drawn target for the one image, maximised as everywhere in
this package. To make a model say the targets, give minus the cross-entropy of their tokens. The image comes once, so
that it is encoded once for all targets."""


@dataclass(frozen=True)
class UniversalResult:
    """What the attack leaves.

    Attributes:
        image_CHW: the last point, in [0, 1] and within the budget. Not the one of highest loss: the losses of two steps
            are over different targets.
        loss_S: mean loss of the targets drawn at each step, before the step is taken.
        zero_gradient_S: share of exactly zero entries of each gradient.
        failed: whether loss or gradient was not finite; the attack stopped there, without the step. The histories end
            with that step.
    """

    image_CHW: Tensor
    loss_S: Tensor
    zero_gradient_S: Tensor
    failed: bool


def universal(
    loss: TargetLoss,
    image_CHW: Tensor,
    *,
    targets: int,
    steps: int = 5000,
    batch: int = 8,
    epsilon: float | None,
    step_size: float = 1.0,
    seed: int,
) -> UniversalResult:
    """Maximises the mean loss of all targets over one image.

    Every target of a step weighs the same. (The published code averages over the tokens of all drawn targets, so that
    longer ones weigh more; and it takes one step more than it is asked for.)

    Args:
        loss: ``loss(image_1CHW, index_N) -> loss_N``, maximised; see :data:`TargetLoss`.
        image_CHW: clean image, float32 or float64 in [0, 1]. Unconstrained, only its shape, type and device count.
        targets: number of targets; those of a step are drawn from ``range(targets)`` without replacement.
        steps: number of gradient steps, one forward and one backward pass each.
        epsilon: L-inf budget in units of 1/255, starting at uniform noise within it around the image; None for no
            budget, starting at an image of uniform noise.
        step_size: in units of 1/255, as published; not of epsilon, since there may be none.
        seed: of the start and of the draws.

    Returns:
        The last image, and what happened at each step.

    Raises:
        ValueError: naming the argument at fault.
    """
    check_images(image_CHW[None])
    budget = 255.0 if epsilon is None else epsilon  # 255: the whole box, wherever the clean image lies
    check_budget(budget, steps, step_size=1.0)
    if not step_size > 0:
        raise ValueError(f"step_size: expected a positive number (units of 1/255), got {step_size}")
    if not 1 <= batch <= targets:
        raise ValueError(f"batch: expected 1 to {targets} of the {targets} targets, got {batch}")
    generator = Generator().manual_seed(seed)
    clean_1CHW = image_CHW.detach()[None]
    noise_1CHW = torch.rand(clean_1CHW.shape, generator=generator, dtype=torch.float64).to(clean_1CHW)
    point_1CHW = noise_1CHW
    if epsilon is not None:
        point_1CHW = project(clean_1CHW + (2 * noise_1CHW - 1) * (epsilon * PIXEL), clean_1CHW, epsilon)
    losses: list[Tensor] = []
    zeros: list[Tensor] = []
    failed = False
    for _ in range(steps):
        index_N = torch.randperm(targets, generator=generator)[:batch].to(clean_1CHW.device)
        mean, gradient_1CHW = _mean_and_gradient(loss, point_1CHW, index_N)
        if not losses and not bool(mean.isfinite()):
            raise NonFiniteLossError(
                f"loss: its mean over targets {index_N.tolist()} is not finite at the start image ({mean.item():g}); "
                "look for the first operation of the model that overflows, or attack it in float32"
            )
        losses.append(mean)
        zeros.append((gradient_1CHW == 0).to(clean_1CHW.dtype).mean())
        failed = not bool(mean.isfinite() & gradient_1CHW.isfinite().all())
        if failed:
            break
        point_1CHW = project(point_1CHW + step_size * PIXEL * gradient_1CHW.sign(), clean_1CHW, budget)
    return UniversalResult(point_1CHW[0], torch.stack(losses), torch.stack(zeros), failed)


def _mean_and_gradient(loss: TargetLoss, image_1CHW: Tensor, index_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of the drawn targets and its gradient; no gradient reaches anything but the image."""
    leaf_1CHW = image_1CHW.detach().requires_grad_(True)
    with torch.enable_grad():
        loss_N = loss(leaf_1CHW, index_N)
        if loss_N.shape != index_N.shape:
            raise ValueError(
                f"loss: expected one value per target, shape {list(index_N.shape)}, got {list(loss_N.shape)}"
            )
        mean = loss_N.mean()
    if not mean.requires_grad:
        raise ValueError("loss: its value does not depend on the image through autograd (a no_grad in the model?)")
    (gradient_1CHW,) = torch.autograd.grad(mean, leaf_1CHW)
    return mean.detach(), gradient_1CHW


def read_corpus(path: str | Path) -> list[str]:
    """Target sentences from a local file: a text file with one per line, or the first column of a CSV file.

    Args:
        path: UTF-8; a name ending in ``.csv`` is a CSV file without header, as VisualAdv's corpus is.

    Returns:
        The targets in order, stripped; blank lines are skipped.

    Raises:
        UserError: if the file cannot be read or holds no target.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv_file = path.suffix.lower() == ".csv"
            lines = [row[0] for row in csv.reader(file) if row] if csv_file else file.read().splitlines()
    except OSError as error:
        raise UserError(f"corpus '{path}' cannot be read ({error.strerror}); give a file of targets") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"corpus '{path}' is no UTF-8 text ({error}); save it as UTF-8, one target per line") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"corpus '{path}' holds no target; write one per line, or in the first column of a .csv file")
    return found
