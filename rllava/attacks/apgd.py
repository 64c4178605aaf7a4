"""Auto-PGD (Croce & Hein 2020) on a batch whose samples never touch one another.

Every sample owns its step size, its counters and its best point, so the trajectory of a sample is the same alone and in
any batch, up to ties that rounding decides (``docs/protocols.md``, "Ties"). One update rule serves two references.
RobustVLM and Robust-LLaVA (``vlm_eval/attacks/apgd.py``): clean start, first step 1 epsilon, point of highest loss.
AutoAttack (``autoattack/autopgd_base.py``): start on the budget's surface, first step 2 epsilon, last point that the
model got wrong (:mod:`rllava.attacks.autoattack`). Either costs ``steps`` + 1 forward and ``steps`` backward passes.

Shapes: B batch, C channel, H/W image, S steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

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
    check_finite,
    check_images,
    expand,
    loss_and_gradient,
    loss_only,
    project_to_radius,
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
class Lanes:
    """Attacks in flight; every tensor has the lane as its first dimension, and no lane reads another's row.

    A lane has its own budget and number of steps, and may be at another step than its neighbours. Its life: ``enter``
    at a start point; then each look at its point is taken in by ``absorb`` and followed by ``move`` to the next point,
    until ``steps`` + 1 looks are taken in.

    Attributes:
        clean_LCHW: clean images.
        radius_L: budgets in pixel units.
        done_L: steps taken; -1 before the first look.
        point_LCHW: where the lane stands.
        previous_LCHW: where it stood before.
        gradient_LCHW: at the point.
        best_LCHW: point of highest loss.
        best_gradient_LCHW: the gradient there.
        best_loss_L: its loss.
        solved_LCHW: last point that reached the goal.
        solved_L: whether any did.
        step_size_L: in pixel units.
        since_check_L: steps in the current window.
        window_L: length of the current window.
        shortest_L: length below which windows do not fall.
        decrement_L: by which they shrink.
        rises_L: steps of the current window in which the loss rose.
        last_loss_L: loss of the previous step; 0 before the first one, as in the reference.
        best_loss_at_check_L: when the current window began.
        reduced_at_check_L: whether the last check reduced the step size.
        broken_L: whether a loss or gradient was not finite; the lane stands still from then on.
        loss_LS: loss of the point at each step, column 0 the start; as many columns as the longest attack needs.
        step_size_LS: step size taken at each step.
        zero_gradient_LS: share of exactly zero entries of each gradient used.
    """

    clean_LCHW: Tensor
    radius_L: Tensor
    done_L: Tensor
    point_LCHW: Tensor
    previous_LCHW: Tensor
    gradient_LCHW: Tensor
    best_LCHW: Tensor
    best_gradient_LCHW: Tensor
    best_loss_L: Tensor
    solved_LCHW: Tensor
    solved_L: Tensor
    step_size_L: Tensor
    since_check_L: Tensor
    window_L: Tensor
    shortest_L: Tensor
    decrement_L: Tensor
    rises_L: Tensor
    last_loss_L: Tensor
    best_loss_at_check_L: Tensor
    reduced_at_check_L: Tensor
    broken_L: Tensor
    loss_LS: Tensor
    step_size_LS: Tensor
    zero_gradient_LS: Tensor

    def __len__(self) -> int:
        return self.clean_LCHW.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """All state by name, to be saved.

        Returns:
            Field name to tensor; ``Lanes(**tensors)`` is the same state.
        """
        return {field.name: self.__dict__[field.name] for field in fields(self)}

    def rows(self, rows: Sequence[int]) -> "Lanes":
        """Some of the lanes, copied.

        Args:
            rows: which, in the new order.

        Returns:
            Those lanes.
        """
        index = torch.tensor(rows, dtype=torch.int64, device=self.clean_LCHW.device)
        return Lanes(**{name: value[index] for name, value in self.tensors().items()})

    def join(self, others: "Lanes") -> "Lanes":
        """These lanes and then others.

        Args:
            others: with the same columns of history.

        Returns:
            All of them.
        """
        theirs = others.tensors()
        return Lanes(**{name: torch.cat([value, theirs[name]]) for name, value in self.tensors().items()})


def enter(
    clean_LCHW: Tensor,
    point_LCHW: Tensor,
    *,
    epsilon: Sequence[float],
    steps: Sequence[int],
    step_size: Sequence[float],
    columns: int | None = None,
) -> Lanes:
    """Lanes that stand at their start points and have seen nothing.

    Args:
        clean_LCHW: clean images.
        point_LCHW: start points within the budgets.
        epsilon: budgets in 1/255.
        steps: of each attack.
        step_size: first step sizes, in units of epsilon.
        columns: steps that the histories hold; the longest attack's if None.

    Returns:
        The lanes.
    """
    count, longest = len(steps), max(steps) if columns is None else columns
    windows = [Windows.of(total) for total in steps]
    zeros_LCHW = torch.zeros_like(clean_LCHW)
    false_L = torch.zeros(count, dtype=torch.bool, device=clean_LCHW.device)

    def whole(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=clean_LCHW.device)

    def number(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=clean_LCHW.dtype, device=clean_LCHW.device)

    return Lanes(
        clean_LCHW=clean_LCHW.clone(),
        radius_L=number([value * PIXEL for value in epsilon]),
        done_L=whole([-1] * count),
        point_LCHW=point_LCHW.clone(),
        previous_LCHW=point_LCHW.clone(),
        gradient_LCHW=zeros_LCHW,
        best_LCHW=point_LCHW.clone(),
        best_gradient_LCHW=zeros_LCHW.clone(),
        best_loss_L=number([-torch.inf] * count),
        solved_LCHW=point_LCHW.clone(),
        solved_L=false_L,
        step_size_L=number([size * value * PIXEL for size, value in zip(step_size, epsilon, strict=True)]),
        since_check_L=whole([-1] * count),
        window_L=whole([window.first for window in windows]),
        shortest_L=whole([window.shortest for window in windows]),
        decrement_L=whole([window.decrement for window in windows]),
        rises_L=whole([0] * count),
        last_loss_L=number([0.0] * count),
        best_loss_at_check_L=number([-torch.inf] * count),
        reduced_at_check_L=~false_L,
        broken_L=false_L.clone(),
        loss_LS=clean_LCHW.new_zeros(count, longest + 1),
        step_size_LS=clean_LCHW.new_zeros(count, longest),
        zero_gradient_LS=clean_LCHW.new_zeros(count, longest),
    )


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
    count = clean_BCHW.shape[0]
    index_B = torch.arange(count, device=clean_BCHW.device)
    lanes = enter(
        clean_BCHW,
        start_point(start, clean_BCHW, epsilon, seeds, norm),
        epsilon=[epsilon] * count,
        steps=[steps] * count,
        step_size=[step_size] * count,
    )
    for step in range(steps + 1):
        # The last point needs no gradient: no step follows.
        look = (loss_only if step == steps else loss_and_gradient)(loss, lanes.point_LCHW, index_B)
        if step == 0:
            check_finite(look.loss_B)
        absorb(lanes, look)
        if step < steps:
            move(lanes, norm)
    return result_of(lanes, steps)


def result_of(lanes: Lanes, steps: int) -> AttackResult:
    """What attacks of equally many steps leave.

    Args:
        lanes: that are done.
        steps: of each.

    Returns:
        Points, losses, history.
    """
    history = History(
        lanes.loss_LS[:, : steps + 1].T, lanes.step_size_LS[:, :steps].T, lanes.zero_gradient_LS[:, :steps].T
    )
    return AttackResult(
        lanes.best_LCHW,
        lanes.best_loss_L,
        lanes.solved_LCHW,
        lanes.solved_L,
        history,
        lanes.broken_L,
        forwards=steps + 1,
        backwards=steps,
    )


def absorb(lanes: Lanes, look: Look) -> None:
    """Takes in what the points show: keeps the best ones and the last ones that reached the goal, sets step sizes.

    Args:
        lanes: changed.
        look: at their points.
    """
    loss_L = look.loss_B.to(lanes.best_loss_L.dtype)
    first_L = lanes.done_L < 0
    lanes.broken_L = lanes.broken_L | ~(loss_L.isfinite() & look.gradient_BCHW.flatten(1).isfinite().all(1))
    lanes.gradient_LCHW = torch.where(expand(lanes.broken_L), 0.0, look.gradient_BCHW.to(lanes.point_LCHW.dtype))
    # A start point whose loss is not finite is the best one there is; its loss says what it is.
    better_L = torch.where(first_L, True, (loss_L > lanes.best_loss_L) & ~lanes.broken_L)
    solved_L = look.solved_B & ~lanes.broken_L
    lanes.best_LCHW = torch.where(expand(better_L), lanes.point_LCHW, lanes.best_LCHW)
    lanes.best_gradient_LCHW = torch.where(expand(better_L), lanes.gradient_LCHW, lanes.best_gradient_LCHW)
    lanes.best_loss_L = torch.where(better_L, loss_L, lanes.best_loss_L)
    lanes.best_loss_at_check_L = torch.where(first_L, loss_L, lanes.best_loss_at_check_L)
    lanes.solved_LCHW = torch.where(expand(solved_L), lanes.point_LCHW, lanes.solved_LCHW)
    lanes.solved_L = lanes.solved_L | solved_L
    lanes.rises_L = lanes.rises_L + ((loss_L > lanes.last_loss_L) & ~first_L)
    lanes.last_loss_L = torch.where(first_L, 0.0, loss_L)
    lanes.done_L = lanes.done_L + 1
    lanes.since_check_L = lanes.since_check_L + 1
    lanes.loss_LS.scatter_(1, lanes.done_L[:, None], loss_L[:, None])
    _check_step_size(lanes)


def _check_step_size(lanes: Lanes) -> None:
    """At the end of a lane's window: if it oscillates or stands still, halve its step, go back to its best point."""
    due_L = lanes.since_check_L == lanes.window_L
    oscillates_L = lanes.rises_L <= OSCILLATION * lanes.window_L
    stands_still_L = ~lanes.reduced_at_check_L & (lanes.best_loss_at_check_L >= lanes.best_loss_L)
    reduce_L = due_L & (oscillates_L | stands_still_L)
    lanes.step_size_L = torch.where(reduce_L, lanes.step_size_L / 2, lanes.step_size_L)
    lanes.point_LCHW = torch.where(expand(reduce_L), lanes.best_LCHW, lanes.point_LCHW)
    lanes.gradient_LCHW = torch.where(expand(reduce_L), lanes.best_gradient_LCHW, lanes.gradient_LCHW)
    lanes.reduced_at_check_L = torch.where(due_L, reduce_L, lanes.reduced_at_check_L)
    lanes.best_loss_at_check_L = torch.where(due_L, lanes.best_loss_L, lanes.best_loss_at_check_L)
    lanes.since_check_L = torch.where(due_L, 0, lanes.since_check_L)
    lanes.rises_L = torch.where(due_L, 0, lanes.rises_L)
    shorter_L = torch.maximum(lanes.window_L - lanes.decrement_L, lanes.shortest_L)
    lanes.window_L = torch.where(due_L, shorter_L, lanes.window_L)


