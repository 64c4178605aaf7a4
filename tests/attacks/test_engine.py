"""The engine: rules between rounds, in_flight that are refilled, saved states, memory that runs out."""

import dataclasses
import functools
import io
import itertools
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rllava.attacks import apgd
from rllava.attacks.common import PIXEL
from rllava.attacks.engine import Aim, Attacked, Engine
from rllava.attacks.memory import Batches, samples_that_fit
from rllava.attacks.outcome import Outcome, attack_result, pack_images, round_to_8_bits, snap, unpack_images
from rllava.attacks.rounds import (
    ANSWER,
    BEST,
    CLEAN,
    PREVIOUS,
    RANDOM,
    SAME,
    Label,
    Round,
    Start,
    decoy,
    other,
    reference,
    target,
)
from tests.attacks.toy import CLASS_B, COUNT, IMAGES_BCHW, cross_entropy, judge, victims
from tests.fixtures.processes import wait_for

ROUNDS = (
    Round("label0", 4, "float32", CLEAN, reference(0)),
    Round("label1", 7, "float32", CLEAN, reference(1)),
    Round("from-best", 4, "float32", BEST, SAME),
    Round("target", 5, "float32", CLEAN, target("2")),
)


def engine(
    rounds: Sequence[Round] = ROUNDS, in_flight: int = COUNT, floor: float = 5.0, epsilon: float = 8.0, **changes: Any
) -> Engine:
    arguments: dict[str, Any] = {
        "victims": victims(), "answer_loss": cross_entropy, "judge": judge, "dropped": lambda score: score <= floor,
    } | changes  # fmt: skip
    return Engine(rounds, arguments.pop("victims"), epsilon=epsilon, in_flight=in_flight, **arguments)


def assert_equal(mine: Sequence[Outcome], theirs: Sequence[Outcome], atol: float = 0.0) -> None:
    for one, two in zip(mine, theirs, strict=True):
        assert (one.prediction, one.best_round, one.rounds, one.steps) == (
            two.prediction, two.best_round, two.rounds, two.steps,
        )  # fmt: skip
        assert one.score == pytest.approx(two.score, abs=1e3 * atol, rel=0)
        torch.testing.assert_close(one.image_CHW, two.image_CHW, rtol=0, atol=atol)
        if one.evidence is not None:
            assert two.evidence is not None
            torch.testing.assert_close(one.evidence.loss_S, two.evidence.loss_S, rtol=0, atol=atol)


