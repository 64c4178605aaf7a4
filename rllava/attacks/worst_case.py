"""Runs a protocol on a batch: the worst answer per sample over its rounds.

Knows neither LLaVA nor metric: it is given a loss per (sample, label, precision) and a judge that answers and scores.

Shapes: B batch, C channel, H/W image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rllava.attacks.apgd import apgd
from rllava.attacks.common import PIXEL, AttackResult, LossFunction, Start
from rllava.attacks.protocols import Round

LossOf = Callable[[Sequence[int], Sequence[str], bool, str], LossFunction]
"""``(samples, texts, targeted, precision) -> loss``: the loss of a text as each sample's answer, to be maximised
(negated where targeted). The loss function's ``index_B`` counts within ``samples``."""

Judge = Callable[[Tensor, Sequence[int], str], tuple[list[str], list[float]]]
"""``(images_BCHW, samples, precision) -> predictions, scores`` of those samples."""


@dataclass
class Outcome:
    """What a protocol did to one sample.

    Attributes:
        prediction: answer to the worst image.
        score: its score.
        image_CHW: the worst image (the clean one where no round lowered the score).
        label: index of the label whose loss led there; None for targeted rounds.
        best_round: name of the round, ``"clean"`` where none helped.
        rounds: names of the rounds that attacked the sample.
        steps: gradient steps over all rounds.
        zero_gradients: share of exactly zero gradient entries, summed over steps.
        loss_clean: loss at the start of the round the evidence is from.
        loss_best: its largest loss.
        loss_last_rise: rise of its best loss over the last tenth of its steps.
        error: why a round broke off, or None.
    """

    prediction: str
    score: float
    image_CHW: Tensor
    label: int | None = None
    best_round: str = "clean"
    rounds: list[str] = field(default_factory=list)
    steps: int = 0
    zero_gradients: float = 0.0
    loss_clean: float | None = None
    loss_best: float | None = None
    loss_last_rise: float | None = None
    error: str | None = None

    @property
    def zero_gradient_share(self) -> float | None:
        """Mean share of exactly zero gradient entries; None if there was no step."""
        return self.zero_gradients / self.steps if self.steps else None


def worst_case(
    rounds: Sequence[Round],
    images_BCHW: Tensor,
    labels: Sequence[Sequence[str]],
    predictions: Sequence[str],
    scores: Sequence[float],
    *,
    epsilon: float,
    loss_of: LossOf,
    judge: Judge,
    dropped: Callable[[float], bool],
) -> list[Outcome]:
    """Attacks a batch by all rounds in order.

    A round may only lower a sample's score. A sample whose score in a round (or on the clean image) is dropped takes
    no part in later rounds; neither does one that lacks the round's label.

    Args:
        rounds: of a protocol.
        images_BCHW: clean images, float32 in [0, 1].
        labels: per sample, the texts whose loss untargeted rounds maximise.
        predictions: clean answers.
        scores: their scores.
        epsilon: budget in 1/255.
        loss_of: see :data:`LossOf`.
        judge: see :data:`Judge`.
        dropped: whether nothing is left to attack at a score.

    Returns:
        One outcome per sample.
    """
    outcomes = [Outcome(p, s, images_BCHW[b]) for b, (p, s) in enumerate(zip(predictions, scores, strict=True))]
    active = [not dropped(score) for score in scores]
    for entry in rounds:
        who = [b for b in range(len(outcomes)) if active[b] and _text(entry, outcomes[b], labels[b]) is not None]
        if not who:
            continue
        texts = [text for b in who if (text := _text(entry, outcomes[b], labels[b])) is not None]
        start: Start = torch.stack([outcomes[b].image_CHW for b in who]) if entry.start == "best" else "clean"
        result = apgd(
            loss_of(who, texts, entry.target is not None, entry.precision),
            images_BCHW[who],
            epsilon=epsilon,
            steps=entry.steps,
            start=start,
        )
        assert_within(result.images_BCHW, images_BCHW[who], epsilon)
        answers, reached = judge(result.images_BCHW, who, entry.precision)
        for place, b in enumerate(who):
            _note(outcomes[b], entry, result, place, answers[place], reached[place])
            active[b] = not dropped(reached[place])
    return outcomes


def _text(entry: Round, outcome: Outcome, labels: Sequence[str]) -> str | None:
    """The text a round attacks of a sample; None where the sample has none and skips the round."""
    if entry.target is not None:
        return entry.target
    place = (outcome.label or 0) if entry.label == "best" else int(entry.label)
    return labels[place] if place < len(labels) else None


def _note(outcome: Outcome, entry: Round, result: AttackResult, place: int, answer: str, score: float) -> None:
    history = result.history
    better = score < outcome.score
    outcome.rounds.append(entry.name)
    outcome.steps += entry.steps
    outcome.zero_gradients += float(history.zero_gradient_SB[:, place].sum())
    if bool(result.broken_B[place]):
        outcome.error = f"round {entry.name}: loss or gradient was not finite; the attack stopped at its best point"
    if better or outcome.loss_clean is None:
        best_S = history.loss_SB[:, place].cummax(0).values
        before_last_tenth = len(best_S) - 1 - max(1, entry.steps // 10)
        outcome.loss_clean = float(best_S[0])
        outcome.loss_best = float(best_S[-1])
        outcome.loss_last_rise = float(best_S[-1] - best_S[before_last_tenth])
    if better:
        outcome.prediction, outcome.score = answer, score
        outcome.image_CHW = result.images_BCHW[place]
        outcome.best_round = entry.name
        if entry.target is None and entry.label != "best":
            outcome.label = int(entry.label)


def assert_within(images_BCHW: Tensor, clean_BCHW: Tensor, epsilon: float) -> None:
    """Checks the promise every attack makes.

    Args:
        images_BCHW: attacked.
        clean_BCHW: clean.
        epsilon: budget in 1/255.
    """
    worst = float((images_BCHW - clean_BCHW).abs().max()) / PIXEL
    assert worst <= epsilon + 1e-3, f"an attack left its budget: {worst} > {epsilon}"


def round_to_8_bits(images_BCHW: Tensor, clean_BCHW: Tensor, epsilon: float) -> Tensor:
    """The nearest 8-bit images that keep the budget; the clean images are 8-bit images themselves.

    Args:
        images_BCHW: adversarial images in [0, 1].
        clean_BCHW: clean images, multiples of 1/255.
        epsilon: budget in 1/255.

    Returns:
        Images whose every value is a multiple of 1/255, within the whole levels that the budget allows.
    """
    levels = float(int(epsilon))
    delta_BCHW = ((images_BCHW - clean_BCHW) / PIXEL).round().clamp(-levels, levels)
    return ((clean_BCHW / PIXEL).round() + delta_BCHW).clamp(0, 255) * PIXEL
