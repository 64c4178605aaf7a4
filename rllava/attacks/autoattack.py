"""AutoAttack's white-box and black-box attacks on classifiers (Croce & Hein 2020), on our own APGD and Square.

Shows that what attacks LLaVAs here is as strong as the field's yardstick on classifiers. Same parameters as the
``standard`` version, without FAB (which finds small perturbations rather than large losses): APGD on the cross-entropy,
APGD on the targeted DLR loss against the nine most likely wrong classes, Square with 5000 queries. A sample that one
attack has broken is left out of the next; robust is who survives all.

Shapes: B batch, C channel, H/W image, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rllava.attacks.apgd import apgd
from rllava.attacks.common import LossFunction, Norm, check_images
from rllava.attacks.losses import classifier_loss
from rllava.attacks.square import square

Classifier = Callable[[Tensor], Tensor]
"""``model(pixels_BCHW) -> logits_BK`` on images in [0, 1]."""

STEPS = 100
TARGETS = 9
QUERIES = 5000


@dataclass(frozen=True)
class ClassifierResult:
    """What attacks left of a classifier.

    Attributes:
        images_BCHW: adversarial images; the clean one where nothing broke the sample.
        robust_B: samples that are right on the clean image and on every image tried.
        broken_by: per sample, the attack that broke it: ``"clean"`` where it was wrong from the start, None if robust.
    """

    images_BCHW: Tensor
    robust_B: Tensor
    broken_by: tuple[str | None, ...]


def apgd_ce(
    model: Classifier,
    images_BCHW: Tensor,
    label_B: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    steps: int = STEPS,
    restarts: int = 1,
    seed: int = 0,
) -> ClassifierResult:
    """APGD on the cross-entropy, as AutoAttack runs it.

    Args:
        model: classifier.
        images_BCHW: clean images in [0, 1].
        label_B: their classes.
        epsilon: budget in 1/255.
        norm: of the budget.
        steps: per restart.
        restarts: each from another random point on the budget's surface, for the samples that are still right.
        seed: of the start points.

    Returns:
        What is left.
    """
    state = _State(model, images_BCHW, label_B)
    for restart in range(restarts):
        who_N = state.robust()
        seeds = _seeds(who_N, seed, restart)
        loss = classifier_loss(model, label_B[who_N], "ce")
        state.note("apgd-ce", who_N, _run(loss, images_BCHW[who_N], epsilon, norm, steps, seeds))
    return state.result()


def apgd_t(
    model: Classifier,
    images_BCHW: Tensor,
    label_B: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    steps: int = STEPS,
    restarts: int = 1,
    targets: int = TARGETS,
    seed: int = 0,
) -> ClassifierResult:
    """APGD on the targeted DLR loss against the most likely wrong classes in turn, as AutoAttack runs it.

    Args:
        model: classifier of at least four classes.
        images_BCHW: clean images in [0, 1].
        label_B: their classes.
        epsilon: budget in 1/255.
        norm: of the budget.
        steps: per restart and class.
        restarts: per class.
        targets: how many classes; at most all wrong ones.
        seed: of the start points.

    Returns:
        What is left.
    """
    state = _State(model, images_BCHW, label_B)
    ranked_BK = state.logits_BK.argsort(1, descending=True)
    for rank in range(1, min(targets, ranked_BK.shape[1] - 1) + 1):
        for restart in range(restarts):
            who_N = state.robust()
            seeds = _seeds(who_N, seed, rank * restarts + restart)
            # Those still robust are right on the clean image: their first class is the label.
            loss = classifier_loss(model, label_B[who_N], "targeted_dlr", ranked_BK[who_N, rank])
            state.note("apgd-t", who_N, _run(loss, images_BCHW[who_N], epsilon, norm, steps, seeds))
    return state.result()


def autoattack(
    model: Classifier,
    images_BCHW: Tensor,
    label_B: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    steps: int = STEPS,
    queries: int = QUERIES,
    seed: int = 0,
) -> ClassifierResult:
    """APGD-CE, APGD-T and (L-inf only) Square, each on what the one before left.

    Args:
        model: classifier of at least four classes.
        images_BCHW: clean images in [0, 1].
        label_B: their classes.
        epsilon: budget in 1/255.
        norm: of the budget.
        steps: of APGD.
        queries: of Square.
        seed: of everything random.

    Returns:
        What is left.
    """
    state = _State(model, images_BCHW, label_B)
    for attack in (apgd_ce, apgd_t):
        who_N = state.robust()
        if len(who_N):
            left = attack(model, images_BCHW[who_N], label_B[who_N], epsilon=epsilon, norm=norm, steps=steps, seed=seed)
            state.note(attack.__name__.replace("_", "-"), who_N, (left.images_BCHW, ~left.robust_B))
    who_N = state.robust()
    if norm == "linf" and len(who_N):
        loss = classifier_loss(model, label_B[who_N], "margin")
        found = square(loss, images_BCHW[who_N], epsilon=epsilon, queries=queries, seeds=_seeds(who_N, seed, 0))
        state.note("square", who_N, (found.images_BCHW, found.solved_B))
    return state.result()


class _State:
    """Who is still robust, and who broke the others."""

    def __init__(self, model: Classifier, images_BCHW: Tensor, label_B: Tensor) -> None:
        check_images(images_BCHW)
        with torch.no_grad():
            self.logits_BK = model(images_BCHW)
        self.images_BCHW = images_BCHW.clone()
        self.robust_B = self.logits_BK.argmax(1) == label_B
        self.broken_by: list[str | None] = [None if right else "clean" for right in self.robust_B.tolist()]

    def robust(self) -> Tensor:
        return self.robust_B.nonzero()[:, 0]

    def note(self, attack: str, who_N: Tensor, found: tuple[Tensor, Tensor]) -> None:
        images_NCHW, broken_N = found
        for place in broken_N.nonzero()[:, 0].tolist():
            sample = int(who_N[place])
            self.images_BCHW[sample] = images_NCHW[place]
            self.robust_B[sample] = False
            self.broken_by[sample] = attack

    def result(self) -> ClassifierResult:
        return ClassifierResult(self.images_BCHW, self.robust_B, tuple(self.broken_by))


def _run(
    loss: LossFunction, images_NCHW: Tensor, epsilon: float, norm: Norm, steps: int, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """AutoAttack's preset of APGD: from the budget's surface, first step 2 epsilon, last misclassified point."""
    if not len(images_NCHW):
        return images_NCHW, torch.zeros(0, dtype=torch.bool)
    result = apgd(
        loss, images_NCHW, epsilon=epsilon, steps=steps, norm=norm, start="surface", step_size=2.0, seeds=seeds
    )
    return result.solved_BCHW, result.solved_B


def _seeds(who_N: Tensor, seed: int, run: int) -> list[int]:
    """One seed per sample and run, whoever else is attacked."""
    return [(seed * 1_000_003 + run) * 1_000_003 + sample for sample in who_N.tolist()]
