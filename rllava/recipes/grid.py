"""Grids: whom a sweep compares, on what, and under which conditions; the registry of those that have a name."""

import itertools
from dataclasses import dataclass

from rllava.attacks.protocols import Protocol
from rllava.conditions.attack import Attack, ByProtocol
from rllava.conditions.clean import Clean
from rllava.conditions.condition import Condition
from rllava.data.benchmarks import BenchmarkSpec
from rllava.errors import UserError
from rllava.recipes.candidate import Candidate
from rllava.registry import Registry
from rllava.specs import ModelSpec


@dataclass(frozen=True)
class Grid:
    """Candidates x benchmarks x conditions, and how the work is cut.

    Attributes:
        name: of the preset that it is, or was made from.
        conditions: what models are shown: clean images first, budgets rising.
        batch_size: samples attacked together; 0: as many as memory holds.
        checkpoint_every: optimiser steps between training checkpoints.
        corrupted_at: size at which images are corrupted, in pixels of the longer side.
        for_gpus: whether its training is meant for GPUs: CPUs do it only if they are asked for.
    """

    name: str
    about: str
    candidates: tuple[Candidate, ...]
    benchmarks: tuple[BenchmarkSpec, ...]
    conditions: tuple[Condition, ...]
    batch_size: int
    checkpoint_every: int
    corrupted_at: int = 336
    for_gpus: bool = False

    @property
    def model(self) -> ModelSpec:
        """The first LLaVA that is trained: whoever is only named is trained as it is, but for encoders and seed.

        Raises:
            UserError: if none is.
        """
        if not self.models:
            raise UserError(f"preset {self.name}: it trains no LLaVA, so it says nothing of how another one would be")
        return self.models[0]

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """LLaVAs that are trained, each once."""
        models = (candidate.model for candidate in self.candidates)
        return tuple(dict.fromkeys(model for model in models if isinstance(model, ModelSpec)))

    @property
    def clean(self) -> Clean:
        """The clean images with which everything is compared."""
        return next(condition for condition in self.conditions if isinstance(condition, Clean))

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """Those of the conditions that are attacks."""
        return tuple(condition for condition in self.conditions if isinstance(condition, Attack))

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """Of its attacks and searches, each once."""
        found = (entry.protocol for entry in self.conditions if isinstance(entry, ByProtocol))
        return tuple(dict.fromkeys(found))

    @property
    def budgets(self) -> tuple[float, ...]:
        """Of its conditions, in 1/255, rising; 0 is the clean image."""
        return tuple(sorted({entry.epsilon for entry in self.conditions if entry.epsilon is not None}))


def check_grid(grid: Grid) -> None:
    """Refuses a grid that asks for what cannot be done.

    Raises:
        UserError: if a task cannot be evaluated or attacked, or a protocol is not for a benchmark or for so many
            candidates.
    """
    for benchmark in grid.benchmarks:
        benchmark.task.check(attacked=any(condition.searches for condition in grid.conditions))
    for protocol, benchmark in itertools.product(grid.protocols, grid.benchmarks):
        replays = [entry for entry in protocol.rounds(benchmark.task.kind) if entry.start.at == "other"]
        first, names = protocol.after, {candidate.name for candidate in grid.candidates}
        if first and len(names) * len(first) > len(replays):
            raise UserError(
                f"protocol {protocol.name} starts from the images of at most {len(replays) // len(first)} "
                f"candidates, not of {len(names)}; give fewer --encoders"
            )


PRESETS: Registry[Grid] = Registry("preset", "rllava.presets", folder="rllava.recipes")