def move(lanes: Lanes, norm: Norm = "linf") -> None:
    """One step uphill, with momentum; lanes that broke stay where they are, those that are done must not be moved.

    Args:
        lanes: changed.
        norm: of the budgets.
    """
    zero_L = (lanes.gradient_LCHW == 0).flatten(1).to(lanes.zero_gradient_LS.dtype).mean(1)
    lanes.zero_gradient_LS.scatter_(1, lanes.done_L[:, None], zero_L[:, None])
    lanes.step_size_LS.scatter_(1, lanes.done_L[:, None], lanes.step_size_L[:, None])
    point_LCHW, clean_LCHW, radius_L = lanes.point_LCHW, lanes.clean_LCHW, lanes.radius_L
    displacement_LCHW = point_LCHW - lanes.previous_LCHW
    momentum_L111 = expand(torch.where(lanes.done_L == 0, 1.0, MOMENTUM).to(point_LCHW.dtype))
    target_LCHW = point_LCHW + expand(lanes.step_size_L) * ascent(lanes.gradient_LCHW, norm)
    target_LCHW = project_to_radius(target_LCHW, clean_LCHW, radius_L, norm)
    moved_LCHW = point_LCHW + momentum_L111 * (target_LCHW - point_LCHW) + (1 - momentum_L111) * displacement_LCHW
    moved_LCHW = project_to_radius(moved_LCHW, clean_LCHW, radius_L, norm)
    lanes.previous_LCHW = point_LCHW
    lanes.point_LCHW = torch.where(expand(lanes.broken_L), point_LCHW, moved_LCHW)
