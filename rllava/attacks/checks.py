"""Attack checks: signs that a gradient attack failed and that the robustness it reports is not there.

After AutoAttack's flags (``flags_doc.md`` of fra31/auto-attack), the indicators of attack failure (Pintor et al. 2022)
and the advice of Carlini et al. 2019. A check never says that a model is robust; it says when a number proves nothing.
Each sample is judged by itself, so a verdict does not depend on its batch mates (but for rounding).
``docs/attack-checks.md`` holds the texts of :data:`CHECKS`; a test compares them.

Shapes: B batch, C channel, H/W image, S steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rllava.attacks.common import (
    PIXEL,
    AttackResult,
    LossFunction,
    Norm,
    ascent,
    check_budget,
    check_images,
    check_loss,
    l2_norm,
    loss_and_gradient,
    loss_only,
    project,
)
from rllava.check_names import (
    CHECKS,
    FALLS_DEPTH_LIMIT,
    FALLS_LIMIT,
    LAST_RISE_LIMIT,
    LOOKS,
    PREDICTION_LEAST,
    PROBE,
    SMALL_STEP,
    SMALL_STEPS_LEAST,
    WEAKER_LIMIT,
    ZERO_GRADIENT_LIMIT,
)

TOLERANCE = 1e-4
"""Losses nearer than this times max(1, loss) count as equal; suits models in float32."""

BUDGET_SLACK = 1e-3
"""By how much another attack's images may leave the budget, in 1/255: rounding of their difference."""


@dataclass(frozen=True)
class Finding:
    """A check that was raised.

    Attributes:
        share: share of the samples looked at that meet its condition.
        samples: which, counted within the batch.
        text: one line: what was seen, with numbers.
    """

    check: str
    share: float
    samples: tuple[int, ...]
    text: str


_BY_NAME = {check.name: check for check in CHECKS}


def check_attack(
    loss: LossFunction,
    images_BCHW: Tensor,
    result: AttackResult,
    *,
    epsilon: float,
    seeds: Sequence[int],
    norm: Norm = "linf",
    solved: Tensor | None = None,
    others: Mapping[str, Tensor] | None = None,
    clean_loss: Tensor | None = None,
    noise_points: int = 8,
    tolerance: float = TOLERANCE,
) -> list[Finding]:
    """Looks for signs that an attack failed.

    Costs 13 + ``noise_points`` forward passes and one backward pass per sample, one more forward pass for each entry of
    ``others`` that holds images; with epsilon 0, eight forward passes. No pass is larger than the batch.

    Args:
        images_BCHW: clean images, float32 or float64 in [0, 1].
        epsilon: budget of the attack in units of 1/255.
        seeds: one per sample, for random points that do not depend on the batch.
        solved: [B], samples that the attack broke; only ``non_finite``, ``stochastic`` and ``clean_mismatch`` look at
            them. Without it, those at which the loss said so.
        others: what attacks without this model's gradient reached: losses [B], or images [B, C, H, W] in the budget.
        clean_loss: [B], loss of the clean images as the clean evaluation knows it.
        noise_points: random points at the edge of the budget to try per sample.
        tolerance: losses nearer than this times max(1, loss) count as equal; 1e-2 suits models in half precision.

    Returns:
        One finding per check that was raised, in the order of :data:`CHECKS`; for ``black_box_wins`` one per attack.

    Raises:
        ValueError: naming the argument at fault.
    """
    check_images(images_BCHW)
    check_budget(epsilon, 1, 1.0, norm)
    _check_arguments(images_BCHW, result, seeds, solved, clean_loss)
    whole_B = ~result.failed_B
    open_B = whole_B & ~(result.solved_B if solved is None else solved.to(whole_B))
    index_B = torch.arange(images_BCHW.shape[0], device=images_BCHW.device)
    case = _Case(loss, images_BCHW.detach(), index_B, result, epsilon, norm, whole_B, open_B, tolerance)
    clean_B = case.loss_at(case.clean_BCHW)
    found = [_zero_gradient(case), _non_finite(case)]
    if epsilon > 0:
        found += [_no_descent(case), _non_monotone(case), _still_rising(case)]
    found.append(_stochastic(case, clean_B))
    if epsilon > 0:
        who = f"the best of {noise_points} random points"
        found.append(_higher(case, "noise_wins", who, _best_of_noise(case, seeds, noise_points)))
        for name, other in (others or {}).items():
            found.append(_higher(case, "black_box_wins", name, _loss_of_other(case, name, other)))
    found.append(_clean_mismatch(case, clean_B, clean_loss))
    if epsilon > 0:
        found.append(_does_not_predict(case, clean_B))
    return [finding for finding in found if finding is not None]