class Bench:
    """A judge whose scores are given per round, and a note of what was attacked."""

    def __init__(self, scores: dict[str, list[float]]) -> None:
        self.scores = scores
        self.judged: list[list[int]] = []
        self.aims: list[list[Aim]] = []
        self.starts: dict[tuple[int, str], Tensor] = {}

    def loss(self, pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
        self.aims.append(list(aims))
        for pixels_CHW, aim in zip(pixels_NCHW.detach(), aims, strict=True):
            self.starts.setdefault((len(self.judged), f"{aim.sample}:{aim.text}"), pixels_CHW.clone())
        sign_N = torch.tensor([-1.0 if aim.text.endswith("1") else 1.0 for aim in aims])
        return sign_N * pixels_NCHW.flatten(1).sum(1)

    def judge(self, images_NCHW: Tensor, who: Sequence[int], precision: str) -> tuple[list[str], list[float]]:
        self.judged.append(list(who))
        text = f"round{len(self.judged)}"
        return [f"{text}!{b}" for b in who], [self.scores[text][b] for b in who]


CLEAN_BCHW = torch.full((3, 3, 4, 4), 0.5)
MAYBE = Round("target", 4, "float32", CLEAN, target("maybe"))
STEPS4 = tuple(dataclasses.replace(entry, steps=4) for entry in (*ROUNDS[:3], MAYBE))


def run(bench: Bench, scores: list[float], labels: list[list[str]]) -> list[Outcome]:
    attacked = Attacked(CLEAN_BCHW, labels, [f"clean{b}" for b in range(3)], scores, seeds=[0, 1, 2])
    return engine(
        STEPS4, 3, 0.0, victims=attacked, answer_loss=bench.loss, judge=bench.judge
    ).run()  # fmt: skip


def test_a_sample_without_labels_takes_only_the_rounds_that_bring_their_text() -> None:
    bench = Bench({f"round{n}": [60, 60, 60] for n in range(1, 6)})
    rounds = (*STEPS4, dataclasses.replace(ROUNDS[0], name="answer", label=ANSWER))
    attacked = Attacked(CLEAN_BCHW, [[], ["b"], []], ["said", "said", ""], [100.0] * 3, seeds=[0, 1, 2])
    # The answers it gives are not empty: after one, sample 2 has a text to be driven from.
    outcomes = engine(rounds, 3, 0.0, victims=attacked, answer_loss=bench.loss, judge=bench.judge).run()
    assert [outcome.rounds for outcome in outcomes] == [
        ["target", "answer"],
        ["label0", "from-best", "target", "answer"],
        ["target", "answer"],
    ]
    silent = Attacked(CLEAN_BCHW[:1], [[]], [""], [100.0], seeds=[0])
    (outcome,) = engine(rounds[-1:], 1, 0.0, victims=silent, answer_loss=bench.loss, judge=bench.judge).run()
    assert outcome.rounds == []


def test_rounds_lower_scores_only_and_drop_what_reached_the_floor() -> None:
    bench = Bench({"round1": [60, 0, 90], "round2": [80, 9, 70], "round3": [50, 9, 99], "round4": [55, 9, 70]})
    outcomes = run(bench, [100.0, 100.0, 100.0], [["a0", "a1"], ["b0", "b1"], ["c0", "c1"]])
    assert [outcome.score for outcome in outcomes] == [50, 0, 70]
    assert [outcome.best_round for outcome in outcomes] == ["from-best", "label0", "label1"]
    assert [outcome.rounds for outcome in outcomes] == [
        ["label0", "label1", "from-best", "target"],
        ["label0"],
        ["label0", "label1", "from-best", "target"],
    ]
    assert [outcome.round_scores for outcome in outcomes] == [[60, 80, 50, 55], [0], [90, 70, 99, 70]]
    assert outcomes[2].round_predictions == ["round1!2", "round2!2", "round3!2", "round4!2"]
    assert [outcome.steps for outcome in outcomes] == [16, 4, 16]
    assert [outcome.forwards for outcome in outcomes] == [20, 5, 20]
    # Round 3 attacks the label that gave the worst score: label 0 of sample 0, label 1 of sample 2.
    assert bench.judged == [[0, 1, 2], [0, 2], [0, 2], [0, 2]]
    assert set(bench.aims[10]) == {Aim(0, "a0"), Aim(2, "c1")}
    assert not torch.equal(bench.starts[2, "0:a0"], CLEAN_BCHW[0]), "the round from the best image started clean"
    assert torch.equal(bench.starts[3, "0:maybe"], CLEAN_BCHW[0])
    assert outcomes[1].prediction == "round1!1"


def test_clean_failures_are_not_attacked_and_missing_labels_skip_a_round() -> None:
    bench = Bench({f"round{k}": [10.0, 10.0, 10.0] for k in range(1, 9)})
    outcomes = run(bench, [0.0, 50.0, 5.0], [["a0"], ["b0"], ["c0", "c1"]])
    assert (outcomes[0].rounds, outcomes[0].prediction, outcomes[0].zero_gradient_share) == ([], "clean0", None)
    assert outcomes[1].rounds == ["label0", "from-best", "target"]
    # No round helped sample 2: its last round started from the clean image with its first label.
    assert (outcomes[2].score, outcomes[2].best_round) == (5.0, "clean")
    assert torch.equal(outcomes[2].image_CHW, CLEAN_BCHW[2])


def test_one_round_is_apgd() -> None:
    (outcome_of, expected) = (
        engine(ROUNDS[1:2], victims=victims(labels=[["0", str(int(k))] for k in CLASS_B])).run(),
        apgd(lambda x, i: cross_entropy(x, [Aim(b, str(int(CLASS_B[b]))) for b in i.tolist()], ""), IMAGES_BCHW,
             epsilon=8.0, steps=7),
    )  # fmt: skip
    result = attack_result([outcome.evidence for outcome in outcome_of if outcome.evidence is not None])
    for mine, theirs in (
        (result.history.loss_SB, expected.history.loss_SB),
        (result.images_BCHW, expected.images_BCHW),
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    torch.testing.assert_close(result.loss_B, expected.loss_B, rtol=0, atol=0)


@pytest.mark.parametrize("in_flight", [1, 2, 4])
def test_who_is_done_is_replaced_at_once_and_changes_no_result(in_flight: int) -> None:
    seen: list[list[int]] = []

    def noting(pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
        seen.append([aim.sample for aim in aims])
        return cross_entropy(pixels_NCHW, aims, precision)

    few = engine(in_flight=in_flight, answer_loss=noting).run()
    assert_equal(few, engine().run(), atol=1e-4)
    attacked = [outcome for outcome in few if outcome.steps]
    assert sum(map(len, seen)) == sum(outcome.forwards for outcome in attacked)
    assert len({outcome.steps for outcome in few}) > 1, "all samples took the same rounds: nothing was refilled early"
    together = [set(samples) for samples in seen]
    assert max(map(len, together)) <= in_flight
    # As long as somebody had not begun, nothing was idle: looks with and without gradient are as many as may be.
    begun = [min(k for k, samples in enumerate(together) if b in samples) for b in range(COUNT)]
    assert begun == sorted(begun)
    full = [len(samples) for k, samples in enumerate(together) if k < max(begun) - 1]
    pairs = [a + b for a, b in itertools.pairwise(full)]
    assert all(pair >= in_flight for pair in pairs)


def test_rounds_of_one_precision_come_before_those_of_the_next() -> None:
    half = tuple(dataclasses.replace(entry, precision="bfloat16") for entry in ROUNDS[:2])
    seen: list[str] = []

    def noting(pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
        seen.append(precision)
        return cross_entropy(pixels_NCHW, aims, precision)

    outcomes = engine((*half, *ROUNDS[2:]), in_flight=2, answer_loss=noting).run()
    assert seen == sorted(seen), "precisions took turns"
    assert_equal(outcomes, engine().run(), atol=1e-4)


def states_of(make: Callable[[], Engine]) -> tuple[list[bytes], list[Outcome]]:
    states: list[bytes] = []

    def save(state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        states.append(buffer.getvalue())

    return states, make().run(save, every_s=0.0)


def test_every_state_leads_to_the_same_results_bit_by_bit() -> None:
    rounds = (
        Round("wide", 3, "float32", RANDOM, ANSWER, width=2.0, judged=False),
        Round("narrow", 4, "float32", PREVIOUS, ANSWER),
        Round("half", 3, "bfloat16", BEST, reference(0)),
        Round("decoy", 3, "float32", CLEAN, decoy(0)),
    )

    def make() -> Engine:
        return engine(
            rounds,
            in_flight=4,
            floor=1.0,
            victims=victims(decoys=lambda b, image_CHW: [str((int(CLASS_B[b]) + 1) % 4)]),
        )

    states, unbroken = states_of(make)
    assert len(states) > 20
    for state in states[::3]:
        successor = make()
        successor.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        assert_equal(successor.run(), unbroken)


def test_a_state_goes_on_in_smaller_batches() -> None:
    """What ran out of memory is started again with fewer samples at a time."""
    rounds = (Round("narrow", 4, "float32", CLEAN, ANSWER), Round("again", 3, "float32", BEST, reference(0)))
    states, unbroken = states_of(lambda: engine(rounds, in_flight=4, floor=-1.0))
    successor = engine(rounds, in_flight=2, floor=-1.0)
    successor.load_state_dict(torch.load(io.BytesIO(states[2]), weights_only=True))
    assert successor.batches.limit == 2
    outcomes = successor.run()
    assert [outcome.rounds for outcome in outcomes] == [outcome.rounds for outcome in unbroken]
    assert [outcome.score for outcome in outcomes] == pytest.approx([outcome.score for outcome in unbroken], abs=1e-3)


def test_a_round_in_a_larger_budget_only_prepares() -> None:
    rounds = (
        Round("wide", 3, "float32", CLEAN, reference(0), width=3.0, judged=False),
        Round("narrow", 1, "float32", PREVIOUS, reference(0), step_size=0.01),
    )
    states, outcomes = states_of(lambda: engine(rounds, floor=-1.0))
    for b, outcome in enumerate(outcomes):
        assert outcome.round_scores[0] is None
        assert outcome.rounds == ["wide", "narrow"]
        assert outcome.evidence is not None
        delta_CHW = (outcome.image_CHW - IMAGES_BCHW[b]).abs() * 255
        assert 7.9 < float(delta_CHW.max()) <= 8.001, "the narrow round did not start from the projected wide one"
    assert states


def test_decoys_are_asked_once_and_images_of_others_are_starts() -> None:
    asked: list[tuple[int, bool]] = []

    def decoys(sample: int, image_CHW: Tensor) -> list[str]:
        asked.append((sample, torch.equal(image_CHW, IMAGES_BCHW[sample])))
        return ["0", "7", "1"]

    def stubborn(images_NCHW: Tensor, who: Sequence[int], precision: str) -> tuple[list[str], list[float]]:
        return ["7"] * len(who), [90.0 if b == 3 else 100.0 for b in who]

    rounds = tuple(Round(f"decoy{k}", 2, "float32", CLEAN, decoy(k)) for k in range(3))
    clean = dataclasses.replace(victims(decoys=decoys), predictions=["7"] * COUNT, scores=[100.0] * COUNT)
    outcomes = engine(rounds, victims=clean, judge=stubborn).run()
    # Asked for the clean image, and again for the sample whose worst image is another one by now.
    assert sorted(asked) == sorted([*((b, True) for b in range(COUNT)), (3, False)])
    assert {tuple(outcome.rounds) for outcome in outcomes} == {("decoy0", "decoy1")}, "its own answer is no decoy"

    far_BCHW = (IMAGES_BCHW + 32 * PIXEL).clamp(0, 1)
    found = (Round("other", 1, "float32", other(0), reference(0), step_size=1e-6),)
    assert all(not outcome.rounds for outcome in engine(found, floor=-1.0).run()), "no images, no round"
    for b, outcome in enumerate(engine(found, floor=-1.0, victims=victims(others={other(0): far_BCHW})).run()):
        expected_CHW = (IMAGES_BCHW[b] + 8 * PIXEL).clamp(0, 1)
        assert outcome.evidence is not None
        torch.testing.assert_close(outcome.evidence.best_CHW, expected_CHW, rtol=0, atol=1e-4)


def test_a_sample_whose_answer_does_not_budge_is_left_alone() -> None:
    rounds = (
        Round("label0", 4, "float32", CLEAN, reference(0), gives_up=1e-9),
        Round("next", 1, "float32", CLEAN, ANSWER),
    )

    def dead(pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
        alive_N = torch.tensor([0.0 if aim.sample == 2 else 1.0 for aim in aims])
        return alive_N * cross_entropy(pixels_NCHW, aims, precision)

    outcomes = engine(rounds, victims=victims(4), answer_loss=dead, floor=-1.0).run()
    assert [outcome.rounds for outcome in outcomes] == [["label0", "next"]] * 2 + [["label0"]] + [["label0", "next"]]


def test_points_on_the_way_are_answered_and_end_a_round_that_is_won() -> None:
    asked: list[list[int]] = []

    def judging(images_NCHW: Tensor, who: Sequence[int], precision: str) -> tuple[list[str], list[float]]:
        asked.append(list(who))
        drops = len(asked) == 2
        return [f"answer{len(asked)}"] * len(who), [0.0 if drops and b == 1 else 90.0 - len(asked) for b in who]

    rounds = (
        Round("long", 6, "float32", CLEAN, reference(0), answers=(1, 3)),
        Round("next", 2, "float32", CLEAN, reference(0)),
    )
    clean = dataclasses.replace(victims(2), scores=[100.0] * 2)
    first, second = engine(rounds, victims=clean, judge=judging, floor=0.0).run()
    assert asked == [[0, 1], [0, 1], [0], [0]]
    assert (second.rounds, second.steps, second.forwards, second.score) == (["long"], 3, 4, 0.0)
    assert second.prediction == "answer2"
    assert second.evidence is not None
    assert len(second.evidence.loss_S) == 4
    assert (first.rounds, first.steps, first.score, first.prediction) == (["long", "next"], 8, 86.0, "answer4")
    assert first.round_scores == [87.0, 86.0]


@pytest.mark.parametrize("fits", [1, 2, 5])
def test_memory_that_runs_out_halves_the_batch_and_loses_no_step(fits: int) -> None:
    refused, looks = [], []

    def scarce(pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
        if len(aims) > fits:
            refused.append(len(aims))
            raise torch.OutOfMemoryError("CUDA out of memory")
        looks.append(len(aims))
        return cross_entropy(pixels_NCHW, aims, precision)

    told: list[str] = []
    batches = Batches(COUNT, told.append)
    outcomes = engine(answer_loss=scarce, batches=batches).run()
    assert_equal(outcomes, engine().run(), atol=1e-4)
    assert sum(looks) == sum(outcome.forwards for outcome in outcomes)
    assert refused
    assert batches.limit <= max(fits, 1)
    assert len(told) == len(refused)
    assert "out of memory" in told[0]


def test_a_sample_that_does_not_fit_alone_is_told() -> None:
    def never(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="not even one sample fits"):
        engine(answer_loss=never).run()


def test_the_batch_that_fits_follows_from_two_passes() -> None:
    assert samples_that_fit(lambda n: 1000 + 100 * n, 10_000, most=500) == 80
    assert samples_that_fit(lambda n: 1000 + 100 * n, 10_000, most=64) == 64
    assert samples_that_fit(lambda n: 5000 * n, 1_000, most=64) == 1
    assert samples_that_fit(lambda n: 100, 1_000, most=64) == 64
    assert samples_that_fit(lambda n: pytest.fail("measured for nothing"), 0, most=1) == 1


def test_one_failed_sample_is_flagged_and_leaves_the_others_alone() -> None:
    def broken(pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
        nan_N = torch.tensor([float("nan") if aim.sample == 2 else 0.0 for aim in aims])
        return cross_entropy(pixels_NCHW, aims, precision) + nan_N

    outcomes, whole = engine(answer_loss=broken).run(), engine().run()
    assert [outcome.error is not None for outcome in outcomes] == [b == 2 for b in range(COUNT)]
    assert "not finite" in str(outcomes[2].error)
    assert_equal(outcomes[:2] + outcomes[3:], whole[:2] + whole[3:], atol=1e-4)


def test_a_model_without_gradients_shows_in_the_evidence() -> None:
    flat = engine(ROUNDS[:1], answer_loss=lambda x, aims, precision: (x * 0).flatten(1).sum(1)).run()
    assert [outcome.zero_gradient_share for outcome in flat] == [1.0] * COUNT
    assert [outcome.evidence.last_rise for outcome in flat if outcome.evidence is not None] == [0.0] * COUNT


@settings(max_examples=50)
@given(epsilon=st.floats(0.01, 40), seed=st.integers(0, 1000))
def test_stored_images_are_what_was_scored(epsilon: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean_BCHW = torch.randint(0, 256, (2, 3, 5, 5), generator=generator).float() * PIXEL
    noise_BCHW = (torch.rand(clean_BCHW.shape, generator=generator) * 2 - 1) * epsilon * PIXEL
    found_BCHW = (clean_BCHW + noise_BCHW).clamp(0, 1)
    scored_BCHW = snap(found_BCHW, clean_BCHW, epsilon)
    assert float((scored_BCHW - clean_BCHW).abs().max()) * 255 <= epsilon + 1e-4
    assert float((scored_BCHW - found_BCHW).abs().max()) * 255 <= 1 / 128 + 1e-4
    assert float(scored_BCHW.min()) >= 0
    assert float(scored_BCHW.max()) <= 1
    rounded_BCHW, rest_BCHW = pack_images(scored_BCHW, clean_BCHW, epsilon)
    assert torch.equal(unpack_images(rounded_BCHW, rest_BCHW), scored_BCHW)
    assert torch.equal(rounded_BCHW.float() * PIXEL, round_to_8_bits(scored_BCHW, clean_BCHW, epsilon))
    assert float((rounded_BCHW.float() * PIXEL - clean_BCHW).abs().max()) * 255 <= epsilon + 1e-4
    assert torch.equal(snap(clean_BCHW, clean_BCHW, epsilon), clean_BCHW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "not negative"),
        ({"answers": (4,)}, "answers"),
        ({"width": 2.0}, "must not be judged"),
    ],
)
def test_rounds_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ROUNDS[0], **change)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Start("other"),
        lambda: Start("best", 1),
        lambda: Label("reference"),
        lambda: Label("text"),
        lambda: Label("answer", 0),
        lambda: Label("decoy", 0, "maybe"),
    ],
)
def test_starts_and_labels_that_make_no_sense_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"start: .* number|label: .* see Label"):
        make()


def test_a_long_targeted_attack_survives_ten_kills(tmp_path: Path) -> None:
    """10 000 steps; SIGKILL in flight, ten times; the successor goes on from the last state, to the same bits."""
    command = [sys.executable, "-m", "tests.attacks.long_attack"]
    reference = subprocess.Popen([*command, str(tmp_path / "unbroken")])
    folder, survived = tmp_path / "killed", []
    for kill in range(10):
        process = subprocess.Popen([*command, str(folder), "hold"])
        wait_for(functools.partial(goes_on_or_ended, process, folder, max(survived, default=0)), 600, "a state", 0.02)
        assert process.poll() is None, f"the attack was over before kill {kill}"
        process.send_signal(signal.SIGKILL)
        process.wait()
        survived.append(looks_in(folder))
    assert all(a < b for a, b in itertools.pairwise(survived)), "a successor began anew"
    assert survived[-1] < 10_000
    subprocess.run([*command, str(folder)], check=True)
    assert reference.wait() == 0
    mine, theirs = (torch.load(path / "result.pt", weights_only=True) for path in (folder, tmp_path / "unbroken"))
    assert torch.equal(mine["image"], theirs["image"])
    assert torch.equal(mine["loss"], theirs["loss"])
    assert len(mine["loss"]) == 10_001
    assert mine["answer"] == "3", "the attack did not reach its target"


def goes_on_or_ended(process: "subprocess.Popen[bytes]", folder: Path, looks: int) -> bool:
    return looks_in(folder) > looks or process.poll() is not None


def looks_in(folder: Path) -> int:
    state = folder / "state.pt"
    if not state.exists():
        return 0
    (place,) = torch.load(state, weights_only=True)["running"]
    return int(place[3])
