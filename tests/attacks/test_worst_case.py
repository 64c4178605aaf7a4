"""The rules between rounds: worst case per sample, drops, skipped labels, 8-bit images."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rllava.attacks.common import LossFunction
from rllava.attacks.protocols import PROTOCOLS, Protocol, Round, with_steps
from rllava.attacks.worst_case import Outcome, round_to_8_bits, worst_case
from rllava.errors import UserError

CLEAN_BCHW = torch.full((3, 3, 4, 4), 0.5)
ROUNDS = (
    Round("label0", 4, "float32", "clean", 0),
    Round("label1", 4, "float32", "clean", 1),
    Round("from-best", 4, "float32", "best", "best"),
    Round("target", 4, "float32", "clean", "=maybe"),
)


class Bench:
    """A stand-in for model and metric whose scores are given per round; notes what it was asked."""

    def __init__(self, scores: dict[str, list[float]]) -> None:
        self.scores = scores
        self.calls: list[tuple[list[int], list[str], bool]] = []
        self.starts: list[Tensor] = []

    def loss_of(self, who: Sequence[int], texts: Sequence[str], targeted: bool, precision: str) -> LossFunction:
        self.calls.append((list(who), list(texts), targeted))
        first = True

        def loss(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
            nonlocal first
            if first:
                self.starts.append(pixels_BCHW.detach().clone())
                first = False
            direction = 1.0 if not texts[0].endswith("1") else -1.0
            return direction * pixels_BCHW.flatten(1).sum(1)

        return loss

    def judge(self, images_BCHW: Tensor, who: Sequence[int], precision: str) -> tuple[list[str], list[float]]:
        text = self.calls[-1][1][0]
        key = f"round{len(self.calls)}"
        return [f"{text}!{b}" for b in who], [self.scores[key][b] for b in who]


def run(bench: Bench, scores: list[float], labels: list[list[str]]) -> list[Outcome]:
    return worst_case(
        ROUNDS,
        CLEAN_BCHW,
        labels,
        [f"clean{b}" for b in range(3)],
        scores,
        epsilon=8,
        loss_of=bench.loss_of,
        judge=bench.judge,
        dropped=lambda score: score <= 0,
    )


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
    assert [outcome.steps for outcome in outcomes] == [16, 4, 16]
    # Round 3 attacks the label that gave the worst score: label 0 of sample 0, label 1 of sample 2.
    assert bench.calls[2] == ([0, 2], ["a0", "c1"], False)
    assert bench.calls[3] == ([0, 2], ["maybe", "maybe"], True)
    assert not torch.equal(bench.starts[2][0], CLEAN_BCHW[0]), "the round from the best image started clean"
    assert torch.equal(bench.starts[3], CLEAN_BCHW[[0, 2]])
    assert outcomes[1].prediction == "a0!1"


def test_clean_failures_are_not_attacked_and_missing_labels_skip_a_round() -> None:
    bench = Bench({f"round{k}": [10.0, 10.0, 10.0] for k in range(1, 5)})
    outcomes = run(bench, [0.0, 50.0, 5.0], [["a0"], ["b0"], ["c0", "c1"]])
    assert (outcomes[0].rounds, outcomes[0].prediction, outcomes[0].zero_gradient_share) == ([], "clean0", None)
    assert outcomes[1].rounds == ["label0", "from-best", "target"]
    # No round helped sample 2: its last round started from the clean image with its first label.
    assert (outcomes[2].score, outcomes[2].best_round) == (5.0, "clean")
    assert bench.calls[2][1] == ["b0", "c0"]
    assert torch.equal(outcomes[2].image_CHW, CLEAN_BCHW[2])


def test_a_model_without_gradients_shows_in_the_evidence() -> None:
    outcomes = worst_case(
        ROUNDS[:1], CLEAN_BCHW, [["a"]] * 3, ["p"] * 3, [1.0] * 3, epsilon=8,
        loss_of=lambda *_: lambda pixels_BCHW, index_B: (pixels_BCHW * 0).flatten(1).sum(1),
        judge=lambda images_BCHW, who, precision: (["p"] * len(who), [1.0] * len(who)),
        dropped=lambda score: False,
    )  # fmt: skip
    assert [outcome.zero_gradient_share for outcome in outcomes] == [1.0] * 3
    assert [outcome.loss_last_rise for outcome in outcomes] == [0.0] * 3


@settings(max_examples=50, deadline=None)
@given(epsilon=st.floats(0.5, 20), seed=st.integers(0, 1000))
def test_8_bit_images_are_multiples_of_a_level_and_keep_the_budget(epsilon: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean_BCHW = torch.randint(0, 256, (2, 3, 5, 5), generator=generator) / 255
    noise_BCHW = (torch.rand(clean_BCHW.shape, generator=generator) * 2 - 1) * epsilon / 255
    rounded_BCHW = round_to_8_bits((clean_BCHW + noise_BCHW).clamp(0, 1), clean_BCHW, epsilon)
    levels = rounded_BCHW * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert float((rounded_BCHW - clean_BCHW).abs().max()) * 255 <= epsilon + 1e-4
    assert float(rounded_BCHW.min()) >= 0
    assert float(rounded_BCHW.max()) <= 1


def test_the_papers_protocol_has_the_papers_rounds() -> None:
    protocol = PROTOCOLS.get("paper_ensemble")
    assert [entry.label for entry in protocol.captioning] == [0, 1, 2, 3, 4, "best"]
    assert [entry.label for entry in protocol.vqa] == [0, 1, 2, 3, 4, "best", "=maybe", "=Word"]
    assert {entry.steps for entry in protocol.vqa} == {100}
    assert [entry.precision for entry in protocol.vqa] == ["float16"] * 5 + ["float32"] * 3
    assert [entry.start for entry in protocol.vqa] == ["clean"] * 5 + ["best", "clean", "clean"]
    assert "captioning: at most 606 forward and 600 backward" in protocol.describe()


def test_changing_steps_changes_the_name() -> None:
    changed: Protocol = with_steps(PROTOCOLS.get("paper_ensemble"), 7)
    assert changed.label == "paper_ensemble_7steps-v1"
    assert {entry.steps for entry in changed.captioning} == {7}
    with pytest.raises(UserError, match="at least 1"):
        with_steps(changed, 0)
