"""One image against a corpus of target sentences (VisualAdv, Qi et al. 2023).

The attack draws some targets at each step and moves one image along the sign of their mean gradient. Hyper-parameters
and start points are those of its authors (``visual_attacker.py``), the code is our own. Published: 5000 steps, 8
targets per step, 1/255 per step, epsilon 16, 32, 64 or unconstrained.

Shapes: C channel, H/W image, N targets drawn in a step, M targets in all, S steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from rllava.attacks.common import PIXEL, NonFiniteLossError, check_budget, check_images, project

TargetLoss = Callable[[Tensor, Tensor], Tensor]
"""``loss(image_1CHW, index_N) -> loss_N``: the loss of each drawn target for the one image, maximised as everywhere in
this package. To make a model say the targets, give minus the cross-entropy of their tokens. The image comes once, so
that it is encoded once for all targets."""

Rate = Callable[[Tensor], float]
"""``rate(image_CHW) -> float``: how good an image is by another measure than the loss, e.g. by what a model answers;
the higher the better."""

UNCONSTRAINED = 255.0
"""Budget, in 1/255, within which every image lies, whatever the clean one."""


@dataclass(frozen=True)
class UniversalSettings:
    """How an image is found.

    Attributes:
        batch: targets drawn in a step, without replacement.
        step_size: in units of 1/255, as published; not of epsilon, since there may be none.
        momentum: share of the past gradients' direction in a step (Dong et al. 2018): the mean gradient, divided by its
            mean absolute entry, is added to that share of what was gathered before; the step takes the sign of the sum.
        rate_every: steps between two images that are rated, where there is a way to rate them.
    """

    steps: int = 5000
    batch: int = 8
    step_size: float = 1.0
    momentum: float = 0.0
    rate_every: int = 100

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise ValueError(f"step_size: expected a positive number (units of 1/255), got {self.step_size}")
        if self.batch < 1 or self.rate_every < 1:
            raise ValueError(f"batch and rate_every: expected at least 1, got {self.batch} and {self.rate_every}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum: expected a number from 0 to 1, got {self.momentum}")


@dataclass(frozen=True)
class UniversalResult:
    """What the attack leaves.

    Attributes:
        image_CHW: in [0, 1] and within the budget: the image rated best, of equal ones the latest; the last one if none
            was rated. Not the one of highest loss: the losses of two steps are over different targets.
        step: after how many steps that image was.
        rating: of it; None if none was rated.
        loss_S: mean loss of the targets drawn at each step, before the step is taken.
        zero_gradient_S: share of exactly zero entries of each gradient.
        failed: whether loss or gradient was not finite; the attack stopped there, without the step. The histories end
            with that step.
    """

    image_CHW: Tensor
    step: int
    rating: float | None
    loss_S: Tensor
    zero_gradient_S: Tensor
    failed: bool


class UniversalAttack:
    """Maximises the mean loss of all targets over one image, step by step; can be kept and gone on with.

    Args:
        loss: see :data:`TargetLoss`.
        image_CHW: clean image, float32 or float64 in [0, 1]. Unconstrained, only its shape, type and device count.
        weights: of the targets in the mean of a step, e.g. their numbers of tokens, as the published code has it; equal
            ones let every target weigh the same.
        epsilon: L-inf budget in units of 1/255, starting at uniform noise within it around the image;
            :data:`UNCONSTRAINED`: starting at an image of uniform noise.
        seed: of the start and of the draws.

    Raises:
        ValueError: naming the argument at fault.
    """

    def __init__(
        self, loss: TargetLoss, image_CHW: Tensor, weights: Sequence[float], settings: UniversalSettings, *,
        epsilon: float, seed: int, rate: Rate | None = None,
    ) -> None:  # fmt: skip
        check_images(image_CHW[None])
        check_budget(epsilon, settings.steps, step_size=1.0)
        if settings.batch > len(weights):
            raise ValueError(f"batch: expected 1 to {len(weights)} of the {len(weights)} targets, got {settings.batch}")
        if not all(weight > 0 for weight in weights):
            raise ValueError(f"weights: expected positive numbers, got {min(weights):g} for one of the targets")
        self.settings, self.epsilon = settings, epsilon
        self._loss, self._rate = loss, rate
        self._clean_1CHW = image_CHW.detach()[None]
        self._weight_M = torch.tensor(list(weights)).to(self._clean_1CHW)
        self._generator = Generator().manual_seed(seed)
        noise_1CHW = torch.rand(self._clean_1CHW.shape, generator=self._generator, dtype=torch.float64)
        noise_1CHW = noise_1CHW.to(self._clean_1CHW)
        self._point_1CHW = noise_1CHW
        if epsilon < UNCONSTRAINED:
            within_1CHW = self._clean_1CHW + (2 * noise_1CHW - 1) * (epsilon * PIXEL)
            self._point_1CHW = project(within_1CHW, self._clean_1CHW, epsilon)
        self._velocity_1CHW = torch.zeros_like(self._clean_1CHW)
        self._losses: list[Tensor] = []
        self._zeros: list[Tensor] = []
        self._failed = False
        self._best: tuple[float, int, Tensor] | None = None

    @property
    def taken(self) -> int:
        """Steps so far."""
        return len(self._losses) - self._failed

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self._failed or self.taken >= self.settings.steps

    @property
    def last_loss(self) -> float:
        """Mean loss at the last step; NaN before the first."""
        return float(self._losses[-1]) if self._losses else float("nan")

    def step(self) -> None:
        """Takes one step, and rates the image it leads to where it is time.

        Raises:
            NonFiniteLossError: if the loss is not finite at the start image.
        """
        count = len(self._weight_M)
        index_N = torch.randperm(count, generator=self._generator)[: self.settings.batch].to(self._clean_1CHW.device)
        mean, gradient_1CHW = mean_and_gradient(self._loss, self._point_1CHW, index_N, self._weight_M[index_N])
        if not self._losses and not bool(mean.isfinite()):
            raise NonFiniteLossError(
                f"loss: its mean over targets {index_N.tolist()} is not finite at the start image ({mean.item():g}); "
                "look for the first operation of the model that overflows, or attack it in float32"
            )
        self._losses.append(mean)
        self._zeros.append((gradient_1CHW == 0).to(gradient_1CHW.dtype).mean())
        self._failed = not bool(mean.isfinite() & gradient_1CHW.isfinite().all())
        if self._failed:
            return
        if self.settings.momentum:
            size = gradient_1CHW.abs().mean().clamp(min=1e-30)  # a gradient of zeros adds nothing
            self._velocity_1CHW = self.settings.momentum * self._velocity_1CHW + gradient_1CHW / size
            gradient_1CHW = self._velocity_1CHW
        moved_1CHW = self._point_1CHW + self.settings.step_size * PIXEL * gradient_1CHW.sign()
        self._point_1CHW = project(moved_1CHW, self._clean_1CHW, self.epsilon)
        if self._rate is not None and (self.taken % self.settings.rate_every == 0 or self.done):
            rating = self._rate(self._point_1CHW[0])
            if self._best is None or rating >= self._best[0]:
                self._best = (rating, self.taken, self._point_1CHW[0])

    def result(self) -> UniversalResult:
        """The image so far."""
        rating, step, image_CHW = self._best or (None, self.taken, self._point_1CHW[0])
        empty_0 = self._clean_1CHW.new_zeros(0)
        losses = torch.stack(self._losses) if self._losses else empty_0
        zeros = torch.stack(self._zeros) if self._zeros else empty_0
        return UniversalResult(image_CHW, step, rating, losses, zeros, self._failed)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, on the CPU."""
        so_far = self.result()
        state = {
            "point": self._point_1CHW,
            "velocity": self._velocity_1CHW,
            "losses": so_far.loss_S,
            "zeros": so_far.zero_gradient_S,
            "generator": self._generator.get_state(),
            **({} if self._best is None else {"best": so_far.image_CHW}),
        }
        best = None if self._best is None else self._best[:2]
        return {name: value.cpu() for name, value in state.items()} | {"failed": self._failed, "rated": best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where another attack with the same arguments was kept."""
        self._point_1CHW = state["point"].to(self._clean_1CHW)
        self._velocity_1CHW = state["velocity"].to(self._clean_1CHW)
        self._losses = list(state["losses"].to(self._clean_1CHW.device))
        self._zeros = list(state["zeros"].to(self._clean_1CHW.device))
        self._generator.set_state(state["generator"])
        self._failed = state["failed"]
        self._best = None
        if state["rated"] is not None:
            self._best = (*state["rated"], state["best"].to(self._clean_1CHW))


def universal(
    loss: TargetLoss, image_CHW: Tensor, weights: Sequence[float], settings: UniversalSettings, *, epsilon: float,
    seed: int, rate: Rate | None = None,
) -> UniversalResult:  # fmt: skip
    """Runs a :class:`UniversalAttack` to its end.

    Raises:
        ValueError: naming the argument at fault.
        NonFiniteLossError: if the loss is not finite at the start image.
    """
    attack = UniversalAttack(loss, image_CHW, weights, settings, epsilon=epsilon, seed=seed, rate=rate)
    while not attack.done:
        attack.step()
    return attack.result()


def mean_and_gradient(loss: TargetLoss, image_1CHW: Tensor, index_N: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean loss of the drawn targets and its gradient; no gradient reaches anything but the image.

    Returns:
        The mean, a scalar, and gradient_1CHW.
    """
    leaf_1CHW = image_1CHW.detach().requires_grad_(True)
    with torch.enable_grad():
        loss_N = loss(leaf_1CHW, index_N)
        if loss_N.shape != index_N.shape:
            raise ValueError(
                f"loss: expected one value per target, shape {list(index_N.shape)}, got {list(loss_N.shape)}"
            )
        mean = (loss_N * weight_N).sum() / weight_N.sum()
    if not mean.requires_grad:
        raise ValueError("loss: its value does not depend on the image through autograd (a no_grad in the model?)")
    (gradient_1CHW,) = torch.autograd.grad(mean, leaf_1CHW)
    return mean.detach(), gradient_1CHW
