"""Square Attack (Andriushchenko et al. 2020), L-inf: a black-box attack that needs the loss alone.

It cannot be fooled by masked gradients: where it beats a white-box attack, that attack failed. After the paper's
algorithm 2, with the hyper-parameters of AutoAttack (``autoattack/square.py``: ``p_init`` 0.8, schedule scaled to the
number of queries). It differs from both codes in that squares reach the last row and column, as the paper has it; from
AutoAttack in that every sample draws its own squares, and in that the first point counts as a query.

Shapes: B batch, A samples still searched, C channel, H/W image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from rllava.attacks.common import PIXEL, Look, LossFunction, expand, project_to_radius
from rllava.attacks.noise import QueryResult, random_search
from rllava.attacks.stepper import ATTACKS, Entering, Lanes

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After which of 10,000 steps the share of pixels is halved."""


P_INIT = 0.8
"""Share of the pixels that the first squares cover."""


def square(
    loss: LossFunction,
    images_BCHW: Tensor,
    *,
    epsilon: float,
    queries: int,
    seeds: Sequence[int],
    p_init: float = P_INIT,
) -> QueryResult:
    """Maximises ``loss`` within an L-inf budget by trying squares, without gradients.

    The first point has vertical stripes of +-epsilon. Each further one gives a random square of the best point a random
    +-epsilon per channel. A point is kept if its loss is higher, or if it solves the sample, which then stops.

    Args:
        loss: maximised, never differentiated; see :data:`rllava.attacks.common.LossFunction`.
        images_BCHW: clean images, float32 or float64 in [0, 1].
        epsilon: L-inf budget in units of 1/255.
        queries: points per sample, one forward pass each, the stripes included.
        p_init: share of the pixels that the first squares cover.

    Returns:
        The best points; every one satisfies ``|x - clean| <= epsilon / 255`` and lies in [0, 1].

    Raises:
        ValueError: naming the argument, and the sample where one is at fault.
    """
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init: expected a share in (0, 1], got {p_init}")
    radius = epsilon * PIXEL

    def propose(query: int, generators: Sequence[Generator], clean_ACHW: Tensor, best_ACHW: Tensor) -> Tensor:
        channels, height, width = clean_ACHW.shape[1:]
        if query == 0:
            return clean_ACHW + radius * _signs(generators, (channels, 1, width)).to(clean_ACHW)
        side = square_side(query - 1, queries, p_init, height, width)
        inside_AHW = _squares(generators, side, height, width).to(clean_ACHW.device)
        filled_ACHW = clean_ACHW + radius * _signs(generators, (channels, 1, 1)).to(clean_ACHW)
        return torch.where(inside_AHW[:, None], filled_ACHW, best_ACHW)

    return random_search(loss, images_BCHW, propose, epsilon=epsilon, queries=queries, seeds=seeds)


def square_side(step: int, queries: int, p_init: float, height: int, width: int) -> int:
    """Side of the squares at a step, in pixels (the paper's schedule).

    Args:
        step: number of squares tried before.
        p_init: share of the pixels that the first squares cover.

    Returns:
        At least 1, at most the image's shorter side.
    """
    of_10000 = step * 10_000 // queries
    share = p_init / 2 ** sum(of_10000 > bound for bound in HALVINGS)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def _signs(generators: Sequence[Generator], shape: tuple[int, ...]) -> Tensor:
    """-1 or 1 per sample and entry, [A, *shape], on the CPU."""
    return torch.stack([torch.randint(0, 2, shape, generator=g) for g in generators]) * 2 - 1


def _squares(generators: Sequence[Generator], side: int, height: int, width: int) -> Tensor:
    """A uniformly random square per sample, true inside, [A, H, W], on the CPU."""
    top_A = torch.cat([torch.randint(0, height - side + 1, (1,), generator=g) for g in generators])
    left_A = torch.cat([torch.randint(0, width - side + 1, (1,), generator=g) for g in generators])
    row_AH = torch.arange(height) - top_A[:, None]
    column_AW = torch.arange(width) - left_A[:, None]
    inside_AH, inside_AW = (row_AH >= 0) & (row_AH < side), (column_AW >= 0) & (column_AW < side)
    return inside_AH[:, :, None] & inside_AW[:, None, :]


@dataclass
class SquareLanes(Lanes):
    """Square in flight: a step is a query, without gradients. The first one is the start point, the next the stripes.

    Attributes:
        steps_L: of each attack, by which squares shrink.
    """

    seed_L: Tensor
    steps_L: Tensor

    gradients: ClassVar[bool] = False

    @classmethod
    def enter(cls, entering: Entering) -> "SquareLanes":
        """See the base class."""
        assert entering.seeds is not None
        return cls(**entering.common(), seed_L=entering.whole(entering.seeds), steps_L=entering.whole(entering.steps))  # type: ignore[arg-type]

    def absorb(self, look: Look) -> None:
        """Keeps the best points."""
        self.note_loss(look)

    def move(self) -> None:
        """Another square on the best point; what is drawn follows from a lane's seed and step alone."""
        self.note_step(torch.zeros_like(self.radius_L))
        channels, height, width = self.clean_LCHW.shape[1:]
        moved = []
        each = (self.seed_L.tolist(), self.done_L.tolist(), self.steps_L.tolist())
        for row, (seed, done, steps) in enumerate(zip(*each, strict=True)):
            generator = [Generator().manual_seed((seed * 1_000_003 + done) % 2**63)]
            clean_CHW, radius = self.clean_LCHW[row], self.radius_L[row]
            if done == 0:
                moved.append(clean_CHW + radius * _signs(generator, (channels, 1, width))[0].to(clean_CHW))
                continue
            side = square_side(done - 1, steps, P_INIT, height, width)
            inside_HW = _squares(generator, side, height, width)[0].to(clean_CHW.device)
            filled_CHW = clean_CHW + radius * _signs(generator, (channels, 1, 1))[0].to(clean_CHW)
            moved.append(torch.where(inside_HW, filled_CHW, self.best_LCHW[row]))
        moved_LCHW = project_to_radius(torch.stack(moved), self.clean_LCHW, self.radius_L, self.norm)
        self.point_LCHW = torch.where(expand(self.failed_L), self.point_LCHW, moved_LCHW)


ATTACKS.register("square", SquareLanes)
