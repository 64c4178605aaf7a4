"""The four ways to train a tiny encoder: contrastive, FARE, TeCoA, and adversarial pre-training from scratch.

All share one dual encoder: the image side pools the visual tokens and maps them to a joint space, the text side maps
captions there. Loops know no Ray: ``sweeps/pretrain_encoders.py`` runs them under Ray Train.

Sources: CLIP (InfoNCE); FARE and TeCoA as in RobustVLM's ``train/adversarial_training_clip.py`` (inner PGD with
momentum 0.9 on the same loss); AdvXL (text tower as label head, PGD of few steps from a random start).

Shapes: B batch, C channel, H/W image, K classes (captions), E joint embedding, P visual tokens, D width, V words.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllava.attacks import apgd, pgd
from rllava.encoders.base import Encoder

EMBEDDING = 64

Objective = Literal["clip", "fare", "tecoa", "advxl"]


@dataclass(frozen=True)
class PretrainSpec:
    """How one tiny encoder is trained.

    Attributes:
        name: of the encoder.
        objective: which loss.
        base: name of the encoder that fine-tuning starts from; None: from scratch.
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate: peak of the cosine schedule.
        weight_decay: of AdamW.
        warmup: share of the steps with rising learning rate.
        epsilon: budget of the inner attack in 1/255; 0: clean training.
        attack_steps: steps of the inner attack.
        attack_step_size: in units of epsilon.
        seed: of initialisation, order and attack starts.
    """

    name: str
    objective: Objective
    base: str | None = None
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup: float = 0.07
    epsilon: float = 0.0
    attack_steps: int = 0
    attack_step_size: float = 1.0
    seed: int = 0


RECIPES: tuple[PretrainSpec, ...] = (
    PretrainSpec("tiny-clip", "clip", steps=600),
    PretrainSpec(
        "tiny-fare4", "fare", "tiny-clip", 300, learning_rate=5e-4, epsilon=4.0, attack_steps=5, attack_step_size=0.25
    ),
    PretrainSpec(
        "tiny-tecoa4", "tecoa", "tiny-clip", 300, learning_rate=5e-4, epsilon=4.0, attack_steps=5, attack_step_size=0.25
    ),
    PretrainSpec("tiny-advxl", "advxl", steps=1600, epsilon=4.0, attack_steps=3, attack_step_size=0.5),
)
"""The shipped encoders. FARE and TeCoA fine-tune tiny-clip with less compute than adversarial pre-training from scratch
takes, as in the paper's comparison."""


@dataclass(frozen=True)
class Pairs:
    """Images with a class each, and the class captions.

    Attributes:
        images_NHWC: uint8.
        class_N: index into ``captions``.
        captions: per class, its wordings; the first is the one for zero-shot classification.
    """

    images_NHWC: np.ndarray
    class_N: np.ndarray
    captions: tuple[tuple[str, ...], ...]


class TextTower(nn.Module):
    """Embeds a caption as the mean of its words' embeddings through an MLP.

    Args:
        vocabulary: known words; others are ignored.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.index = {word: row for row, word in enumerate(vocabulary)}
        self.words = nn.Embedding(len(vocabulary), EMBEDDING)
        self.mlp = nn.Sequential(nn.Linear(EMBEDDING, 2 * EMBEDDING), nn.GELU(), nn.Linear(2 * EMBEDDING, EMBEDDING))

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Embeds captions.

        Args:
            captions: K texts.

        Returns:
            Unit vectors, [K, E].
        """
        counts_KV = torch.zeros(len(captions), len(self.index))
        for row, caption in enumerate(captions):
            for word in caption.lower().replace(".", "").split():
                if word in self.index:
                    counts_KV[row, self.index[word]] += 1
        mean_KE = counts_KV @ self.words.weight / counts_KV.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(self.mlp(mean_KE), dim=-1)


