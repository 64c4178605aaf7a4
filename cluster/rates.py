"""How fast phases run, and where that is known from. No torch, no Ray.

What was measured counts before what is assumed; every rate says where it is from, and a plan prints it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.node_types import Gpu

Work = Literal["training", "attack", "answers", "images"]


@dataclass(frozen=True)
class Rate:
    """Seconds of some work.

    Attributes:
        flops_per_s: of one worker.
        call_s: seconds of each call on top, whatever its size.
        source: for people.
        assumed: whether nothing of it was measured here.
    """

    flops_per_s: float
    source: str
    call_s: float = 0.0
    assumed: bool = False

    def seconds(self, flops: float, calls: float = 0.0) -> float:
        """Of one worker."""
        return flops / self.flops_per_s + calls * self.call_s


@dataclass(frozen=True)
class Assumption:
    """A number that a plan rests on where nothing was measured."""

    what: str
    value: float
    source: str


UTILISATION = {
    "training_frozen": Assumption(
        "share of a GPU's peak in training with a frozen language model", 0.41,
        "LLaVA's README: 3.5 h on 8 A100 for 558 K pairs, by the operations counted here",
    ),
    "training": Assumption(
        "share of a GPU's peak in training the language model", 0.32,
        "LLaVA's README: 10 h on 8 A100 for 665 K conversations, by the operations counted here",
    ),
    "attack_half": Assumption(
        "share of a GPU's peak in half-precision attack steps", 0.45,
        "assumed, between 0.35 for single samples and 0.55 in batches; python -m benchmarks.gpu_7b measures it",
    ),
    "attack_float32": Assumption(
        "share of a GPU's float32 peak in float32 attack steps", 0.6,
        "assumed; python -m benchmarks.gpu_7b --precision float32 measures it",
    ),
    "answers": Assumption(
        "share of a GPU's peak while answers are generated", 0.1,
        "assumed: the prompt's pass is fast, each token reads all weights",
    ),
}  # fmt: skip

CPU_RATE = Assumption(
    "operations per second and core", 14.5e9,
    "benchmarks/sheets/where_time_goes.md: an embedded LLaVA on two cores; a model of 100M parameters does 67e9",
)  # fmt: skip

GROUP_START_S = Assumption("seconds until a training group computes", 14.0, "measured on two cores, one group alone")
POOL_START_S = Assumption("seconds until a pool of workers has its first unit", 5.0, "measured on two cores")
LOAD_RATE = Assumption("bytes per second at which a worker reads its model", 1e9, "assumed: one disk or link")
STEPS_SHARE = Assumption(
    "share of the protocol's gradient steps that are taken", 1.0, "nothing attacked in this storage: the most there is"
)


def assumed_rate(work: Work, precision: str, gpu: Gpu | None, threads: float, trains_language_model: bool) -> Rate:
    """A rate from data sheets and assumptions.

    Args:
        gpu: None: a CPU.
        threads: cores of the worker, where it has no GPU.
    """
    if gpu is None or gpu.half is None or gpu.float32 is None:
        return Rate(CPU_RATE.value * max(1.0, threads), CPU_RATE.source, assumed=True)
    half = precision != "float32"
    if work == "training":
        used = UTILISATION["training" if trains_language_model else "training_frozen"]
    elif work == "answers":
        used = UTILISATION["answers"]
    else:
        used = UTILISATION["attack_half" if half else "attack_float32"]
    peak = gpu.half if half else gpu.float32
    return Rate(peak * used.value, f"{gpu.name}: {used.value:.0%} of {peak / 1e12:.3g} TFLOP/s", assumed=True)


def measured_rate(pairs: Sequence[tuple[float, float]], source: str) -> Rate | None:
    """A rate from what earlier work took.

    Args:
        pairs: operations and seconds of each; those without either are passed over.
    """
    known = [(flops, seconds) for flops, seconds in pairs if flops > 0 and seconds > 0]
    if not known:
        return None
    return Rate(sum(flops for flops, _ in known) / sum(seconds for _, seconds in known), source)
