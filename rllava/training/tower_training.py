"""Fine-tunes a whole tower adversarially, in one process; the order of everything is that of the published scripts.

Of BatchNorm, which no published tower has, the statistics stay those of before and the scales are trained: else the
loss of a sample would depend on its batch and on the number of workers, and the attack, which sees the tower in
evaluation mode, would be on another network than the update.

Shapes: B batch, C channel, H/W image, K classes, E embedding.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllava.attacks.inner import inner_pgd, uniform_delta
from rllava.encoders.whole import WholeTower
from rllava.errors import UserError
from rllava.training.pretraining import state_of
from rllava.training.tower_objectives import TOWER_OBJECTIVES, TowerObjective, Views, squared_distance
from rllava.training.tower_recipe import TowerTraining, learning_rate

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""``batches(step)``: from an update, counted from 0, on: pixels in [0, 1], [B, C, H, W], and class numbers [B]."""

Starts = Callable[[int, Tensor], Tensor]
"""``starts(step, pixels_BCHW) -> delta_BCHW``: where the attack of an update starts, in pixel units."""


@dataclass(frozen=True)
class TowerProgress:
    """What is reported after an update.

    Attributes:
        step: updates done.
        loss: of the whole objective.
        attacked_loss: without the clean part.
    """

    step: int
    loss: float
    attacked_loss: float
    learning_rate: float


def frozen_copy(tower: WholeTower) -> WholeTower:
    """The base of a training: the tower as it is now, in evaluation mode."""
    return copy.deepcopy(tower).requires_grad_(False).eval()


def optimiser_of(tower: WholeTower, training: TowerTraining) -> torch.optim.Optimizer:
    """AdamW or SGD over all parameters that the library lets learn."""
    parameters = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=training.momentum, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)


def uniform_starts(training: TowerTraining) -> Starts:
    """Uniform in the budget, drawn by the update and the row in its batch."""

    def starts(step: int, pixels_BCHW: Tensor) -> Tensor:
        base = (training.seed * 1_000_003 + step) * 4096
        return uniform_delta(pixels_BCHW, training.attack.epsilon, range(base, base + len(pixels_BCHW)))

    return starts


@contextlib.contextmanager
def attacked(tower: WholeTower) -> Iterator[None]:
    """Within it a tower is in evaluation mode and no weight wants a gradient; behind it, in training mode."""
    wanted = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    tower.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        training_mode(tower)


def training_mode(tower: WholeTower) -> None:
    """Training mode, but for the statistics of BatchNorm."""
    tower.train()
    for module in tower.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def attacked_images(
    tower: WholeTower,
    training: TowerTraining,
    views: Callable[[Tensor], Views],
    pixels_BCHW: Tensor,
    delta_BCHW: Tensor,
) -> Tensor:
    """Images behind the attack of an update.

    Args:
        views: of images: what the objective looks at.
    """
    inner = TOWER_OBJECTIVES.get(training.objective).inner
    with attacked(tower):
        return inner_pgd(lambda images_BCHW, _: inner(views(images_BCHW)), pixels_BCHW, delta_BCHW, training.attack)


@dataclass(frozen=True)
class StepLoss:
    """Of an update: the scalar to lower, its attacked part, and the sum of both parts per sample, detached."""

    total: Tensor
    attacked: Tensor
    sample_B: Tensor


def step_loss(
    tower: WholeTower,
    base: WholeTower,
    training: TowerTraining,
    pixels_BCHW: Tensor,
    class_B: Tensor,
    delta_BCHW: Tensor,
    text_KE: Tensor | None = None,
) -> StepLoss:
    """Attacks a batch and computes the loss of its update.

    Args:
        base: see :func:`frozen_copy`.
        delta_BCHW: where the attack starts.
        text_KE: unit vectors of the classes' texts, for an objective that needs them.
    """
    objective = TOWER_OBJECTIVES.get(training.objective)
    with torch.no_grad():
        base_BE = _embed(base, objective, pixels_BCHW)
    if text_KE is not None:
        _check_widths(base, base_BE, text_KE)

    def views(images_BCHW: Tensor) -> Views:
        return Views(_embed(tower, objective, images_BCHW), base_BE, class_B, text_KE=text_KE)

    images_BCHW = attacked_images(tower, training, views, pixels_BCHW, delta_BCHW)
    # In the published order, in which gradients are summed.
    clean_BE = _embed(tower, objective, pixels_BCHW) if training.needs_clean else None
    attacked_BE = _embed(tower, objective, images_BCHW)
    loss_B = objective.outer(Views(attacked_BE, base_BE, class_B, clean_BE, text_KE, training.trades))
    attacked_loss, sample_B = loss_B.mean(), loss_B.detach()
    if not training.clean_weight:
        return StepLoss(attacked_loss, attacked_loss.detach(), sample_B)
    assert clean_BE is not None
    clean_B, weight = squared_distance(clean_BE, base_BE), training.clean_weight
    total = weight * clean_B.mean() + (1 - weight) * attacked_loss
    return StepLoss(total, attacked_loss.detach(), sample_B + clean_B.detach())


def _embed(tower: WholeTower, objective: TowerObjective, pixels_BCHW: Tensor) -> Tensor:
    embedding_BE: Tensor = tower(pixels_BCHW)
    return F.normalize(embedding_BE, dim=-1) if objective.normalised else embedding_BE