class DualEncoder(nn.Module):
    """Image and text towers with a joint space.

    Args:
        encoder: image side.
        vocabulary: words of the text side.
    """

    def __init__(self, encoder: Encoder, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.spec.width, EMBEDDING)
        self.text = TextTower(vocabulary)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def embed(self, pixels_BCHW: Tensor) -> Tensor:
        """Image embedding before normalisation (the one FARE keeps in place).

        Args:
            pixels_BCHW: RGB in [0, 1].

        Returns:
            [B, E].
        """
        embedding_BE: Tensor = self.head(self.encoder(pixels_BCHW).mean(1))
        return embedding_BE

    def logits(self, pixels_BCHW: Tensor, text_KE: Tensor) -> Tensor:
        """Scaled cosine similarities.

        Args:
            pixels_BCHW: RGB in [0, 1].
            text_KE: unit text embeddings.

        Returns:
            [B, K].
        """
        return self.log_scale.exp().clamp(max=100) * F.normalize(self.embed(pixels_BCHW), dim=-1) @ text_KE.T


def vocabulary_of(pairs: Pairs) -> tuple[str, ...]:
    """Sorted words of all captions.

    Args:
        pairs: whose captions.

    Returns:
        The words.
    """
    texts = (caption for wordings in pairs.captions for caption in wordings)
    return tuple(sorted({word for text in texts for word in text.lower().replace(".", "").split()}))


def batches(
    pairs: Pairs, spec: PretrainSpec, worker: int = 0, workers: int = 1
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Endless shuffled batches, randomly shifted by up to four pixels.

    Args:
        pairs: images and captions.
        spec: batch size and seed.
        worker: rank of this worker; it gets every ``workers``-th image of a batch.
        workers: how many share a batch.

    Yields:
        pixels_BCHW, class_B and one caption wording per image.
    """
    generator = np.random.default_rng(spec.seed)
    while True:
        order = generator.permutation(len(pairs.class_N))
        for start in range(0, len(order) - spec.batch_size + 1, spec.batch_size):
            rows = order[start : start + spec.batch_size]
            images_BHWC = np.pad(pairs.images_NHWC[rows], ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
            shifts = generator.integers(0, 9, size=(len(rows), 2))
            side = pairs.images_NHWC.shape[1]
            shifted = np.stack(
                [image[y : y + side, x : x + side] for image, (y, x) in zip(images_BHWC, shifts, strict=True)]
            )
            classes = pairs.class_N[rows]
            wordings = [pairs.captions[k][generator.integers(len(pairs.captions[k]))] for k in classes]
            mine = slice(worker, None, workers)
            pixels_BCHW = torch.from_numpy(shifted[mine]).permute(0, 3, 1, 2).float() / 255.0
            yield pixels_BCHW, torch.from_numpy(classes[mine]).long(), wordings[mine]


def contrastive_loss(logits_BB: Tensor, class_B: Tensor) -> Tensor:
    """Symmetric InfoNCE in which all texts that describe the same thing are positives.

    Args:
        logits_BB: image-text similarities of a batch.
        class_B: what each pair shows.

    Returns:
        Scalar.
    """
    same_BB = (class_B[:, None] == class_B[None, :]).float()
    target_BB = same_BB / same_BB.sum(1, keepdim=True)
    return (F.cross_entropy(logits_BB, target_BB) + F.cross_entropy(logits_BB.T, target_BB)) / 2


def adversarial(model: DualEncoder, loss: Callable[[Tensor, Tensor], Tensor], pixels_BCHW: Tensor, spec: PretrainSpec,
                step: int) -> Tensor:  # fmt: skip
    """Inner attack of a training step.

    Args:
        model: attacked in evaluation of its current weights.
        loss: to maximise, per sample.
        pixels_BCHW: clean images.
        spec: budget, steps, step size; fine-tuning uses momentum 0.9, pre-training plain PGD.
        step: of the optimiser; part of the seeds.

    Returns:
        Adversarial images.
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
        momentum=0.0 if spec.objective == "advxl" else 0.9,
        seeds=range(base, base + pixels_BCHW.shape[0]),
    )
    for parameter in wanted:
        parameter.requires_grad_(True)
    return images_BCHW