def compare_results(
    smaller: AttackResult,
    larger: AttackResult,
    *,
    grew: Literal["budget", "steps"],
    solved: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> list[Finding]:
    """Compares two attacks of the same samples of which the larger one must not be the weaker; costs no pass.

    Args:
        smaller: attack with the smaller epsilon or fewer steps.
        larger: attack with the larger epsilon or more steps.
        grew: what is larger, ``"budget"`` or ``"steps"``.
        solved: [B], samples that the larger attack broke, which are not compared; as in :func:`check_attack`.
        tolerance: as in :func:`check_attack`.

    Returns:
        A finding ``larger_budget_weaker`` or ``more_steps_weaker``, or none.

    Raises:
        ValueError: if the two are not of equally many samples, or ``grew`` is neither of the two.
    """
    if smaller.loss_B.shape != larger.loss_B.shape:
        raise ValueError(f"larger: expected {len(smaller.loss_B)} samples like smaller, got {len(larger.loss_B)}")
    names = {"budget": "larger_budget_weaker", "steps": "more_steps_weaker"}
    if grew not in names:
        raise ValueError(f"grew: expected 'budget' or 'steps', got {grew!r}")
    solved_B = larger.solved_B if solved is None else solved.to(larger.solved_B)
    open_B = ~(smaller.failed_B | larger.failed_B | solved_B)
    gap_B = smaller.loss_B - larger.loss_B
    rise_B = smaller.loss_B - smaller.history.loss_SB[0]
    weaker_B = gap_B > torch.maximum(WEAKER_LIMIT * rise_B, _slack(smaller.loss_B, tolerance))
    more = {"budget": "a larger budget", "steps": "more steps"}[grew]
    text = f"{more} left the loss lower, by {_mean(gap_B, weaker_B & open_B):.3g} on average"
    finding = _finding(names[grew], weaker_B, open_B, text)
    return [finding] if finding else []


@dataclass(frozen=True)
class _Case:
    """One attacked batch under examination."""

    loss: LossFunction
    clean_BCHW: Tensor
    index_B: Tensor
    result: AttackResult
    epsilon: float
    norm: Norm
    whole_B: Tensor  # not failed
    open_B: Tensor  # neither failed nor solved
    tolerance: float

    def loss_at(self, images_BCHW: Tensor) -> Tensor:
        return loss_only(self.loss, images_BCHW, self.index_B).loss_B


def _check_arguments(
    images_BCHW: Tensor, result: AttackResult, seeds: Sequence[int], solved: Tensor | None, clean_loss: Tensor | None
) -> None:
    batch = images_BCHW.shape[0]
    if result.images_BCHW.shape != images_BCHW.shape:
        raise ValueError(
            f"result: expected images of shape {list(images_BCHW.shape)}, got {list(result.images_BCHW.shape)}"
        )
    if len(seeds) != batch:
        raise ValueError(f"seeds: random points need one seed per sample ({batch}), got {len(seeds)}")
    for name, value in (("solved", solved), ("clean_loss", clean_loss)):
        if value is not None and value.shape != (batch,):
            raise ValueError(f"{name}: expected one value per sample, shape [{batch}], got {list(value.shape)}")


def _slack(loss_B: Tensor, tolerance: float) -> Tensor:
    """The difference up to which losses count as equal."""
    return tolerance * loss_B.abs().clamp(min=1.0)


def _mean(value_B: Tensor, where_B: Tensor) -> float:
    return float(value_B[where_B].mean()) if bool(where_B.any()) else 0.0


def _finding(name: str, concerned_B: Tensor, looked_B: Tensor, text: str) -> Finding | None:
    """A finding if the samples concerned are more than the check's limit allows."""
    concerned_B = concerned_B & looked_B
    looked, concerned = int(looked_B.sum()), int(concerned_B.sum())
    if concerned == 0 or concerned / looked <= _BY_NAME[name].limit:
        return None
    samples = tuple(concerned_B.nonzero()[:, 0].tolist())
    return Finding(name, concerned / looked, samples, f"{concerned} of {looked} samples: {text}")


def _zero_gradient(case: _Case) -> Finding | None:
    zeros_SB = case.result.history.zero_gradient_SB
    share_B = zeros_SB.mean(0)
    concerned_B = share_B > ZERO_GRADIENT_LIMIT
    blind = int(((zeros_SB == 1).all(0) & case.open_B).sum())
    mean = _mean(share_B, concerned_B & case.open_B)
    text = f"{mean:.0%} of the gradient's entries are exactly zero; {blind} never saw a gradient at all"
    return _finding("zero_gradient", concerned_B, case.open_B, text)


def _non_finite(case: _Case) -> Finding | None:
    text = "loss or gradient was not finite at some step; the attack stopped there"
    return _finding("non_finite", case.result.failed_B, torch.ones_like(case.result.failed_B), text)


def _no_descent(case: _Case) -> Finding | None:
    start_B = case.result.history.loss_SB[0]
    concerned_B = case.result.loss_B <= start_B
    text = f"the loss never rose above its start ({_mean(start_B, concerned_B & case.open_B):.3g} on average)"
    return _finding("no_descent", concerned_B, case.open_B, text)


def _non_monotone(case: _Case) -> Finding | None:
    share_B, depth_B = _oscillation(case.result, SMALL_STEP * case.epsilon * PIXEL)
    concerned_B = (share_B > FALLS_LIMIT) & (depth_B > FALLS_DEPTH_LIMIT)
    seen_B = concerned_B & case.open_B
    text = (
        f"{_mean(share_B, seen_B):.0%} of the small steps of the second half lowered the loss, "
        f"by {_mean(depth_B, seen_B):.1%} of its total rise per small step"
    )
    return _finding("non_monotone", concerned_B, case.open_B, text)


def _oscillation(result: AttackResult, small: float) -> tuple[Tensor, Tensor]:
    """Share of the second half's small steps that lowered the loss; their falls per small step, over the total rise."""
    history = result.history
    half = len(history.step_size_SB) // 2
    change_SB = history.loss_SB.diff(dim=0)[half:]
    # A step size that was halved in float32 may lie above the product by its last digit.
    small_SB = history.step_size_SB[half:] <= small * (1 + 1e-4)
    fell_SB = small_SB & (change_SB < 0)
    steps_B = small_SB.sum(0)
    rise_B = result.loss_B - history.loss_SB[0]
    falls_B = torch.where(fell_SB, -change_SB, 0.0).sum(0)
    enough_B = steps_B >= SMALL_STEPS_LEAST
    share_B = torch.where(enough_B, fell_SB.sum(0) / steps_B.clamp(min=1), 0.0)
    depth_B = torch.where(enough_B & (rise_B > 0), falls_B / steps_B.clamp(min=1) / rise_B, 0.0)
    return share_B, depth_B


def _still_rising(case: _Case) -> Finding | None:
    best_SB = case.result.history.loss_SB.cummax(0).values
    steps = len(best_SB) - 1
    last = max(1, steps // 10)
    rise_B = best_SB[-1] - best_SB[0]
    share_B = torch.where(rise_B > 0, (best_SB[-1] - best_SB[-1 - last]) / rise_B, 0.0)
    concerned_B = share_B > LAST_RISE_LIMIT
    text = f"{_mean(share_B, concerned_B & case.open_B):.0%} of the rise came in the last {last} of {steps} steps"
    return _finding("still_rising", concerned_B, case.open_B, text)


def _stochastic(case: _Case, clean_B: Tensor) -> Finding | None:
    clean_gap_B = _spread([clean_B, *(case.loss_at(case.clean_BCHW) for _ in range(LOOKS - 1))])
    best_gap_B = _spread([case.loss_at(case.result.images_BCHW) for _ in range(LOOKS)])
    gap_B = torch.maximum(clean_gap_B, best_gap_B)
    concerned_B = (clean_gap_B > _slack(clean_B, case.tolerance)) | (
        best_gap_B > _slack(case.result.loss_B, case.tolerance)
    )
    gap = _mean(gap_B, concerned_B & case.whole_B)
    text = f"the loss of the same pixels differs by {gap:.3g} between {LOOKS} passes"
    return _finding("stochastic", concerned_B, case.whole_B, text)


def _spread(losses: Sequence[Tensor]) -> Tensor:
    losses_LB = torch.stack(list(losses))
    return losses_LB.amax(0) - losses_LB.amin(0)


def _best_of_noise(case: _Case, seeds: Sequence[int], points: int) -> Tensor:
    """Highest loss over random corners (L2: of the sphere): they move a loss further than inner points."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    losses = [torch.full_like(case.result.loss_B, -torch.inf)]
    for _ in range(points):
        signs = [torch.randint(0, 2, case.clean_BCHW.shape[1:], generator=generator) for generator in generators]
        noise_BCHW = ascent((2 * torch.stack(signs) - 1).to(case.clean_BCHW), case.norm) * (case.epsilon * PIXEL)
        point_BCHW = project(case.clean_BCHW + noise_BCHW, case.clean_BCHW, case.epsilon, case.norm)
        losses.append(case.loss_at(point_BCHW).nan_to_num(nan=-torch.inf).to(losses[0]))
    return torch.stack(losses).amax(0)


def _loss_of_other(case: _Case, name: str, other: Tensor) -> Tensor:
    if other.ndim == 1:
        check_loss(other, case.clean_BCHW)
        return other
    if other.shape != case.clean_BCHW.shape:
        raise ValueError(f"others: '{name}' is neither losses [B] nor images {list(case.clean_BCHW.shape)}")
    images_BCHW = other.to(case.clean_BCHW)
    delta_BCHW = images_BCHW - case.clean_BCHW
    length_B = delta_BCHW.abs().flatten(1).amax(1) if case.norm == "linf" else l2_norm(delta_BCHW)
    longest = float(length_B.max()) / PIXEL
    if not longest <= case.epsilon + BUDGET_SLACK:
        raise ValueError(f"others: '{name}' left the budget ({longest:.4g} > {case.epsilon:g}), so it proves nothing")
    return case.loss_at(images_BCHW)


def _higher(case: _Case, check: str, who: str, other_B: Tensor) -> Finding | None:
    """A finding if another attack reached a higher loss."""
    reached_B = case.result.loss_B
    gap_B = other_B.to(reached_B) - reached_B
    concerned_B = gap_B > _slack(reached_B, case.tolerance)
    gap = _mean(gap_B, concerned_B & case.open_B)
    text = f"{who} reached a higher loss than the attack, by {gap:.3g} on average"
    return _finding(check, concerned_B, case.open_B, text)


def _clean_mismatch(case: _Case, clean_B: Tensor, clean_loss: Tensor | None) -> Finding | None:
    gap_B = torch.zeros_like(clean_B) if clean_loss is None else (clean_loss.to(clean_B) - clean_B).abs()
    moved_B = torch.zeros_like(case.whole_B)
    if case.epsilon == 0:
        gap_B = torch.maximum(gap_B, (case.result.loss_B.to(clean_B) - clean_B).abs())
        moved_B = (case.result.images_BCHW != case.clean_BCHW).flatten(1).any(1)
    concerned_B = moved_B | (gap_B > _slack(clean_B, case.tolerance))
    gap, moved = _mean(gap_B, concerned_B & case.whole_B), int((moved_B & case.whole_B).sum())
    text = f"the loss of the clean images is off by {gap:.3g} on average; {moved} images moved without a budget"
    return _finding("clean_mismatch", concerned_B, case.whole_B, text)


def _does_not_predict(case: _Case, clean_B: Tensor) -> Finding | None:
    """Small steps uphill and downhill, at two lengths; a gradient that predicts at either is trusted.

    Central differences: a step uphill alone sees too little of a concave loss (a targeted one), and one downhill too
    little of a convex one. To see more than predicted is no fault: the loss of confident answers rises ever faster.
    """
    gradient_BCHW = loss_and_gradient(case.loss, case.clean_BCHW, case.index_B).gradient_BCHW
    direction_BCHW = ascent(gradient_BCHW, case.norm)
    longest = case.epsilon / 4 if case.norm == "l2" else min(PROBE, case.epsilon / 4)
    judged_B, predicts_B = torch.zeros_like(case.whole_B), torch.zeros_like(case.whole_B)
    seen_B = torch.full_like(clean_B, -torch.inf)
    for length in (longest * PIXEL, longest / 4 * PIXEL):
        above_BCHW = (case.clean_BCHW + length * direction_BCHW).clamp(0.0, 1.0)
        below_BCHW = (case.clean_BCHW - length * direction_BCHW).clamp(0.0, 1.0)
        predicted_B = (gradient_BCHW * (above_BCHW - below_BCHW)).flatten(1).sum(1).to(clean_B)
        change_B = case.loss_at(above_BCHW) - case.loss_at(below_BCHW)
        # What is predicted must stand out from rounding errors to be judged.
        large_B = predicted_B > 10 * _slack(clean_B, case.tolerance)
        judged_B = judged_B | large_B
        predicts_B = predicts_B | (large_B & (change_B >= PREDICTION_LEAST * predicted_B))
        seen_B = torch.where(large_B, torch.maximum(seen_B, change_B / predicted_B), seen_B)
    fails_B = judged_B & ~predicts_B
    seen = _mean(seen_B, fails_B & case.open_B)
    text = f"small steps along the gradient have {seen:.3g} of the effect that it predicts"
    return _finding("gradient_does_not_predict", fails_B, case.open_B, text)
