"""What fits where: the memory of a plan's phases beside that of the nodes they may run on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.node_types import Machinery, NodeType
from cluster.placement import Placement
from rllava.recipes import Candidate
from rllava.specs import EvalSpec, ModelSpec
from sweeps.amounts import Counter
from sweeps.plan import Plan


@dataclass(frozen=True)
class Memory:
    """A phase's memory on one worker, and which nodes hold it.

    Attributes:
        bytes: at the peak.
        samples: that are looked at together.
        fits: by node type, most samples that fit; 0: not one. A training's micro-batch fits as a whole, or not.
    """

    phase: str
    candidate: str
    bytes: float
    samples: int
    fits: Mapping[str, int]


@dataclass
class Fitting:
    """Fits the phases of a plan onto machines.

    Attributes:
        fits: by model, precisions and node type, samples that an attack worker looks at together.
    """

    plan: Plan
    machinery: Machinery
    placement: Placement
    counter: Counter
    fits: dict[Any, int] = field(default_factory=dict)

    def batch(self, spec: EvalSpec) -> int:
        """Samples in flight: the grid's, or what memory holds of where the attack would run."""
        if self.plan.grid.batch_size:
            return self.plan.grid.batch_size
        kinds = self.kinds(self.placement.attack_worker)
        return max([1, *(self.fit(spec, kind) for kind in kinds)])

    def fit(self, spec: EvalSpec, kind: NodeType) -> int:
        """How many samples a worker on such a node looks at together; the longest texts of a candidate decide."""
        key = (spec.model, spec.encoders, spec.precisions, kind.name)
        if key not in self.fits:
            longest = max(
                self.plan.grid.benchmarks,
                key=lambda benchmark: self.counter.texts(replace(spec, benchmark=benchmark)).texts.length,
            )
            one, two = (self.counter.pool_memory(replace(spec, benchmark=longest), count) for count in (1, 2))
            if one is None or two is None:
                return 1
            each = max(two.activations - one.activations, 1.0)
            free = _memory_of(kind) - one.weights - (one.activations - each)
            self.fits[key] = max(0, int(free // each))
        return min(self.fits[key], spec.benchmark.rows_per_shard)

    def kinds(self, request: Mapping[str, float]) -> list[NodeType]:
        """Those that have room for a worker."""
        return [kind for kind in self.machinery.kinds if kind.most and kind.room(request)]

    def memory(self) -> list[Memory]:
        """Of every training stage and of the largest attack of every candidate, whether found or not."""
        entries = []
        for candidate in self.plan.grid.candidates:
            if candidate.trains and isinstance(candidate.model, ModelSpec):
                entries += self._training_memory(candidate.name, candidate.model)
            evaluations = [spec for spec, _ in self.plan.evaluations(candidate) if spec.condition.searches]
            entries += self._attack_memory(candidate.name, evaluations or [self.plan.evaluations(candidate)[0][0]])
        return entries

    def _training_memory(self, name: str, spec: ModelSpec) -> list[Memory]:
        found = []
        for number, stage in enumerate(spec.stages, start=1):
            needed = self.counter.training(replace(spec, stages=(stage,)))
            if needed.cost is not None:
                fits = {
                    kind.name: stage.micro_batch if needed.cost.memory <= _memory_of(kind) else 0
                    for kind in self.kinds(self.placement.train_worker)
                    if _memory_of(kind)
                }
                phase = f"training stage {number}, micro-batch {stage.micro_batch}"
                found.append(Memory(phase, name, needed.cost.memory, stage.micro_batch, fits))
        return found

    def _attack_memory(self, name: str, specs: Sequence[EvalSpec]) -> list[Memory]:
        spec = max(specs, key=lambda spec: self.counter.texts(spec).texts.length)
        batch = min(self.batch(spec), spec.benchmark.rows_per_shard)
        cost = self.counter.pool_memory(spec, batch)
        if cost is None:
            return []
        kinds = [kind for kind in self.kinds(self.placement.attack_worker) if _memory_of(kind)]
        fits = {kind.name: self.fit(spec, kind) for kind in kinds}
        return [Memory(f"attack, {'+'.join(spec.precisions)}", name, cost.memory, batch, fits)]


@dataclass
class TooLarge:
    """Says which LLaVAs no machine holds, in training or under the largest attack.

    Attributes:
        plan: of whose benchmarks, conditions and storage theirs are.
        known: by LLaVA and encoders, what was found.
    """

    plan: Plan
    machinery: Machinery
    placement: Placement
    known: dict[Any, str | None] = field(default_factory=dict)

    def __call__(self, candidate: Candidate) -> str | None:
        """Why a candidate cannot be held; None: it can, or nothing is known of the machines' memory."""
        key = (candidate.model, candidate.judged)
        if key not in self.known:
            plan = replace(self.plan, grid=replace(self.plan.grid, candidates=(candidate,)))
            counter = Counter(plan, self.placement.train_workers)
            memory = Fitting(plan, self.machinery, self.placement, counter).memory()
            self.known[key] = next(iter(tight(memory)), None)
        return self.known[key]


def tight(memory: Sequence[Memory]) -> list[str]:
    """What no node holds, a line each; of nodes whose memory is not known nothing is said."""
    notes = []
    for entry in memory:
        if entry.fits and not any(entry.fits.values()):
            notes.append(
                f"{entry.candidate}, {entry.phase}: {entry.bytes / 2**30:.1f} GiB for {entry.samples} sample"
                f"{'s' if entry.samples > 1 else ''} fit on none of {', '.join(entry.fits)}"
            )
    return notes


def _memory_of(kind: NodeType) -> float:
    """Of its GPU, or of a host without one; 0: not known."""
    if kind.gpu is not None:
        return kind.gpu.memory
    return 0.0 if kind.resources.get("GPU") else kind.memory
