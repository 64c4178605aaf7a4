"""Steppers: attacks in flight, step by step; the registry of them.

An attack is a class of :class:`Lanes`. A lane's life: :meth:`Lanes.enter` at a start point; then each look at its point
is taken in by :meth:`Lanes.absorb` and followed by :meth:`Lanes.move` to the next point, until as many steps are done
as its round has, and one look more is taken in. What it shows in the end are its history and its best point.

Shapes: L lanes, C channel, H/W image, S steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from rllava.attacks.common import PIXEL, Look, Norm, expand
from rllava.registry import Registry

LanesT = TypeVar("LanesT", bound="Lanes")


@dataclass(frozen=True)
class Entering:
    """Attacks that begin.

    Attributes:
        point_LCHW: start points within the budgets.
        epsilon: budgets in 1/255.
        step_size: first step sizes, in units of epsilon.
        seeds: of whatever an attack draws.
        columns: steps that histories hold; the longest attack's if None.
    """

    clean_LCHW: Tensor
    point_LCHW: Tensor
    epsilon: Sequence[float]
    steps: Sequence[int]
    step_size: Sequence[float]
    seeds: Sequence[int] | None = None
    columns: int | None = None
    norm: Norm = "linf"

    def whole(self, values: Sequence[int]) -> Tensor:
        """Whole numbers per lane, beside the images."""
        return torch.tensor(values, dtype=torch.int64, device=self.clean_LCHW.device)

    def numbers(self, values: Sequence[float]) -> Tensor:
        """Numbers per lane in the images' precision, beside them."""
        return torch.tensor(values, dtype=self.clean_LCHW.dtype, device=self.clean_LCHW.device)

    def flags(self, value: bool) -> Tensor:
        """The same truth for every lane."""
        return torch.full((len(self.steps),), value, device=self.clean_LCHW.device)

    def common(self) -> dict[str, Tensor | Norm]:
        """The fields of :class:`Lanes` before the first look."""
        longest = max(self.steps) if self.columns is None else self.columns
        history_LS = self.clean_LCHW.new_zeros(len(self.steps), longest)
        return {
            "norm": self.norm,
            "clean_LCHW": self.clean_LCHW.clone(),
            "radius_L": self.numbers([value * PIXEL for value in self.epsilon]),
            "done_L": self.whole([-1] * len(self.steps)),
            "point_LCHW": self.point_LCHW.clone(),
            "best_LCHW": self.point_LCHW.clone(),
            "best_loss_L": self.numbers([-torch.inf] * len(self.steps)),
            "step_size_L": self.numbers([s * e * PIXEL for s, e in zip(self.step_size, self.epsilon, strict=True)]),
            "failed_L": self.flags(False),
            "loss_LS": self.clean_LCHW.new_zeros(len(self.steps), longest + 1),
            "step_size_LS": history_LS,
            "zero_gradient_LS": history_LS.clone(),
        }


@dataclass
class Lanes(ABC):
    """Attacks in flight; every tensor has the lane as its first dimension, and no lane reads another's row.

    A lane has its own budget and number of steps, and may be at another step than its neighbours.

    Attributes:
        radius_L: budgets in pixel units.
        done_L: steps taken; -1 before the first look.
        point_LCHW: where the lane stands: what is looked at next.
        step_size_L: in pixel units.
        failed_L: whether a loss or gradient was not finite; the lane stands still from then on.
        loss_LS: loss of the point at each step, column 0 the start; as many columns as the longest attack needs.
        step_size_LS: step size taken at each step.
        zero_gradient_LS: share of exactly zero entries of each gradient used.
    """

    norm: Norm
    clean_LCHW: Tensor
    radius_L: Tensor
    done_L: Tensor
    point_LCHW: Tensor
    best_LCHW: Tensor
    best_loss_L: Tensor
    step_size_L: Tensor
    failed_L: Tensor
    loss_LS: Tensor
    step_size_LS: Tensor
    zero_gradient_LS: Tensor

    gradients: ClassVar[bool] = True
    """Whether it needs a gradient at its points."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    """Of the budgets that it can keep."""

    def __len__(self) -> int:
        return self.clean_LCHW.shape[0]

    @classmethod
    @abstractmethod
    def enter(cls: type[LanesT], entering: Entering) -> LanesT:
        """Lanes that stand at their start points and have seen nothing."""

    @abstractmethod
    def absorb(self, look: Look) -> None:
        """Takes in what the points show; zeros stand for a gradient that was not asked for."""

    @abstractmethod
    def move(self) -> None:
        """On to the next points; failed lanes stay where they are, those that are done must not be moved."""

    def tensors(self) -> dict[str, Tensor]:
        """All state that changes, by name."""
        named = ((field.name, self.__dict__[field.name]) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    def rows(self: LanesT, rows: Sequence[int]) -> LanesT:
        """Some of the lanes in a new order, copied."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.clean_LCHW.device)
        return self.with_tensors({name: value[index] for name, value in self.tensors().items()})

    def join(self: LanesT, others: LanesT) -> LanesT:
        """These lanes and then others with the same columns of history."""
        theirs = others.tensors()
        return self.with_tensors({name: torch.cat([value, theirs[name]]) for name, value in self.tensors().items()})

    def with_tensors(self: LanesT, tensors: Mapping[str, Tensor]) -> LanesT:
        """The same with another state."""
        return type(self)(norm=self.norm, **tensors)

    def note_loss(self, look: Look) -> tuple[Tensor, Tensor]:
        """Counts a look, notes its loss, keeps the best point, and finds out who failed.

        Returns:
            The loss, and whose point is the best one now. A start point whose loss is not finite is the best there is.
        """
        loss_L = look.loss_B.to(self.best_loss_L.dtype)
        first_L = self.done_L < 0
        self.failed_L = self.failed_L | ~(loss_L.isfinite() & look.gradient_BCHW.flatten(1).isfinite().all(1))
        better_L = torch.where(first_L, True, (loss_L > self.best_loss_L) & ~self.failed_L)
        self.best_LCHW = torch.where(expand(better_L), self.point_LCHW, self.best_LCHW)
        self.best_loss_L = torch.where(better_L, loss_L, self.best_loss_L)
        self.done_L = self.done_L + 1
        self.loss_LS.scatter_(1, self.done_L[:, None], loss_L[:, None])
        return loss_L, better_L

    def note_step(self, zero_L: Tensor) -> None:
        """Notes the step that is about to be taken, and the share of zero entries of its gradient."""
        self.zero_gradient_LS.scatter_(1, self.done_L[:, None], zero_L.to(self.zero_gradient_LS.dtype)[:, None])
        self.step_size_LS.scatter_(1, self.done_L[:, None], self.step_size_L[:, None])


ATTACKS: Registry[type[Lanes]] = Registry("attack", "rllava.attacks", folder="rllava.attacks")
