"""Trains an encoder with a text tower, clean or adversarially; data-parallel if there is a process group. Knows no Ray.

Shapes: B images of this worker, C channel, H/W image.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rllava.attacks import pgd
from rllava.attacks.common import LossFunction
from rllava.data.pairs import Pairs
from rllava.encoders.dual import DualEncoder
from rllava.errors import UserError
from rllava.training.encoder_objectives import ENCODER_OBJECTIVES, Batch
from rllava.training.together import average, rank, workers


@dataclass(frozen=True)
class PretrainSpec:
    """How one tiny encoder is trained.

    Attributes:
        objective: name in :data:`rllava.training.encoder_objectives.ENCODER_OBJECTIVES`.
        base: the encoder that fine-tuning starts from; None: from scratch.
        batch_size: images per step, over all workers.
        learning_rate: peak of the cosine schedule.
        warmup: share of the steps with rising learning rate.
        epsilon: budget of the inner attack in 1/255; 0: clean training.
        attack_steps: of the inner attack, PGD from a random start.
        attack_step_size: in units of epsilon.
        attack_momentum: on the sign of the gradient.
        seed: of initialisation, order and attack starts.
    """

    name: str
    objective: str
    base: "PretrainSpec | None" = None
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup: float = 0.07
    epsilon: float = 0.0
    attack_steps: int = 0
    attack_step_size: float = 1.0
    attack_momentum: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if ENCODER_OBJECTIVES.get(self.objective).fine_tunes != (self.base is not None):
            needs = "needs a base" if self.base is None else "starts from scratch, so base must be None"
            raise ValueError(f"base: objective {self.objective} {needs}")

    def versions(self) -> Mapping[str, int]:
        """Of the objective."""
        return {"objective": ENCODER_OBJECTIVES.get(self.objective).version}

    def scaled(self, share: float) -> "PretrainSpec":
        """The same with a share of the steps, in its base too."""
        base = None if self.base is None else self.base.scaled(share)
        return dataclasses.replace(self, base=base, steps=max(1, round(self.steps * share)))


TINY_CLIP = PretrainSpec("tiny-clip", "clip", steps=600)

_TUNED = PretrainSpec(
    "tiny-fare4", "fare", TINY_CLIP, 300, learning_rate=5e-4, epsilon=4.0, attack_steps=5, attack_step_size=0.25
)

RECIPES: tuple[PretrainSpec, ...] = (
    TINY_CLIP,
    _TUNED,
    dataclasses.replace(_TUNED, name="tiny-tecoa4", objective="tecoa"),
    PretrainSpec(
        "tiny-advxl", "advxl", steps=1600, epsilon=4.0, attack_steps=3, attack_step_size=0.5, attack_momentum=0.0
    ),
)
"""The shipped encoders. FARE and TeCoA fine-tune tiny-clip with less compute than adversarial pre-training from scratch
takes, as in the paper's comparison."""


def check_batch(spec: PretrainSpec, count: int, images: int) -> None:
    """Refuses what cannot be shared evenly.

    Raises:
        UserError: naming the option.
    """
    if spec.batch_size % count:
        raise UserError(f"--workers {count}: {spec.name} has a batch of {spec.batch_size}, which it does not divide")
    if images < spec.batch_size:
        raise UserError(f"{spec.name}: {images} images make no batch of {spec.batch_size}")