def train_tower(
    tower: WholeTower,
    base: WholeTower,
    batches: Batches,
    training: TowerTraining,
    *,
    text_KE: Tensor | None = None,
    starts: Starts | None = None,
    resume: Mapping[str, Any] | None = None,
    checkpoint_every: int = 0,
    save: Callable[[int, bytes], None] = lambda step, state: None,
    report: Callable[[TowerProgress], None] = lambda progress: None,
) -> None:
    """Trains in place, on the tower's device and in its precision.

    Args:
        base: frozen tower that the objective compares with; of a training from pre-trained weights, a
            :func:`frozen_copy`.
        batches: in the order of training; pixels are in the precision of the attack, float32 or float64.
        text_KE: unit vectors of the classes' texts.
        starts: of the attacks; None: :func:`uniform_starts`.
        resume: what ``save`` was given, read by :func:`rllava.training.pretraining.read_state`; training goes on from
            there to the same weights.
        checkpoint_every: updates between two states that are saved; 0: none is.
        save: called with the updates done and the state.
        report: called after each update.

    Raises:
        UserError: if the objective needs texts that are not there, or do not fit; if a batch is of another size; or if
            a loss or gradient is not finite, before the update that it would spoil.
    """
    _check_text(tower, training, text_KE)
    starts = starts or uniform_starts(training)
    optimiser, done = optimiser_of(tower, training), 0
    if resume is not None:
        tower.load_state_dict(resume["model"])
        optimiser.load_state_dict(resume["optimiser"])
        done = int(resume["step"])
    device, stream = next(tower.parameters()).device, batches(done)
    training_mode(tower)
    for step in range(done, training.steps):
        pixels_BCHW, class_B = _batch(stream, training, step, text_KE)
        pixels_BCHW, class_B = pixels_BCHW.to(device), class_B.to(device)
        rate = learning_rate(training, step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        delta_BCHW = starts(step, pixels_BCHW)
        with _drawing(training, step, device):
            loss = step_loss(tower, base, training, pixels_BCHW, class_B, delta_BCHW, text_KE)
        check_sound(loss, step)
        optimiser.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        _check_gradients(tower, step)
        optimiser.step()
        report(TowerProgress(step + 1, float(loss.total.detach()), float(loss.attacked), rate))
        if checkpoint_every and (step + 1) % checkpoint_every == 0 and step + 1 < training.steps:
            save(step + 1, state_of(tower, optimiser, step + 1))
    tower.eval()


@contextlib.contextmanager
def _drawing(training: TowerTraining, step: int, device: torch.device) -> Iterator[None]:
    """Whatever a tower draws in an update is drawn by the update's number, whether training was cut off or not."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(training.seed * 1_000_003 + step)
        yield


def _batch(
    stream: Iterator[tuple[Tensor, Tensor]], training: TowerTraining, step: int, text_KE: Tensor | None
) -> tuple[Tensor, Tensor]:
    try:
        pixels_BCHW, class_B = next(stream)
    except StopIteration:
        raise UserError(f"step {step + 1} of {training.steps}: there are no more images; repeat the data") from None
    if len(pixels_BCHW) != training.batch_size or class_B.shape != pixels_BCHW.shape[:1]:
        raise UserError(
            f"step {step + 1}: a batch of {len(pixels_BCHW)} images and {len(class_B)} classes, not of "
            f"{training.batch_size}; leave out the last, incomplete one"
        )
    if text_KE is not None and (int(class_B.min()) < 0 or int(class_B.max()) >= len(text_KE)):
        raise UserError(f"step {step + 1}: classes {int(class_B.min())} to {int(class_B.max())}, {len(text_KE)} texts")
    return pixels_BCHW, class_B


def _check_text(tower: WholeTower, training: TowerTraining, text_KE: Tensor | None) -> None:
    if TOWER_OBJECTIVES.get(training.objective).needs_text and text_KE is None:
        raise UserError(
            f"{tower.spec.label}: {training.objective} compares images with the texts of their classes, and there is "
            "no text tower; take the weights of a whole CLIP, or fare, which needs no texts"
        )
    if text_KE is not None and len(text_KE) < 2:
        raise UserError(f"{tower.spec.label}: data with one class teach {training.objective} nothing; give two or more")


def _check_widths(base: WholeTower, base_BE: Tensor, text_KE: Tensor) -> None:
    if base_BE.shape[1] != text_KE.shape[1]:
        raise UserError(
            f"{base.spec.label}: its embeddings are {base_BE.shape[1]} wide, those of the texts {text_KE.shape[1]}; "
            "image and text tower have to be of one CLIP"
        )


def check_sound(loss: StepLoss, step: int) -> None:
    """Refuses a loss that is not finite.

    Raises:
        UserError: naming the update and the first such sample.
    """
    wrong_B = ~loss.sample_B.isfinite()
    if bool(wrong_B.any()):
        row = int(wrong_B.nonzero()[0, 0])
        raise UserError(
            f"step {step + 1}: the loss of sample {row} of the batch is {float(loss.sample_B[row]):g}; {_REMEDY}"
        )


_REMEDY = "the last checkpoint stays as it is; lower learning_rate, or train in float32"


def _check_gradients(tower: WholeTower, step: int) -> None:
    gradients = [parameter.grad for parameter in tower.parameters() if parameter.grad is not None]
    if not bool(nn.utils.get_total_norm(gradients).isfinite()):
        raise UserError(f"step {step + 1}: a gradient is not finite though the loss is; {_REMEDY}")
