"""Auto-PGD (Croce & Hein 2020) on a batch whose samples never touch one another.

Every sample owns its step size, its counters and its best point, so the trajectory of a sample is the same alone and in
any batch, up to ties that rounding decides (``docs/protocols.md``, "Ties"). One update rule serves two references.
RobustVLM and Robust-LLaVA (``vlm_eval/attacks/apgd.py``): clean start, first step 1 epsilon, point of highest loss.
AutoAttack (``autoattack/autopgd_base.py``): start on the budget's surface, first step 2 epsilon, last point that the
model got wrong (:mod:`rllava.attacks.autoattack`). Either costs ``steps`` + 1 forward and ``steps`` backward passes.

Shapes: B batch, C channel, H/W image, S steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rllava.attacks.common import (
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
from rllava.attacks.stepper import ATTACKS, Entering, Lanes

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
        """0.22, 0.06 and 0.03 of the steps, at least one."""
        return cls(max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1))


@dataclass
class ApgdLanes(Lanes):
    """APGD in flight.

    Attributes:
        previous_LCHW: where the lane stood before.
        solved_LCHW: last point that reached the goal.
        since_check_L: steps in the current window.
        window_L: length of the current window.
        shortest_L: length below which windows do not fall.
        rises_L: steps of the current window in which the loss rose.
        last_loss_L: loss of the previous step; 0 before the first one, as in the reference.
        best_loss_at_check_L: when the current window began.
        reduced_at_check_L: whether the last check reduced the step size.
    """

    previous_LCHW: Tensor
    gradient_LCHW: Tensor
    best_gradient_LCHW: Tensor
    solved_LCHW: Tensor
    solved_L: Tensor
    since_check_L: Tensor
    window_L: Tensor
    shortest_L: Tensor
    decrement_L: Tensor
    rises_L: Tensor
    last_loss_L: Tensor
    best_loss_at_check_L: Tensor
    reduced_at_check_L: Tensor

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    @classmethod
    def enter(cls, entering: Entering) -> "ApgdLanes":
        """See the base class."""
        count = len(entering.steps)
        windows = [Windows.of(total) for total in entering.steps]
        return cls(
            **entering.common(),  # type: ignore[arg-type]
            previous_LCHW=entering.point_LCHW.clone(),
            gradient_LCHW=torch.zeros_like(entering.clean_LCHW),
            best_gradient_LCHW=torch.zeros_like(entering.clean_LCHW),
            solved_LCHW=entering.point_LCHW.clone(),
            solved_L=entering.flags(False),
            since_check_L=entering.whole([-1] * count),
            window_L=entering.whole([window.first for window in windows]),
            shortest_L=entering.whole([window.shortest for window in windows]),
            decrement_L=entering.whole([window.decrement for window in windows]),
            rises_L=entering.whole([0] * count),
            last_loss_L=entering.numbers([0.0] * count),
            best_loss_at_check_L=entering.numbers([-torch.inf] * count),
            reduced_at_check_L=entering.flags(True),
        )

    def absorb(self, look: Look) -> None:
        """Keeps the best points and the last ones that reached the goal, and sets step sizes."""
        first_L = self.done_L < 0
        loss_L, better_L = self.note_loss(look)
        self.gradient_LCHW = torch.where(expand(self.failed_L), 0.0, look.gradient_BCHW.to(self.point_LCHW.dtype))
        solved_L = look.solved_B & ~self.failed_L
        self.best_gradient_LCHW = torch.where(expand(better_L), self.gradient_LCHW, self.best_gradient_LCHW)
        self.best_loss_at_check_L = torch.where(first_L, loss_L, self.best_loss_at_check_L)
        self.solved_LCHW = torch.where(expand(solved_L), self.point_LCHW, self.solved_LCHW)
        self.solved_L = self.solved_L | solved_L
        self.rises_L = self.rises_L + ((loss_L > self.last_loss_L) & ~first_L)
        self.last_loss_L = torch.where(first_L, 0.0, loss_L)
        self.since_check_L = self.since_check_L + 1
        self._check_step_size()

    def _check_step_size(self) -> None:
        """At a window's end: a lane that oscillates or stands still halves its step and goes back to its best point."""
        due_L = self.since_check_L == self.window_L
        oscillates_L = self.rises_L <= OSCILLATION * self.window_L
        stands_still_L = ~self.reduced_at_check_L & (self.best_loss_at_check_L >= self.best_loss_L)
        reduce_L = due_L & (oscillates_L | stands_still_L)
        self.step_size_L = torch.where(reduce_L, self.step_size_L / 2, self.step_size_L)
        self.point_LCHW = torch.where(expand(reduce_L), self.best_LCHW, self.point_LCHW)
        self.gradient_LCHW = torch.where(expand(reduce_L), self.best_gradient_LCHW, self.gradient_LCHW)
        self.reduced_at_check_L = torch.where(due_L, reduce_L, self.reduced_at_check_L)
        self.best_loss_at_check_L = torch.where(due_L, self.best_loss_L, self.best_loss_at_check_L)
        self.since_check_L = torch.where(due_L, 0, self.since_check_L)
        self.rises_L = torch.where(due_L, 0, self.rises_L)
        shorter_L = torch.maximum(self.window_L - self.decrement_L, self.shortest_L)
        self.window_L = torch.where(due_L, shorter_L, self.window_L)

    def move(self) -> None:
        """One step uphill, with momentum."""
        self.note_step((self.gradient_LCHW == 0).flatten(1).to(self.zero_gradient_LS.dtype).mean(1))
        point_LCHW = self.point_LCHW
        displacement_LCHW = point_LCHW - self.previous_LCHW
        momentum_L111 = expand(torch.where(self.done_L == 0, 1.0, MOMENTUM).to(point_LCHW.dtype))
        target_LCHW = point_LCHW + expand(self.step_size_L) * ascent(self.gradient_LCHW, self.norm)
        target_LCHW = project_to_radius(target_LCHW, self.clean_LCHW, self.radius_L, self.norm)
        moved_LCHW = point_LCHW + momentum_L111 * (target_LCHW - point_LCHW) + (1 - momentum_L111) * displacement_LCHW
        moved_LCHW = project_to_radius(moved_LCHW, self.clean_LCHW, self.radius_L, self.norm)
        self.previous_LCHW = point_LCHW
        self.point_LCHW = torch.where(expand(self.failed_L), point_LCHW, moved_LCHW)


ATTACKS.register("apgd", ApgdLanes)


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
    points_BCHW = start_point(start, clean_BCHW, epsilon, seeds, norm)
    each = ([epsilon] * count, [steps] * count, [step_size] * count)
    lanes = ApgdLanes.enter(Entering(clean_BCHW, points_BCHW, *each, norm=norm))
    for step in range(steps + 1):
        # The last point needs no gradient: no step follows.
        look = (loss_only if step == steps else loss_and_gradient)(loss, lanes.point_LCHW, index_B)
        if step == 0:
            check_finite(look.loss_B)
        lanes.absorb(look)
        if step < steps:
            lanes.move()
    return result_of(lanes, steps)


def result_of(lanes: ApgdLanes, steps: int) -> AttackResult:
    """What attacks of equally many steps leave."""
    history = History(
        lanes.loss_LS[:, : steps + 1].T, lanes.step_size_LS[:, :steps].T, lanes.zero_gradient_LS[:, :steps].T
    )
    return AttackResult(
        lanes.best_LCHW,
        lanes.best_loss_L,
        lanes.solved_LCHW,
        lanes.solved_L,
        history,
        lanes.failed_L,
        forwards=steps + 1,
        backwards=steps,
    )