def batches(pairs: Pairs, spec: PretrainSpec, first: int = 0, dtype: torch.dtype = torch.float32) -> Iterator[Batch]:
    """This worker's share of endless shuffled batches, randomly shifted by up to four pixels.

    Every worker draws for the whole batch, so that an image's shift and wording are the same on any number of them.

    Args:
        first: step to begin with; what those before it draw is drawn and left.
        dtype: of the pixels.
    """
    generator, step = np.random.default_rng(spec.seed), 0
    captions = [wordings[0] for wordings in pairs.captions]
    mine = slice(rank(), None, workers())
    side = pairs.images_NHWC.shape[1]
    while True:
        order = generator.permutation(len(pairs.class_N))
        for start in range(0, len(order) - spec.batch_size + 1, spec.batch_size):
            rows = order[start : start + spec.batch_size]
            shifts = generator.integers(0, 9, size=(len(rows), 2))
            classes = pairs.class_N[rows]
            wordings = [pairs.captions[k][generator.integers(len(pairs.captions[k]))] for k in classes]
            step += 1
            if step <= first:
                continue
            images_BHWC = np.pad(pairs.images_NHWC[rows[mine]], ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
            shifted = np.stack(
                [image[y : y + side, x : x + side] for image, (y, x) in zip(images_BHWC, shifts[mine], strict=True)]
            )
            pixels_BCHW = torch.from_numpy(shifted).permute(0, 3, 1, 2).to(dtype) / 255.0
            yield Batch(pixels_BCHW, torch.from_numpy(classes[mine]).long(), wordings[mine], captions)


def adversarial(model: DualEncoder, loss: LossFunction, pixels_BCHW: Tensor, spec: PretrainSpec, step: int) -> Tensor:
    """Inner attack of a training step, on the model's current weights.

    Args:
        spec: budget, steps, step size, momentum.
        step: of the optimiser. An image's start is drawn by it and by its row in the whole batch.
    """
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    base = (spec.seed * 1_000_003 + step) * 4096
    images_BCHW = pgd(
        loss,
        pixels_BCHW,
        epsilon=spec.epsilon,
        steps=spec.attack_steps,
        step_size=spec.attack_step_size,
        momentum=spec.attack_momentum,
        seeds=range(base + rank(), base + spec.batch_size, workers()),
    )
    for parameter in wanted:
        parameter.requires_grad_(True)
    return images_BCHW


def learning_rate(spec: PretrainSpec, step: int) -> float:
    """Linear warm-up, then cosine to zero.

    Args:
        step: of the optimiser, from 0.
    """
    warm = max(1, round(spec.warmup * spec.steps))
    if step < warm:
        return spec.learning_rate * (step + 1) / warm
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, spec.steps - warm)))


def train_encoder(
    dual: DualEncoder,
    base: DualEncoder | None,
    pairs: Pairs,
    spec: PretrainSpec,
    *,
    resume: Mapping[str, Any] | None = None,
    checkpoint_every: int = 0,
    save: Callable[[int, bytes], None] = lambda step, state: None,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains in place.

    Args:
        dual: to train; the same on every worker.
        base: frozen copy of what it starts from; None from scratch.
        resume: what ``save`` was given, read again; training goes on from there to the same weights.
        checkpoint_every: steps between two states that are saved; 0: none is.
        save: called on every worker with the steps done and the state, which is the same on all.
        report: called on every worker after each step with the steps done and the loss of the whole batch.
    """
    objective = ENCODER_OBJECTIVES.get(spec.objective)
    if objective.fine_tunes:
        dual.text.requires_grad_(False)
        dual.log_scale.requires_grad_(False)
    trainable = [parameter for parameter in dual.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    done = 0
    if resume is not None:
        dual.load_state_dict(resume["model"])
        optimiser.load_state_dict(resume["optimiser"])
        done = int(resume["step"])
    stream = batches(pairs, spec, done, dual.log_scale.dtype)
    dual.train()
    for step in range(done, spec.steps):

        def attack(loss: LossFunction, pixels_BCHW: Tensor, step: int = step) -> Tensor:
            return adversarial(dual, loss, pixels_BCHW, spec, step)

        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spec, step)
        loss = objective.loss(dual, base, next(stream), attack)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in trainable:
            if parameter.grad is not None:
                average(parameter.grad)
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        report(step + 1, float(average(loss.detach().clone())))
        if checkpoint_every and (step + 1) % checkpoint_every == 0 and step + 1 < spec.steps:
            save(step + 1, state_of(dual, optimiser, step + 1))
    dual.eval()


def state_of(model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> bytes:
    """All that a training needs to go on."""
    buffer = io.BytesIO()
    state: dict[str, Any] = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
    torch.save(state, buffer)
    return buffer.getvalue()


def read_state(content: bytes) -> dict[str, Any]:
    """What :func:`state_of` wrote; its ``step`` says how many are done."""
    return dict(torch.load(io.BytesIO(content), weights_only=True))