def step_loss(
    model: DualEncoder,
    frozen: DualEncoder | None,
    batch: tuple[Tensor, Tensor, list[str]],
    captions: Sequence[str],
    spec: PretrainSpec,
    step: int,
) -> Tensor:
    """Training loss of one step.

    Args:
        model: being trained.
        frozen: the base it was copied from; needed by FARE and TeCoA.
        batch: see :func:`batches`.
        captions: one per class.
        spec: objective and inner attack.
        step: of the optimiser.

    Returns:
        Scalar.
    """
    pixels_BCHW, class_B, wordings = batch
    if spec.objective == "clip":
        return contrastive_loss(model.logits(pixels_BCHW, model.text(wordings)), class_B)
    if spec.objective == "fare":
        assert frozen is not None
        with torch.no_grad():
            original_BE = frozen.embed(pixels_BCHW)

        def distance(pixels: Tensor, index_B: Tensor) -> Tensor:
            return (model.embed(pixels) - original_BE[index_B]).square().sum(-1)

        images_BCHW = adversarial(model, distance, pixels_BCHW, spec, step)
        return distance(images_BCHW, torch.arange(len(images_BCHW))).mean()
    with torch.no_grad():
        fixed_KE = (frozen if frozen is not None else model).text(captions)

    def label_loss(pixels: Tensor, index_B: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(pixels, fixed_KE), class_B[index_B], reduction="none")

    images_BCHW = adversarial(model, label_loss, pixels_BCHW, spec, step)
    text_KE = fixed_KE if spec.objective == "tecoa" else model.text(captions)
    return F.cross_entropy(model.logits(images_BCHW, text_KE), class_B)


def learning_rate(spec: PretrainSpec, step: int) -> float:
    """Linear warm-up, then cosine to zero.

    Args:
        spec: peak, steps and warm-up.
        step: of the optimiser, from 0.

    Returns:
        The learning rate.
    """
    warm = max(1, round(spec.warmup * spec.steps))
    if step < warm:
        return spec.learning_rate * (step + 1) / warm
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, spec.steps - warm)))


def train_encoder(
    dual: DualEncoder,
    frozen: DualEncoder | None,
    pairs: Pairs,
    spec: PretrainSpec,
    *,
    worker: int = 0,
    workers: int = 1,
    average: Callable[[Tensor], None] = lambda gradient: None,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Trains in place, data-parallel if there are several workers.

    Args:
        dual: to train; the same on every worker.
        frozen: see :func:`step_loss`.
        pairs: training images.
        spec: recipe.
        worker: rank of this worker.
        workers: how many share each batch.
        average: averages a gradient over the workers, in place.
        report: called after each step with its number and loss.
    """
    if spec.objective in ("fare", "tecoa"):
        dual.text.requires_grad_(False)
        dual.log_scale.requires_grad_(False)
    trainable = [parameter for parameter in dual.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    captions = [wordings[0] for wordings in pairs.captions]
    stream = batches(pairs, spec, worker, workers)
    dual.train()
    for step in range(spec.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spec, step)
        loss = step_loss(dual, frozen, next(stream), captions, spec, step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in trainable:
            if parameter.grad is not None:
                average(parameter.grad)
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        report(step, float(loss.detach()))
    dual.eval()


def zero_shot_accuracy(dual: DualEncoder, pairs: Pairs, epsilon: float, steps: int = 10) -> float:
    """Zero-shot accuracy, clean or under APGD on the label loss.

    Args:
        dual: towers.
        pairs: test images.
        epsilon: budget in 1/255; 0: clean.
        steps: of APGD.

    Returns:
        Share of right answers, in [0, 1].
    """
    dual = dual.eval().requires_grad_(False)
    text_KE = dual.text([wordings[0] for wordings in pairs.captions])
    right = 0
    for start in range(0, len(pairs.class_N), 250):
        pixels_BCHW = torch.from_numpy(pairs.images_NHWC[start : start + 250]).permute(0, 3, 1, 2).float() / 255.0
        class_B = torch.from_numpy(pairs.class_N[start : start + 250]).long()

        def label_loss(pixels: Tensor, index_B: Tensor, class_B: Tensor = class_B) -> Tensor:
            return F.cross_entropy(dual.logits(pixels, text_KE), class_B[index_B], reduction="none")

        if epsilon > 0:
            pixels_BCHW = apgd(label_loss, pixels_BCHW, epsilon=epsilon, steps=steps).images_BCHW
        with torch.no_grad():
            right += int((dual.logits(pixels_BCHW, text_KE).argmax(1) == class_B).sum())
    return right / len(pairs.class_N)
