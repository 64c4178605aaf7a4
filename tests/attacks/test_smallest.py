"""Smallest budgets beside what is known of them: in closed form, by brute force, and sample by sample."""

import dataclasses
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rllava.attacks.common import PIXEL
from rllava.attacks.engine import Aim, Attacked, Engine
from rllava.attacks.outcome import GRID
from rllava.attacks.protocols import PROTOCOLS
from rllava.attacks.rounds import ANSWER, BEST, CLEAN, RANDOM, SAME, Round, reference, target
from rllava.attacks.smallest import Descent, SmallestBudgets, ladder, projected, warm
from tests.attacks.toy import CLASS_B, cross_entropy, judge, victims

BUDGETS = ladder(0.25, 16.0, 4)
ROUNDS = (
    Round("label0", 4, "float32", CLEAN, reference(0)),
    Round("label1", 5, "float32", CLEAN, reference(1), answers=(2,)),
    Round("from-best", 4, "float32", BEST, SAME),
    Round("random", 4, "float32", RANDOM, ANSWER),
    Round("target", 5, "float32", CLEAN, target("2")),
)


def search_of(attacked: Attacked, rounds: Sequence[Round] = ROUNDS, in_flight: int = 6, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "budgets": BUDGETS, "answer_loss": cross_entropy, "judge": judge, "dropped": lambda score: score <= 0,
    } | changes  # fmt: skip
    return SmallestBudgets(rounds, attacked, in_flight=in_flight, **arguments)


