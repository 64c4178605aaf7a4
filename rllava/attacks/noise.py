"""Random search within a budget, which needs no gradient; and its simplest form, uniform noise.

Noise is the floor of an evaluation: an attack that does no better than :func:`random_noise` with as many queries does
not work. :func:`rllava.attacks.square.square` is the other search.

Shapes: B batch, A samples still searched, C channel, H/W image, Q queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rllava.attacks.common import PIXEL, LossFunction, check_budget, check_finite, check_images, loss_only, project

Propose = Callable[[int, Sequence[Generator], Tensor, Tensor], Tensor]
"""``propose(query, generators, clean_ACHW, best_ACHW) -> points_ACHW``: what to try next, before projection. All chance
comes from the generators, one per sample."""


@dataclass(frozen=True)
class QueryResult:
    """What a search leaves.

    Attributes:
        images_BCHW: the best point of each sample, in [0, 1] and within the budget: the one that solved it, or else
            the one of highest loss. The clean image where already the first loss was not finite.
        loss_B: its loss, in the images' precision; NaN where already the first loss was not finite.
        loss_QB: loss of the best point after each query, [queries, B]. It never falls, but for a query that solves its
            sample at a lower loss; a sample that stopped keeps its last value.
        solved_B: samples that the loss called solved; they stopped there.
        failed_B: samples whose loss was not finite at some query; they stopped there, at their best point.
        queries_B: forward passes that each sample took part in.
    """

    images_BCHW: Tensor
    loss_B: Tensor
    loss_QB: Tensor
    solved_B: Tensor
    failed_B: Tensor
    queries_B: Tensor


def random_noise(
    loss: LossFunction, images_BCHW: Tensor, *, epsilon: float, draws: int, seeds: Sequence[int]
) -> QueryResult:
    """Best of some uniformly random points of the budget.

    Args:
        loss: maximised, never differentiated; see :data:`rllava.attacks.common.LossFunction`.
        images_BCHW: clean images, float32 or float64 in [0, 1].
        epsilon: L-inf budget in units of 1/255.
        draws: points per sample, one forward pass each.

    Returns:
        The best points; every one satisfies ``|x - clean| <= epsilon / 255`` and lies in [0, 1].

    Raises:
        ValueError: naming the argument, and the sample where one is at fault.
    """
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")

    def propose(query: int, generators: Sequence[Generator], clean_ACHW: Tensor, best_ACHW: Tensor) -> Tensor:
        noise = [torch.rand(clean_ACHW.shape[1:], generator=g, dtype=torch.float64) for g in generators]
        return clean_ACHW + (2 * torch.stack(noise) - 1).to(clean_ACHW) * (epsilon * PIXEL)

    return random_search(loss, images_BCHW, propose, epsilon=epsilon, queries=draws, seeds=seeds)


def random_search(
    loss: LossFunction, images_BCHW: Tensor, propose: Propose, *, epsilon: float, queries: int, seeds: Sequence[int]
) -> QueryResult:
    """Tries the proposed points and keeps the best one of each sample.

    Every sample has its own generator and decides for itself, so its points are the same alone and in any batch, up to
    two losses that are equal but for rounding. Those that are solved or have failed stop: the loss is then asked about
    the others alone, named by its ``index_B``.

    Args:
        loss: maximised, never differentiated; see :data:`rllava.attacks.common.LossFunction`.
        images_BCHW: clean images, float32 or float64 in [0, 1].
        propose: the kind of search; see :data:`Propose`.
        epsilon: L-inf budget in units of 1/255.
        queries: points per sample, one forward pass each.

    Raises:
        ValueError: naming the argument, and the sample where one is at fault.
    """
    check_images(images_BCHW)
    check_budget(epsilon, steps=1, step_size=1.0)
    if queries < 1:
        raise ValueError(f"queries: expected at least 1, got {queries}")
    count = images_BCHW.shape[0]
    if len(seeds) != count:
        raise ValueError(f"seeds: expected one per sample ({count}), got {len(seeds)}")
    generators = [Generator().manual_seed(seed) for seed in seeds]
    clean_BCHW = images_BCHW.detach()
    best_BCHW = clean_BCHW.clone()
    best_loss_B = torch.full((count,), float("-inf"), dtype=clean_BCHW.dtype, device=clean_BCHW.device)
    solved_B = torch.zeros(count, dtype=torch.bool, device=clean_BCHW.device)
    failed_B = torch.zeros_like(solved_B)
    queries_B = torch.zeros(count, dtype=torch.int64, device=clean_BCHW.device)
    losses: list[Tensor] = []
    for query in range(queries):
        index_A = (~(solved_B | failed_B)).nonzero()[:, 0]
        if len(index_A) == 0:
            break
        active = [generators[b] for b in index_A.tolist()]
        clean_ACHW, best_ACHW = clean_BCHW[index_A], best_BCHW[index_A]
        points_ACHW = project(propose(query, active, clean_ACHW, best_ACHW), clean_ACHW, epsilon)
        look = loss_only(loss, points_ACHW, index_A)
        if query == 0:
            check_finite(look.loss_B)
        loss_A, solved_A = look.loss_B.to(clean_BCHW.dtype), look.solved_B
        finite_A = loss_A.isfinite()
        better_A = finite_A & (solved_A | (loss_A > best_loss_B[index_A]))
        chosen_A = index_A[better_A]
        best_BCHW[chosen_A] = points_ACHW[better_A]
        best_loss_B[chosen_A] = loss_A[better_A]
        solved_B[index_A] = finite_A & solved_A
        failed_B[index_A] = ~finite_A
        queries_B[index_A] += 1
        losses.append(best_loss_B.clone())
    losses += [best_loss_B] * (queries - len(losses))
    loss_QB = torch.stack(losses)
    loss_QB = torch.where(loss_QB.isfinite(), loss_QB, float("nan"))
    return QueryResult(best_BCHW, loss_QB[-1], loss_QB, solved_B, failed_B, queries_B)
