"""Attacks as steppers of the engine: each is what it is as a function, alone and beside others, in either norm."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rllava.attacks import apgd, pgd
from rllava.attacks.common import PIXEL, l2_norm
from rllava.attacks.engine import Aim, Engine
from rllava.attacks.losses import token_distance
from rllava.attacks.outcome import Outcome, snap
from rllava.attacks.protocols import PROTOCOLS
from rllava.attacks.rounds import ANSWER, BEST, CLEAN, RANDOM, TOKENS, Round, reference
from rllava.attacks.stepper import ATTACKS
from rllava.conditions.attack import within
from rllava.data.benchmarks import BENCHMARKS
from rllava.evaluation.victim import Victim
from tests.attacks.toy import CLASS_B, COUNT, IMAGES_BCHW, MODEL, cross_entropy, judge, victims
from tests.evaluation.test_shard import answered_by_itself, decode_shard, evaluate, make, shard

INDEX_B = torch.arange(COUNT)


def run(*rounds: Round, in_flight: int = COUNT, epsilon: float = 8.0, **changes: object) -> list[Outcome]:
    arguments = {"answer_loss": cross_entropy, "judge": judge, "dropped": lambda score: False} | changes
    return Engine(rounds, victims(), epsilon=epsilon, in_flight=in_flight, **arguments).run()  # type: ignore[arg-type]


def losses(outcomes: Sequence[Outcome]) -> Tensor:
    """[B, steps + 1]"""
    return torch.stack([outcome.evidence.loss_S for outcome in outcomes if outcome.evidence is not None])


def of_label(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(MODEL(pixels_BCHW), CLASS_B[index_B], reduction="none")


def test_the_registry_has_what_the_package_has() -> None:
    assert set(ATTACKS) >= {"apgd", "pgd", "square"}


def test_pgd_in_the_engine_is_pgd() -> None:
    found = run(Round("pgd", 5, "float32", RANDOM, reference(0), step_size=0.25, attack="pgd"))
    seeds = [victims().seeds[b] * 1_000_003 for b in range(COUNT)]
    last_BCHW = pgd(of_label, IMAGES_BCHW, epsilon=8, steps=5, step_size=0.25, momentum=0.9, seeds=seeds)
    torch.testing.assert_close(losses(found)[:, -1], of_label(last_BCHW, INDEX_B).detach())


def test_a_step_size_may_be_absolute() -> None:
    relative = Round("pgd", 5, "float32", CLEAN, reference(0), step_size=0.25, attack="pgd")
    absolute = dataclasses.replace(relative, step_size=2.0, absolute=True)
    assert torch.equal(losses(run(relative)), losses(run(absolute)))
    assert not torch.equal(losses(run(relative, epsilon=4.0)), losses(run(absolute, epsilon=4.0)))


def test_square_needs_no_gradient_and_finds_more_than_stripes() -> None:
    def without_gradient(pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
        assert not pixels_NCHW.requires_grad
        return cross_entropy(pixels_NCHW, aims, precision)

    found = run(Round("square", 60, "float32", CLEAN, reference(0), attack="square"), answer_loss=without_gradient)
    loss_BS = losses(found)
    assert int((loss_BS.amax(1) > loss_BS[:, 1] + 1e-2).sum()) == 3, "of the others the loss is 0 but for rounding"
    assert all(outcome.zero_gradient_share == 0 for outcome in found)
    more = run(Round("square", 60, "float32", CLEAN, reference(0), attack="square"), in_flight=2)
    torch.testing.assert_close(losses(more), loss_BS)


def test_apgd_in_l2_is_apgd_in_l2_and_keeps_its_budget() -> None:
    epsilon = 200.0
    found = run(Round("l2", 6, "float32", CLEAN, reference(0)), epsilon=epsilon, norm="l2")
    expected = apgd(of_label, IMAGES_BCHW, epsilon=epsilon, steps=6, norm="l2")
    torch.testing.assert_close(losses(found), expected.history.loss_SB.T)
    images_BCHW = torch.stack([outcome.image_CHW for outcome in found])
    norm_B = l2_norm(images_BCHW - IMAGES_BCHW) / PIXEL
    assert float(norm_B.max()) <= epsilon
    assert float(norm_B.max()) > 0.9 * epsilon
    assert float((images_BCHW - IMAGES_BCHW).abs().max()) / PIXEL > 8, "it is no L-inf attack in disguise"
    grid_BCHW = images_BCHW / PIXEL * 128
    torch.testing.assert_close(grid_BCHW, grid_BCHW.round(), rtol=0, atol=1e-2)
    assert torch.equal(snap(IMAGES_BCHW, IMAGES_BCHW, epsilon, "l2"), IMAGES_BCHW)


def test_who_keeps_no_such_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="round square: attack square keeps no l2 budget"):
        run(Round("square", 2, "float32", CLEAN, reference(0), attack="square"), norm="l2")


def test_samples_go_on_from_one_attack_to_another() -> None:
    rounds = (
        Round("square", 6, "float32", CLEAN, ANSWER, attack="square"),
        Round("apgd", 4, "float32", BEST, ANSWER),
        Round("pgd", 4, "float32", BEST, ANSWER, attack="pgd"),
    )
    together, few = run(*rounds), run(*rounds, in_flight=2)
    for one, two in zip(together, few, strict=True):
        assert one.rounds == ["square", "apgd", "pgd"]
        assert (one.steps, one.best_round) == (two.steps, two.best_round)
        torch.testing.assert_close(one.image_CHW, two.image_CHW)


def test_tokens_are_driven_away_without_a_pass_of_the_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 4), 64))
    victim = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    passes: list[int] = []
    monkeypatch.setattr(victim, "loss", lambda *arguments: passes.append(1))
    rounds = (Round("tokens", 8, "float32", RANDOM, TOKENS, attack="pgd", absolute=True),)
    protocol = dataclasses.replace(PROTOCOLS.get("veattack"), rounds_by_kind=(("short_answer", rounds),))
    (rows,) = evaluate("easy_vqa", samples, (8.0,), protocol=protocol, worker=victim)
    assert passes == []
    attacked = [row for row in rows if row["rounds"]]
    assert len(attacked) >= 3
    for row in attacked:
        assert row["loss_best"] > row["loss_clean"] >= 0, "the start is random, so its tokens are not the clean ones"
        assert row["linf"] <= 8
        # The checks look at the loss that was attacked, and say that eight steps of 1/255 are few.
        assert set(row["findings"] or ()) <= {"more_steps_weaker", "still_rising"}
    assert within(protocol, 8.0).label == "veattack-v1"
    assert BENCHMARKS.get("easy_vqa").task.kind in PROTOCOLS.get("veattack").kinds


def test_distance_of_tokens() -> None:
    tokens_BPD = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]])
    other_BPD = torch.tensor([[[3.0, 0.0], [0.0, 5.0]], [[0.0, 1.0], [0.0, -1.0]]])
    torch.testing.assert_close(token_distance(tokens_BPD, other_BPD), torch.tensor([0.0, 1.5]))