def with_floors(attacked: Attacked, below: float = 0.5) -> Attacked:
    return dataclasses.replace(attacked, floors=[below * score for score in attacked.scores])


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear victim: right while ``w x + b`` is above 0, so that exactly the budget margin / |w|_1 beats it."""

    weight_BCHW: Tensor
    margin_B: Tensor
    clean_BCHW: Tensor

    @classmethod
    def of(cls, budgets: Sequence[float], seed: int = 0) -> "Linear":
        generator = torch.Generator().manual_seed(seed)
        weight_BCHW = torch.randn(len(budgets), 3, 2, 2, generator=generator, dtype=torch.float32)
        norm_B = weight_BCHW.abs().flatten(1).sum(1)
        clean_BCHW = torch.full_like(weight_BCHW, 128 * PIXEL)  # so far from 0 and 1 that no budget meets them
        return cls(weight_BCHW, torch.tensor(budgets) * PIXEL * norm_B, clean_BCHW)

    def value(self, pixels_NCHW: Tensor, who: Sequence[int]) -> Tensor:
        delta_NCHW = pixels_NCHW - self.clean_BCHW[list(who)]
        return self.margin_B[list(who)] + (self.weight_BCHW[list(who)] * delta_NCHW).flatten(1).sum(1)

    def loss(self, pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
        return -self.value(pixels_NCHW, [aim.sample for aim in aims])

    def judge(self, images_NCHW: Tensor, who: Sequence[int], precision: str) -> tuple[list[str], list[float]]:
        right = [value > 0 for value in self.value(images_NCHW, who).tolist()]
        return ["right" if r else "wrong" for r in right], [100.0 * r for r in right]

    def attacked(self) -> Attacked:
        count = len(self.margin_B)
        return Attacked(self.clean_BCHW, [["right"]] * count, ["right"] * count, [100.0] * count, list(range(count)))


def test_a_ladder_halves_exactly_and_keeps_to_the_grid_of_scored_images() -> None:
    assert len(BUDGETS) == 25
    assert BUDGETS[::4] == (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    assert all((budget * GRID).is_integer() for budget in BUDGETS)
    assert all(1.15 < b / a < 1.22 for a, b in itertools.pairwise(BUDGETS))
    assert ladder(4.0, 4.0, 1) == (4.0,)
    assert ladder(0.001, 0.03, 8)[0] == 1 / GRID, "a budget of nothing"


@settings(max_examples=20)
@given(st.lists(st.floats(0.02, 24.0), min_size=1, max_size=6), st.integers(0, 1000))
def test_the_budget_of_a_linear_victim_is_its_margin_over_the_norm_of_its_weights(true: list[float], seed: int) -> None:
    victim = Linear.of(true, seed)
    rounds = (Round("climb", 3, "float32", CLEAN, reference(0)),)
    found = search_of(victim.attacked(), rounds, answer_loss=victim.loss, judge=victim.judge).run()
    for epsilon, search in zip(true, found, strict=True):
        # Budgets nearer to a rung than float32 resolves may fall on either side of it.
        rungs = {
            next((rung for rung, budget in enumerate(BUDGETS) if budget >= epsilon * (1 + slack)), None)
            for slack in (-1e-4, 1e-4)
        }
        assert search.rung in rungs, (epsilon, search.rung)
        assert search.stage == "done"
        assert (search.prediction, search.score) == (("right", 100.0) if search.rung is None else ("wrong", 0.0))


def brute_force(attacked: Attacked, budget: float) -> list[bool]:
    """Whom all rounds beat at one budget alone."""
    engine = Engine(
        ROUNDS, attacked, epsilon=budget, answer_loss=cross_entropy, judge=judge, dropped=lambda score: score <= 0,
        in_flight=6,
    )  # fmt: skip
    return [engine.is_dropped(b, outcome.score) for b, outcome in enumerate(engine.run())]


def test_no_sample_is_beaten_one_rung_below_by_all_rounds_alone_nor_above_its_true_budget() -> None:
    attacked = with_floors(victims())
    beaten_EB = [brute_force(attacked, budget) for budget in BUDGETS]
    found = search_of(attacked).run()
    assert len({search.rung for search in found}) >= 3, "the samples do not differ"
    for b, search in enumerate(found):
        smallest = next((rung for rung in range(len(BUDGETS)) if beaten_EB[rung][b]), None)
        if search.rung is None:
            assert not beaten_EB[-1][b]
            continue
        assert search.rung == 0 or not beaten_EB[search.rung - 1][b]
        assert smallest is None or search.rung <= smallest + 1, "warm starts found less than a list of all budgets"
        assert search.score < 0.5 * attacked.scores[b]
        delta = float((search.image_CHW - attacked.images_BCHW[b]).abs().max()) / PIXEL
        assert delta <= BUDGETS[search.rung] + 1e-3
        assert judge(search.image_CHW[None], [b], "float32")[1][0] == pytest.approx(search.score, abs=1e-3)


def assert_same(one: Descent, two: Descent) -> None:
    for name in ("rung", "stage", "rounds", "rungs", "steps", "forwards", "best_round", "prediction", "error"):
        assert getattr(one, name) == getattr(two, name), name
    assert torch.equal(one.image_CHW, two.image_CHW)


@pytest.mark.parametrize("in_flight", [1, 2, 6])
def test_a_search_does_not_depend_on_the_batch_or_on_the_other_samples(in_flight: int) -> None:
    attacked = with_floors(victims())
    whole = search_of(attacked).run()
    for one, two in zip(search_of(attacked, in_flight=in_flight).run(), whole, strict=True):
        assert (one.rung, one.rounds, one.rungs, one.steps) == (two.rung, two.rounds, two.rungs, two.steps)
        torch.testing.assert_close(one.image_CHW, two.image_CHW, rtol=0, atol=1e-5)
    alone = dataclasses.replace(
        attacked,
        **{name: getattr(attacked, name)[:2] for name in ("images_BCHW", "labels", "predictions", "scores", "seeds")},
        floors=attacked.floors[:2],  # type: ignore[index]
    )
    for one, two in zip(search_of(alone).run(), whole[:2], strict=True):
        assert (one.rung, one.rounds, one.steps) == (two.rung, two.rounds, two.steps)


class BrokenOffError(Exception):
    pass


def test_a_search_that_breaks_off_again_and_again_ends_with_the_same_bits() -> None:
    attacked = with_floors(victims())
    whole = search_of(attacked, in_flight=4)
    whole.run()
    kept: list[bytes] = []
    left = 0

    def save(state: Mapping[str, Any]) -> None:
        nonlocal left
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        kept[:] = [buffer.getvalue()]
        left -= 1
        if left == 0:
            raise BrokenOffError

    for start in range(60):
        search = search_of(attacked, in_flight=4)
        if kept:
            search.load_state_dict(torch.load(io.BytesIO(kept[0]), weights_only=True))
        left = 3 + start % 4
        try:
            search.run(save, every_s=0)
            break
        except BrokenOffError:
            continue
    else:
        pytest.fail("it never ended")
    assert start > 5, "it hardly broke off"
    for one, two in zip(search.searches, whole.searches, strict=True):
        assert_same(one, two)
    for one, two in zip(search.largest, whole.largest, strict=True):
        assert (one.rounds, one.score, one.steps) == (two.rounds, two.score, two.steps)


def test_who_is_wrong_from_the_start_or_never_beaten_costs_what_that_costs() -> None:
    victim = Linear.of([1.0, 300.0])
    rounds = (Round("climb", 3, "float32", CLEAN, reference(0)), Round("again", 4, "float32", BEST, ANSWER))
    attacked = dataclasses.replace(victim.attacked(), scores=[0.0, 100.0])
    wrong, robust = search_of(attacked, rounds, answer_loss=victim.loss, judge=victim.judge).run()
    assert (wrong.rounds, wrong.steps, wrong.stage, wrong.rung) == ([], 0, "done", None)
    assert (robust.rounds, robust.rungs, robust.steps, robust.rung) == (["climb", "again"], [24, 24], 7, None)


def test_a_projected_image_that_still_beats_costs_no_gradient_step() -> None:
    victim = Linear.of([0.1])
    rounds = (Round("climb", 3, "float32", CLEAN, reference(0)),)
    (found,) = search_of(victim.attacked(), rounds, answer_loss=victim.loss, judge=victim.judge).run()
    assert (found.rung, found.steps) == (0, 3)
    assert found.rounds == ["climb", *["climb-projected"] * 4]
    assert [BUDGETS[rung] for rung in found.rungs] == sorted((BUDGETS[rung] for rung in found.rungs), reverse=True)


def test_rounds_that_meet_no_number_prove_nothing() -> None:
    victim = Linear.of([3.0, 300.0])

    def loss(pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
        return victim.loss(pixels_NCHW, aims, precision) * torch.tensor([(1.0, torch.nan)[aim.sample] for aim in aims])

    rounds = (Round("climb", 3, "float32", CLEAN, reference(0)),)
    beaten, failed = search_of(victim.attacked(), rounds, answer_loss=loss, judge=victim.judge).run()
    assert (beaten.error, BUDGETS[beaten.rung]) == (None, pytest.approx(3.36, abs=0.01))
    assert failed.rung is None
    assert "not finite" in str(failed.error)


def test_cheap_rounds_are_for_every_round_of_every_protocol() -> None:
    for name in PROTOCOLS:
        for entry in PROTOCOLS.get(name).all_rounds:
            for cheap in (projected(entry), warm(entry)):
                assert cheap.kind == entry.kind
                assert cheap.judged
            assert projected(entry).steps == 0
            assert warm(entry).steps == math.ceil(entry.steps / 4)


def test_the_toy_samples_are_right_from_the_start() -> None:
    assert judge(victims().images_BCHW, range(6), "float32")[0] == [str(int(k)) for k in CLASS_B]
