"""What the fine-tuning of a whole tower minimises; the registry of it.

Sources: FARE and TeCoA in RobustVLM's ``train/adversarial_training_clip.py``, Sim-CLIP in SimCLIP's
``train/adversarial_training_simclip.py`` (both MIT). The objectives of the embedded dual encoders, trained with their
texts, are :mod:`rllava.training.encoder_objectives`.

Shapes: B batch, K classes, E embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from rllava.registry import Registry

TEMPLATES = {"std": "This is a photo of a {}", "blurry": "This is a blurry photo of a {}"}
"""What the published scripts make of a class name, by their names of it; TeCoA was published with ``std``."""

SCALE = 100.0
"""Of cosine similarities as logits."""


@dataclass(frozen=True)
class Views:
    """Embeddings of a batch; unit vectors where the objective is of normalised ones.

    Attributes:
        attacked_BE: by the tower in training, of images within or behind the attack.
        base_BE: of the clean images by the frozen tower that training started from.
        clean_BE: of the clean images by the tower in training, in the update; None in the attack, and where no part of
            the loss needs it.
        text_KE: unit vectors, one per class; None without texts.
        trades: whether the clean embedding stands in for the base's (TRADES).
    """

    attacked_BE: Tensor
    base_BE: Tensor
    class_B: Tensor
    clean_BE: Tensor | None = None
    text_KE: Tensor | None = None
    trades: bool = False


ViewLoss = Callable[[Views], Tensor]
"""``loss(views) -> loss_B``; its mean over the batch counts."""


@dataclass(frozen=True)
class TowerObjective:
    """One objective.

    Attributes:
        inner: what the attack raises.
        outer: what the update lowers.
        normalised: whether all embeddings are unit vectors.
        needs_text: whether classes need embeddings.
        needs_clean: whether ``outer`` looks at the clean embedding.
        mixes: whether the published options ``clean_weight`` and ``trades`` mean anything.
        version: raised when any loss is another one.
    """

    inner: ViewLoss
    outer: ViewLoss
    about: str
    normalised: bool = False
    needs_text: bool = False
    needs_clean: bool = False
    mixes: bool = True
    version: int = 1


TOWER_OBJECTIVES: Registry[TowerObjective] = Registry("objective of a tower", "rllava.tower_objectives")


def squared_distance(embedding_BE: Tensor, target_BE: Tensor) -> Tensor:
    """Summed over the width and not divided by it; no gradient reaches the target.

    Returns:
        loss_B.
    """
    return F.mse_loss(embedding_BE, target_BE.detach(), reduction="none").sum(dim=1)


def to_base(views: Views) -> Tensor:
    """FARE: the attacked embedding stays where the base has the clean one; with TRADES, where the tower has it."""
    if views.trades:
        assert views.clean_BE is not None
        return squared_distance(views.attacked_BE, views.clean_BE)
    return squared_distance(views.attacked_BE, views.base_BE)


def label_cross_entropy(views: Views) -> Tensor:
    """TeCoA: cross-entropy of the class among all classes' texts."""
    assert views.text_KE is not None
    return F.cross_entropy(views.attacked_BE @ (SCALE * views.text_KE).T, views.class_B, reduction="none")


def siamese(views: Views) -> Tensor:
    """Sim-CLIP as its paper states it: each of both embeddings is drawn to where the other one is held."""
    assert views.clean_BE is not None
    return _half_cosine(views.attacked_BE, views.clean_BE) + _half_cosine(views.clean_BE, views.attacked_BE)


def siamese_as_released(views: Views) -> Tensor:
    """Sim-CLIP as its code has it: the clean embedding is the frozen base's, so half of the loss teaches nothing."""
    return _half_cosine(views.attacked_BE, views.base_BE) + _half_cosine(views.base_BE, views.attacked_BE)


def _half_cosine(moved_BE: Tensor, held_BE: Tensor) -> Tensor:
    return -F.cosine_similarity(moved_BE, held_BE.detach(), dim=-1) / 2


TOWER_OBJECTIVES.register("fare", TowerObjective(to_base, to_base, "FARE fine-tuning (unsupervised)"))
TOWER_OBJECTIVES.register(
    "tecoa",
    TowerObjective(
        label_cross_entropy, label_cross_entropy, "TeCoA fine-tuning (supervised)", normalised=True, needs_text=True
    ),
)
TOWER_OBJECTIVES.register(
    "simclip", TowerObjective(to_base, siamese, "Sim-CLIP fine-tuning (siamese)", needs_clean=True, mixes=False)
)
TOWER_OBJECTIVES.register(
    "simclip_as_released",
    TowerObjective(to_base, siamese_as_released, "Sim-CLIP fine-tuning as its code is", mixes=False),
)
