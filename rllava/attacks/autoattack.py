"""AutoAttack's white-box and black-box attacks on classifiers (Croce & Hein 2020), on our own APGD and Square.

Shows that what attacks LLaVAs here is as strong as the field's yardstick on classifiers. Same parameters as the
``standard`` version, without FAB (which finds small perturbations rather than large losses): APGD on the cross-entropy,
APGD on the targeted DLR loss against the nine most likely wrong classes, Square with 5000 queries. A sample that one
attack has beaten is left out of the next; robust is who survives all.

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
        beaten_by: per sample, the attack that beat it: ``"clean"`` where it was wrong from the start, None if robust.
        failed_B: samples on which an attack met a loss that is not finite. The later attacks leave them out; where
            they still count as robust, that proves nothing.
    """

    images_BCHW: Tensor
    robust_B: Tensor
    beaten_by: tuple[str | None, ...]
    failed_B: Tensor


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
        images_BCHW: clean images in [0, 1].
        epsilon: budget in 1/255.
        restarts: each from another random point on the budget's surface, for the samples that are still right.
    """
    state = _State(model, images_BCHW, label_B, epsilon, norm, seed)
    state.apgd_ce(steps, restarts)
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
        epsilon: budget in 1/255.
        targets: how many classes; at most all wrong ones.
    """
    state = _State(model, images_BCHW, label_B, epsilon, norm, seed)
    state.apgd_t(steps, restarts, targets)
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
        epsilon: budget in 1/255.
    """
    state = _State(model, images_BCHW, label_B, epsilon, norm, seed)
    state.apgd_ce(steps, restarts=1)
    state.apgd_t(steps, restarts=1, targets=TARGETS)
    if norm == "linf":
        state.square(queries)
    return state.result()


def start_seeds(samples: Sequence[int], run: int, seed: int) -> list[int]:
    """Seeds of the start points: one per sample and run, whoever else is attacked.

    Args:
        run: of APGD: its restart; of APGD-T with one restart: the rank of the class that it aims at, from 1.
    """
    return [(seed * 1_000_003 + run) * 1_000_003 + sample for sample in samples]


class _State:
    """Who is still robust, and who broke the others; each attack goes on with those that are left."""

    def __init__(
        self, model: Classifier, images_BCHW: Tensor, label_B: Tensor, epsilon: float, norm: Norm, seed: int
    ) -> None:
        check_images(images_BCHW)
        self.model, self.clean_BCHW, self.label_B = model, images_BCHW, label_B
        self.epsilon, self.norm, self.seed = epsilon, norm, seed
        with torch.no_grad():
            self.logits_BK = model(images_BCHW)
        self.images_BCHW = images_BCHW.clone()
        self.robust_B = self.logits_BK.argmax(1) == label_B
        self.failed_B = torch.zeros_like(self.robust_B)
        self.beaten_by: list[str | None] = [None if right else "clean" for right in self.robust_B.tolist()]

    def apgd_ce(self, steps: int, restarts: int) -> None:
        for restart in range(restarts):
            who_N = self.left()
            loss = classifier_loss(self.model, self.label_B[who_N], "ce")
            self.apgd("apgd-ce", loss, who_N, steps, restart)

    def apgd_t(self, steps: int, restarts: int, targets: int) -> None:
        ranked_BK = self.logits_BK.argsort(1, descending=True)
        for rank in range(1, min(targets, ranked_BK.shape[1] - 1) + 1):
            for restart in range(restarts):
                who_N = self.left()
                # Those still robust are right on the clean image: their first class is the label.
                loss = classifier_loss(self.model, self.label_B[who_N], "targeted_dlr", ranked_BK[who_N, rank])
                self.apgd("apgd-t", loss, who_N, steps, rank * restarts + restart)

    def apgd(self, name: str, loss: LossFunction, who_N: Tensor, steps: int, run: int) -> None:
        """AutoAttack's preset: from the budget's surface, first step 2 epsilon, last misclassified point."""
        if len(who_N):
            found = apgd(
                loss, self.clean_BCHW[who_N], epsilon=self.epsilon, steps=steps, norm=self.norm,
                start="surface", step_size=2.0, seeds=start_seeds(who_N.tolist(), run, self.seed),
            )  # fmt: skip
            self.note(name, who_N, found.solved_BCHW, found.solved_B, found.failed_B)

    def square(self, queries: int) -> None:
        who_N = self.left()
        if len(who_N):
            loss = classifier_loss(self.model, self.label_B[who_N], "margin")
            seeds = start_seeds(who_N.tolist(), 0, self.seed)
            found = square(loss, self.clean_BCHW[who_N], epsilon=self.epsilon, queries=queries, seeds=seeds)
            self.note("square", who_N, found.images_BCHW, found.solved_B, found.failed_B)

    def left(self) -> Tensor:
        return (self.robust_B & ~self.failed_B).nonzero()[:, 0]

    def note(self, attack: str, who_N: Tensor, images_NCHW: Tensor, beaten_N: Tensor, failed_N: Tensor) -> None:
        beaten = who_N[beaten_N]
        self.images_BCHW[beaten] = images_NCHW[beaten_N]
        self.robust_B[beaten] = False
        self.failed_B[who_N] |= failed_N
        for sample in beaten.tolist():
            self.beaten_by[sample] = attack

    def result(self) -> ClassifierResult:
        return ClassifierResult(self.images_BCHW, self.robust_B, tuple(self.beaten_by), self.failed_B)
