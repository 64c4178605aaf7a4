"""What a measurement gives: rates of matrix products, operations, batches, and all of them for one tower."""

import statistics
from dataclasses import dataclass

from benchmarks.gpu.shapes import Tower

ATTACK_STEPS = 100
"""Of the attack whose time is reported: APGD-100."""

PARTS = ("encoder", "projector and splice", "language model", "head and loss", "attack")
"""Of a step; each but the last is a forward and a backward pass."""


@dataclass(frozen=True)
class MatrixRate:
    """A matrix product [rows, inner] x [inner, columns], and how fast it ran, in FLOP/s."""

    rows: int
    inner: int
    columns: int
    rate: float


@dataclass(frozen=True)
class Batch:
    """What a batch size costs.

    Attributes:
        step_s: seconds of a step: forward, backward and the attack's own arithmetic, for the whole batch.
        forward_s: seconds of a look without gradient, with which an attack ends.
        peak_bytes: most memory allocated, weights included; None where it is not known (CPU).
    """

    count: int
    step_s: float
    forward_s: float
    peak_bytes: int | None

    @property
    def sample_s(self) -> float:
        """Seconds per sample of an attack of :data:`ATTACK_STEPS` steps."""
        return (ATTACK_STEPS * self.step_s + self.forward_s) / self.count


@dataclass(frozen=True)
class Flops:
    """Of one step for one sample: counted as it ran, attention's part of that, and estimated from the shapes."""

    counted: int
    attention: int
    estimated: int


@dataclass(frozen=True)
class TowerResult:
    """All measurements with one tower.

    Attributes:
        weight_bytes: of encoder, projector and language model.
        too_large: size that did not fit, or None.
        parts_s: seconds of a step by part, at the best size.
        compiled: the best size with torch.compile, or None.
    """

    name: str
    tower: Tower
    weight_bytes: int
    flops: Flops
    batches: tuple[Batch, ...]
    too_large: int | None
    parts_s: dict[str, float]
    compiled: Batch | None

    @property
    def best(self) -> Batch:
        """The size of least time per sample."""
        return min(self.batches, key=lambda batch: batch.sample_s)

    @property
    def sample_bytes(self) -> float | None:
        """Memory that a sample more needs: slope of the peak over the batch size."""
        points = [(batch.count, batch.peak_bytes) for batch in self.batches if batch.peak_bytes is not None]
        if len(points) < 2:
            return None
        return statistics.linear_regression(*zip(*points, strict=True)).slope

    def rate(self, batch: Batch) -> float:
        """Counted operations per second in a step.

        Returns:
            FLOP/s.
        """
        return self.flops.counted * batch.count / batch.step_s
