"""The attack within adversarial fine-tuning: the published rule, step by step."""

import math

import pytest
import torch
from torch import Tensor

from rllava.attacks.inner import InnerPgd, inner_pgd, uniform_delta


def linear(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
    """Rises with all pixels but the first, with which it falls."""
    sign = torch.ones(pixels_BCHW[0].numel(), dtype=pixels_BCHW.dtype)
    sign[0] = -1
    return pixels_BCHW.flatten(1) @ sign


def test_the_first_look_is_at_the_start_as_it_is() -> None:
    seen: list[Tensor] = []

    def watched(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        seen.append(pixels_BCHW.detach())
        return linear(pixels_BCHW, index_B)

    clean_BCHW = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    delta_BCHW = torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1) / 255
    inner_pgd(watched, clean_BCHW, delta_BCHW, InnerPgd(4.0, steps=2))
    torch.testing.assert_close(seen[0], clean_BCHW + delta_BCHW, rtol=0, atol=0)
    assert float(seen[0].min()) < 0
    assert float(seen[0].max()) > 1
    assert float(seen[1].min()) >= 0  # later points are images
    assert float(seen[1].max()) <= 1


def test_a_turn_of_the_gradient_turns_the_step_at_once() -> None:
    """sign(0.9 v + sign(g)) has the sign of g wherever g is not 0, and keeps going where it is."""
    signs = iter([1.0, -1.0, 0.0, 0.0])

    def turning(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        return next(signs) * pixels_BCHW.flatten(1).sum(1)

    clean_BCHW = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    found = inner_pgd(turning, clean_BCHW, torch.zeros_like(clean_BCHW), InnerPgd(8.0, steps=4))
    assert float(found - clean_BCHW) * 255 == pytest.approx(1 - 1 - 1 - 1, abs=1e-9)


def test_the_last_point_is_returned_within_budget_and_range() -> None:
    clean_BCHW = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    delta_BCHW = uniform_delta(clean_BCHW, 2.0, range(3))
    found = inner_pgd(linear, clean_BCHW, delta_BCHW, InnerPgd(2.0, steps=5))
    sign = torch.ones_like(clean_BCHW).index_fill_(0, torch.tensor([], dtype=torch.long), 0)
    sign[:, 0, 0, 0] = -1
    torch.testing.assert_close(found, (clean_BCHW + sign * 2 / 255).clamp(0, 1), rtol=0, atol=1e-15)


def test_a_gradient_that_is_no_number_moves_nothing() -> None:
    def broken(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        factor = torch.ones_like(pixels_BCHW)
        factor[0] = math.nan
        return (factor * pixels_BCHW).flatten(1).sum(1)

    clean_BCHW = torch.full((2, 1, 2, 2), 0.5)
    found = inner_pgd(broken, clean_BCHW, torch.zeros_like(clean_BCHW), InnerPgd(4.0, steps=3))
    torch.testing.assert_close(found[0], clean_BCHW[0], rtol=0, atol=0)
    torch.testing.assert_close(found[1], clean_BCHW[1] + 3 / 255, rtol=0, atol=1e-6)


def test_starts_are_uniform_in_the_budget_and_a_samples_own() -> None:
    like_BCHW = torch.zeros(2, 3, 32, 32, dtype=torch.float64)
    both, alone = uniform_delta(like_BCHW, 4.0, (7, 8)), uniform_delta(like_BCHW[:1], 4.0, (8,))
    torch.testing.assert_close(both[1], alone[0], rtol=0, atol=0)
    assert float(both.abs().max()) <= 4 / 255
    # 6144 draws: the mean of |U(-4, 4)| is 2 within 5 standard errors.
    assert float(both.abs().mean()) * 255 == pytest.approx(2.0, abs=5 * 4 / math.sqrt(12 * 6144))
    assert uniform_delta(like_BCHW.float(), 4.0, (7, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"epsilon": -1.0}, "epsilon"), ({"steps": 0}, "steps"), ({"step_size": 0.0}, "1/255"), ({"momentum": 2}, "0 to")],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InnerPgd(**changes)  # type: ignore[arg-type]


def test_a_start_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="delta: expected shape"):
        inner_pgd(linear, torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4), InnerPgd())
    with pytest.raises(ValueError, match="one per sample"):
        uniform_delta(torch.zeros(2, 3, 4, 4), 4.0, (1,))
