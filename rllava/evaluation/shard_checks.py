"""The attack checks of an evaluation: on a few samples of every shard, at every budget.

The checks of :mod:`rllava.attacks.checks` need some forward passes more, and a second, shorter attack to compare with.
So they look at the first few attacked samples of a shard that took a gradient step. What a check finds stands in the
records of the samples it concerns.

Shapes: B samples of a shard, N some of them, C channel, H/W image.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby

import torch
from torch import Tensor

from rllava.attacks import apgd, check_attack, square
from rllava.attacks.checks import TOLERANCE, Finding, compare_results
from rllava.attacks.common import NonFiniteLossError
from rllava.attacks.engine import Aim, AnswerLoss
from rllava.attacks.memory import Batches
from rllava.attacks.outcome import Outcome, attack_result
from rllava.check_names import CHECKS

CHECKED_PER_SHARD = 8
"""Samples of a shard that are checked. A masked gradient is a property of the model and shows on any sample."""

SQUARE_QUERIES = 16
"""Of the black-box attack that a gradient attack has to beat."""

FEWER_STEPS = 50
"""Most steps of the attack that a round of twice as many must not lose to: more would cost long rounds too much."""

HALF_TOLERANCE = 1e-2
"""Losses of models in half precision that are nearer than this, relatively, count as equal."""

ORDER = tuple(check.name for check in CHECKS)

Answer = Callable[[Tensor, Sequence[int], str], list[str]]
"""``answer(images_NCHW, samples, precision) -> answers`` of those samples."""

Raised = Mapping[int, Sequence[str]]
"""Per checked sample, the names of the checks that were raised."""


def check_shard(
    outcomes: Sequence[Outcome], clean_BCHW: Tensor, predictions: Sequence[str], *, epsilon: float,
    clean_precision: str, seeds: Sequence[int], solved: Sequence[bool], answer_loss: AnswerLoss,
    answer: Answer, most: int, count: int = CHECKED_PER_SHARD, known: Raised | None = None,
    save: Callable[[Raised], None] | None = None,
) -> dict[int, list[str]]:  # fmt: skip
    """Checks some of the attacks on a shard.

    Args:
        epsilon: budget in 1/255.
        clean_precision: in which they were given.
        solved: per sample, whether nothing is left to attack; such samples need no excuse.
        most: samples that go through the model at a time.
        known: what an earlier call gave to ``save``; those samples' attacks are not checked again.
        save: given, after each part of the samples, what was found so far.

    Returns:
        Per checked sample, the names of the checks that were raised, in their order.
    """
    checked = [b for b, outcome in enumerate(outcomes) if outcome.evidence is not None][:count]
    found: dict[int, list[str]] = {b: list(names) for b, names in (known or {}).items()}
    left = [b for b in checked if b not in found]

    def kind(b: int) -> tuple[str, int, bool]:
        evidence = outcomes[b].evidence
        assert evidence is not None
        return evidence.precision, evidence.steps, evidence.text is None

    batches = Batches(most)
    for _, group in groupby(sorted(left, key=kind), key=kind):

        def check(part: Sequence[int]) -> None:
            names = _check(part, [solved[b] for b in part], outcomes, clean_BCHW, epsilon, seeds, answer_loss)
            found.update(zip(part, names, strict=True))
            if save is not None:
                save(found)

        batches.run(check, list(group))
    if clean_precision == "float32":  # in half precision, an answer may depend on how the batch is put together
        for texts in batches.run(
            lambda part: zip(part, answer(clean_BCHW[list(part)], part, clean_precision), strict=True), checked
        ):
            for b, text in texts:
                if text != predictions[b] and "clean_mismatch" not in found[b]:
                    found[b].append("clean_mismatch")
    return found


def _check(
    who: Sequence[int], solved: Sequence[bool], outcomes: Sequence[Outcome], clean_BCHW: Tensor, epsilon: float,
    seeds: Sequence[int], answer_loss: AnswerLoss,
) -> list[list[str]]:  # fmt: skip
    """Names of findings per sample, of samples attacked in one precision by equally many steps, all of one kind."""
    rounds = [evidence for b in who if (evidence := outcomes[b].evidence) is not None]
    precision = rounds[0].precision
    clean_NCHW = clean_BCHW[list(who)]

    aims = [Aim(b, evidence.text) for b, evidence in zip(who, rounds, strict=True)]
    sign_N = torch.tensor([-1.0 if evidence.targeted else 1.0 for evidence in rounds], device=clean_NCHW.device)

    def loss(pixels_NCHW: Tensor, index_N: Tensor) -> Tensor:
        chosen = index_N.tolist()
        return sign_N[chosen] * answer_loss(pixels_NCHW, [aims[i] for i in chosen], precision)

    own = [seeds[b] for b in who]
    solved_N = torch.tensor(solved, device=clean_NCHW.device)
    tolerance = TOLERANCE if precision == "float32" else HALF_TOLERANCE
    # Nothing can be compared with an attack that broke off, and other attacks would break off there as well.
    whole = [n for n, evidence in enumerate(rounds) if not evidence.failed]
    square_N = clean_NCHW.new_full((len(who),), -torch.inf)
    raised: list[tuple[Finding, Sequence[int]]] = []
    if whole:
        place_W = torch.tensor(whole)

        def loss_of_whole(pixels_NCHW: Tensor, index_N: Tensor) -> Tensor:
            return loss(pixels_NCHW, place_W[index_N.cpu()])

        clean_WCHW = clean_NCHW[whole]
        with suppress(NonFiniteLossError):  # half precision may overflow where another attack begins
            black_box = square(
                loss_of_whole, clean_WCHW, epsilon=epsilon, queries=SQUARE_QUERIES, seeds=[own[n] for n in whole]
            )
            square_N[whole] = black_box.loss_B
        if rounds[0].steps > 1:
            with suppress(NonFiniteLossError):
                fewer = apgd(loss_of_whole, clean_WCHW, epsilon=epsilon, steps=min(rounds[0].steps // 2, FEWER_STEPS))
                found = attack_result([rounds[n] for n in whole])
                weaker = compare_results(fewer, found, grew="steps", solved=solved_N[whole], tolerance=tolerance)
                raised += [(finding, whole) for finding in weaker]
    result = attack_result(rounds)
    others = {"square": square_N}
    raised += [
        (finding, range(len(who)))
        for finding in check_attack(
            loss, clean_NCHW, result, epsilon=epsilon, seeds=own, solved=solved_N, others=others, tolerance=tolerance
        )
    ]
    names: list[list[str]] = [[] for _ in who]
    for finding, rows in sorted(raised, key=lambda pair: ORDER.index(pair[0].check)):
        for sample in finding.samples:
            names[rows[sample]].append(finding.check)
    return names
