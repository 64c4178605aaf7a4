"""How a whole tower is fine-tuned: the published recipes, and their schedule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rllava.attacks.inner import InnerPgd
from rllava.training.tower_objectives import TOWER_OBJECTIVES


@dataclass(frozen=True)
class TowerTraining:
    """How a tower is fine-tuned; the defaults are FARE's.

    Attributes:
        objective: name in :data:`rllava.training.tower_objectives.TOWER_OBJECTIVES`.
        warmup: updates with rising learning rate.
        batch_size: images per update.
        momentum: of the optimiser ``sgd``.
        weight_decay: of all parameters, norms and biases too, as published.
        clean_weight: share of the squared distance of clean embeddings from the base's in the loss.
        trades: whether attacked embeddings are drawn to the tower's own clean ones.
        seed: of attack starts, and of dropout where a tower has it.
    """

    objective: str = "fare"
    steps: int = 20_000
    warmup: int = 1400
    batch_size: int = 128
    learning_rate: float = 1e-5
    weight_decay: float = 1e-4
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    attack: InnerPgd = field(default_factory=InnerPgd)
    clean_weight: float = 0.0
    trades: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        objective = TOWER_OBJECTIVES.get(self.objective)
        if self.optimiser not in ("adamw", "sgd"):
            raise ValueError(f"optimiser: expected 'adamw' or 'sgd', got {self.optimiser!r}")
        if not (self.steps >= 1 and 0 <= self.warmup <= self.steps):
            raise ValueError(f"warmup: expected 0 to {self.steps} of the {self.steps} steps, got {self.warmup}")
        if not 0 <= self.clean_weight <= 1:
            raise ValueError(f"clean_weight: expected a share from 0 to 1, got {self.clean_weight}")
        if not objective.mixes and (self.clean_weight or self.trades):
            raise ValueError(f"clean_weight, trades: would change nothing in {self.objective}; leave them out")

    def versions(self) -> Mapping[str, int]:
        """Of the objective."""
        return {"objective": TOWER_OBJECTIVES.get(self.objective).version}

    @property
    def needs_clean(self) -> bool:
        """Whether the update encodes the clean images too."""
        return TOWER_OBJECTIVES.get(self.objective).needs_clean or self.clean_weight > 0 or self.trades


def published(method: Literal["fare", "tecoa", "simclip"], epsilon: float) -> TowerTraining:
    """The training of a released encoder, as the README of its authors starts it.

    Args:
        epsilon: budget in 1/255; 2 and 4 are released.
    """
    attack = InnerPgd(epsilon)
    if method == "simclip":
        name, size = "simclip_as_released", 64
        return TowerTraining(name, 10_000, batch_size=size, learning_rate=1e-3, weight_decay=1e-5, attack=attack)
    return TowerTraining(method, attack=attack)


def learning_rate(training: TowerTraining, step: int) -> float:
    """Of an update, counted from 0: linear warm-up, then cosine to zero.

    The published scripts set the rate behind each update, so the first one is at the full rate, and the second at that
    of two steps of warm-up.
    """
    if step == 0:
        return training.learning_rate
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    done, rest = step - training.warmup, training.steps - training.warmup
    return 0.5 * (1 + math.cos(math.pi * done / rest)) * training.learning_rate
