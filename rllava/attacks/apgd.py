"""Auto-PGD (Croce & Hein 2020) on a batch whose samples never touch one another.

Every sample owns its step size, its counters and its best point, so the trajectory of a sample is the same alone and in
any batch. One update rule serves two references. RobustVLM and Robust-LLaVA (``vlm_eval/attacks/apgd.py``): clean
start, first step 1 epsilon, point of highest loss. AutoAttack (``autoattack/autopgd_base.py``): start on the budget's
surface, first step 2 epsilon, last point that the model got wrong (:mod:`rllava.attacks.autoattack`). Either costs
``steps`` + 1 forward and ``steps`` backward passes.

Shapes: B batch, C channel, H/W image, S steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rllava.attacks.common import (
    PIXEL,
    AttackResult,
    History,
    Look,
    LossFunction,
    Norm,
    Start,
    ascent,
    check_budget,
    check_images,
    expand,
    loss_and_gradient,
    loss_only,
    project,
    start_point,
)

MOMENTUM = 0.75
"""Weight of the new direction; the rest goes to the previous displacement (first step: all to the new one)."""

OSCILLATION = 0.75
"""A window in which the loss rose in at most this share of steps halves the step size."""


@dataclass(frozen=True)
class Windows:
    """Lengths of the windows between two checks of the step size, in steps (fractions of the total, as published)."""

    first: int
    shortest: int
    decrement: int

    @classmethod
    def of(cls, steps: int) -> "Windows":
        """0.22, 0.06 and 0.03 of the steps, at least one.

        Args:
            steps: total number of steps.

        Returns:
            The windows.
        """
        return cls(max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1))


@dataclass
class _State:
    """All state of a batch in flight; every tensor has the batch as its first dimension."""

    point_BCHW: Tensor
    previous_BCHW: Tensor
    gradient_BCHW: Tensor
    best_BCHW: Tensor
    best_gradient_BCHW: Tensor
    best_loss_B: Tensor
    solved_BCHW: Tensor  # last point that reached the goal
    solved_B: Tensor
    step_size_B: Tensor
    done_B: Tensor  # steps taken
    since_check_B: Tensor
    window_B: Tensor  # length of the current window
    rises_B: Tensor  # steps of the current window in which the loss rose
    last_loss_B: Tensor  # loss of the previous step; 0 before the first one, as in the reference
    best_loss_at_check_B: Tensor
    reduced_at_check_B: Tensor
    broken_B: Tensor


def apgd(
    loss: LossFunction,
    images_BCHW: Tensor,
    *,
    epsilon: float,
    steps: int,
    norm: Norm = "linf",
    start: Start = "clean",
    step_size: float = 1.0,
    seeds: Sequence[int] | None = None,
) -> AttackResult:
    """Maximises ``loss`` within a budget.

    Args:
        loss: ``loss(pixels_BCHW, index_B) -> loss_B``, maximised; see :data:`rllava.attacks.common.LossFunction`.
        images_BCHW: clean images, float32 or float64 in [0, 1].
        epsilon: budget in units of 1/255, in either norm.
        steps: number of gradient steps.
        norm: ``"linf"`` or ``"l2"``, over all pixels and channels of an image.
        start: ``"clean"``, ``"random"``, ``"surface"`` or start images.
        step_size: first step size in units of epsilon.
        seeds: one per sample, for a random start.

    Returns:
        The points of highest loss, and the last ones that reached the goal where the loss says so; every one satisfies
        ``|x - clean| <= epsilon / 255`` and lies in [0, 1].

    Raises:
        ValueError: naming the argument, and the sample where one is at fault.
    """
    check_images(images_BCHW)
    check_budget(epsilon, steps, step_size, norm)
    clean_BCHW = images_BCHW.detach()
    index_B = torch.arange(clean_BCHW.shape[0], device=clean_BCHW.device)
    windows = Windows.of(steps)
    point_BCHW = start_point(start, clean_BCHW, epsilon, seeds, norm)
    state = _begin(loss_and_gradient(loss, point_BCHW, index_B), point_BCHW, step_size * epsilon * PIXEL, windows)
    losses, sizes, zeros = [state.best_loss_B.clone()], [], []
    for step in range(steps):
        sizes.append(state.step_size_B.clone())
        zeros.append((state.gradient_BCHW == 0).flatten(1).to(clean_BCHW.dtype).mean(1))
        _move(state, clean_BCHW, epsilon, norm)
        # The last point needs no gradient: no step follows.
        look = loss_only if step == steps - 1 else loss_and_gradient
        losses.append(_note(state, look(loss, state.point_BCHW, index_B)))
        _check_step_size(state, windows)
    history = History(torch.stack(losses), torch.stack(sizes), torch.stack(zeros))
    return AttackResult(
        state.best_BCHW,
        state.best_loss_B,
        state.solved_BCHW,
        state.solved_B,
        history,
        state.broken_B,
        forwards=steps + 1,
        backwards=steps,
    )


def _begin(look: Look, point_BCHW: Tensor, step_size: float, windows: Windows) -> _State:
    broken_B = ~(look.loss_B.isfinite() & look.gradient_BCHW.flatten(1).isfinite().all(1))
    gradient_BCHW = torch.where(expand(broken_B), torch.zeros_like(look.gradient_BCHW), look.gradient_BCHW)
    zeros_B = torch.zeros_like(broken_B, dtype=torch.int64)
    return _State(
        point_BCHW=point_BCHW,
        previous_BCHW=point_BCHW.clone(),
        gradient_BCHW=gradient_BCHW,
        best_BCHW=point_BCHW.clone(),
        best_gradient_BCHW=gradient_BCHW.clone(),
        best_loss_B=look.loss_B.clone(),
        solved_BCHW=point_BCHW.clone(),
        solved_B=look.solved_B & ~broken_B,
        step_size_B=torch.full_like(look.loss_B, step_size),
        done_B=zeros_B.clone(),
        since_check_B=zeros_B.clone(),
        window_B=torch.full_like(zeros_B, windows.first),
        rises_B=zeros_B.clone(),
        last_loss_B=torch.zeros_like(look.loss_B),
        best_loss_at_check_B=look.loss_B.clone(),
        reduced_at_check_B=torch.ones_like(broken_B),
        broken_B=broken_B,
    )


def _move(state: _State, clean_BCHW: Tensor, epsilon: float, norm: Norm) -> None:
    """One step uphill, with momentum; samples that broke stay where they are."""
    displacement_BCHW = state.point_BCHW - state.previous_BCHW
    momentum_B111 = expand(torch.where(state.done_B == 0, 1.0, MOMENTUM).to(clean_BCHW.dtype))
    target_BCHW = state.point_BCHW + expand(state.step_size_B) * ascent(state.gradient_BCHW, norm)
    target_BCHW = project(target_BCHW, clean_BCHW, epsilon, norm)
    moved_BCHW = (
        state.point_BCHW + momentum_B111 * (target_BCHW - state.point_BCHW) + (1 - momentum_B111) * displacement_BCHW
    )
    moved_BCHW = project(moved_BCHW, clean_BCHW, epsilon, norm)
    state.previous_BCHW = state.point_BCHW
    state.point_BCHW = torch.where(expand(state.broken_B), state.point_BCHW, moved_BCHW)


def _note(state: _State, look: Look) -> Tensor:
    """Takes in what the new points show: keeps the best ones, and the last ones that reached the goal."""
    finite_B = look.loss_B.isfinite() & look.gradient_BCHW.flatten(1).isfinite().all(1)
    state.broken_B = state.broken_B | ~finite_B
    better_B = (look.loss_B > state.best_loss_B) & ~state.broken_B
    solved_B = look.solved_B & ~state.broken_B
    state.gradient_BCHW = torch.where(expand(state.broken_B), torch.zeros_like(look.gradient_BCHW), look.gradient_BCHW)
    state.best_BCHW = torch.where(expand(better_B), state.point_BCHW, state.best_BCHW)
    state.best_gradient_BCHW = torch.where(expand(better_B), state.gradient_BCHW, state.best_gradient_BCHW)
    state.best_loss_B = torch.where(better_B, look.loss_B, state.best_loss_B)
    state.solved_BCHW = torch.where(expand(solved_B), state.point_BCHW, state.solved_BCHW)
    state.solved_B = state.solved_B | solved_B
    state.rises_B = state.rises_B + (look.loss_B > state.last_loss_B).to(state.rises_B.dtype)
    state.last_loss_B = look.loss_B
    state.done_B = state.done_B + 1
    state.since_check_B = state.since_check_B + 1
    return look.loss_B


def _check_step_size(state: _State, windows: Windows) -> None:
    """At the end of a sample's window: if it oscillates or stands still, halve its step, go back to its best point."""
    due_B = state.since_check_B == state.window_B
    oscillates_B = state.rises_B <= OSCILLATION * state.window_B
    stands_still_B = ~state.reduced_at_check_B & (state.best_loss_at_check_B >= state.best_loss_B)
    reduce_B = due_B & (oscillates_B | stands_still_B)
    state.step_size_B = torch.where(reduce_B, state.step_size_B / 2, state.step_size_B)
    state.point_BCHW = torch.where(expand(reduce_B), state.best_BCHW, state.point_BCHW)
    state.gradient_BCHW = torch.where(expand(reduce_B), state.best_gradient_BCHW, state.gradient_BCHW)
    state.reduced_at_check_B = torch.where(due_B, reduce_B, state.reduced_at_check_B)
    state.best_loss_at_check_B = torch.where(due_B, state.best_loss_B, state.best_loss_at_check_B)
    state.since_check_B = torch.where(due_B, 0, state.since_check_B)
    state.rises_B = torch.where(due_B, 0, state.rises_B)
    state.window_B = torch.where(
        due_B, (state.window_B - windows.decrement).clamp(min=windows.shortest), state.window_B
    )
