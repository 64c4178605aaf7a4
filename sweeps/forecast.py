"""What a sweep would do, and cost, before any of it starts.

    forecast(plan, ...) -> Forecast

The plan's own steps, found or to do; what each takes (:mod:`sweeps.amounts`); how fast that goes here, or where it
would run (:mod:`sweeps.known_rates`); and when, on which nodes, for how much (:mod:`cluster.schedule`).
"""

from collections import Counter as Counts
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.node_types import Gpu, Machinery, NodeType
from cluster.placement import Placement
from cluster.prices import Prices, check_prices
from cluster.rates import GROUP_START_S, LOAD_RATE, POOL_START_S, Rate, Work
from cluster.schedule import NoRoomError, Phase, Timetable, Trial, schedule
from rllava.footprint import Parameters, parameters
from rllava.missing import Missing
from rllava.snapshot import Snapshot
from rllava.specs import ModelSpec
from rllava.steps import Step
from sweeps.amounts import Amount, Counter, Needed
from sweeps.fitting import Fitting, Memory, tight
from sweeps.known_rates import Known
from sweeps.plan import Plan


@dataclass(frozen=True)
class StepForecast:
    """One step.

    Attributes:
        kind: folder of the storage.
        path: of its artifact, below the storage's root.
        found: whether it is there already; then it takes nothing.
        worker_s: seconds of all its workers together; None: not estimated.
        most_s: the same, if no sample stops early.
        rate: where its speed is known from.
    """

    kind: str
    name: str
    path: str
    trial: str
    level: int
    found: bool
    needed: Needed
    worker_s: float | None
    most_s: float | None
    gpu_s: float
    rate: str


@dataclass(frozen=True)
class Forecast:
    """What a plan comes to.

    Attributes:
        missing: inputs that are not here; the plan goes on without.
        sizes: by LLaVA: parameters and visual tokens of an image.
        cost_usd: by node type; None: no price is known.
        assumed: what the numbers rest on that was not measured.
        notes: what a person should look at.
    """

    sweep: str
    preset: str
    machinery: Machinery
    missing: tuple[Missing, ...]
    steps: tuple[StepForecast, ...]
    sizes: Mapping[str, tuple[Parameters, int]]
    memory: tuple[Memory, ...]
    timetable: Timetable | None
    trials: int
    placement: Placement
    cost_usd: Mapping[str, float | None]
    prices: str
    rates: tuple[str, ...]
    assumed: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """By kind of steps, how many are found and how many are to do."""
        found, to_do = (Counts(step.kind for step in self.steps if step.found is there) for there in (True, False))
        return {kind: (found[kind], to_do[kind]) for kind in dict.fromkeys(step.kind for step in self.steps)}

    def hours(self, *kinds: str, most: bool = False, gpu: bool = False) -> float:
        """Worker-hours, or GPU-hours, of some kinds of steps."""
        own = [step for step in self.steps if step.kind in kinds]
        seconds = [(step.gpu_s if gpu else (step.most_s if most else step.worker_s) or 0.0) for step in own]
        return sum(seconds) / 3600

    @property
    def total_usd(self) -> float | None:
        """Of all node types; None if one that is used has no price."""
        used = [
            self.cost_usd[name]
            for name, hours in (self.timetable.node_hours if self.timetable else {}).items()
            if hours
        ]
        return None if None in used or not used else sum(value for value in used if value is not None)


def forecast(
    plan: Plan, found: Snapshot, missing: Sequence[Missing], machinery: Machinery, placement: Placement, trials: int,
    prices: Prices, known: Known,
) -> Forecast:  # fmt: skip
    """Plans a sweep's work on some machines.

    Args:
        found: what is in its storage.
        placement: of its parts.
        trials: candidates at a time.
        known: how fast phases run, as far as that is known.

    Raises:
        UserError: if a user's own table of prices lacks a node type.
    """
    check_prices(prices, machinery.kinds)
    counter = Counter(plan, placement.train_workers, known.shares())
    builder = _Builder(plan, found, machinery, placement, counter, known)
    steps = builder.steps()
    notes = [*builder.notes]
    levels = builder.trials(steps)
    try:
        timetable = schedule(levels, machinery, placement.trial, trials)
    except NoRoomError as error:
        timetable = None
        notes.append(f"the machines cannot hold it: {error}")
    for kind in machinery.kinds:
        if kind.resources.get("GPU") and kind.gpu is None:
            notes.append(f"{kind.name}: no data sheet of its GPU is here; unless measured, it counts as a CPU's core")
    memory = builder.fitting.memory()
    notes += tight(memory)
    hours = timetable.node_hours if timetable else {}
    cost = {kind.name: _cost(kind, hours.get(kind.name, 0.0), prices) for kind in machinery.kinds}
    return Forecast(
        plan.sweep, plan.grid.name, machinery, tuple(missing), tuple(steps), builder.sizes(), tuple(memory), timetable,
        trials, placement, cost, prices.source, tuple(dict.fromkeys(step.rate for step in steps if step.rate)),
        (*counter.assumed, *known.assumed()), tuple(notes),
    )  # fmt: skip


def _cost(kind: NodeType, hours: float, prices: Prices) -> float | None:
    price = prices.of(kind)
    return None if price is None else price * hours


@dataclass
class _Builder:
    plan: Plan
    found: Snapshot
    machinery: Machinery
    placement: Placement
    counter: Counter
    known: Known

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self.fitting = Fitting(self.plan, self.machinery, self.placement, self.counter)

    def steps(self) -> list[StepForecast]:
        """All of them: data, then level by level and trial by trial."""
        data = [self._data(spec) for spec in self.plan.data_specs()]
        made = [
            self._step(step, name, level)
            for level, trials in enumerate(self.plan.levels)
            for name, of in trials.items()
            for step in of
        ]
        if any(step.kind == "judgements" and not step.found for step in made):
            self.notes.append("judges are not in the time: a lexicon takes seconds, a model as long as it is large")
        return [*data, *made]

    def _data(self, spec: Any) -> StepForecast:
        there = self.found.is_complete(self.plan.data(spec).relative)
        return StepForecast(
            "data", spec.name, self.plan.data(spec).relative, "", -1, there, Needed(()), 0.0, 0.0, 0.0, ""
        )

    def _step(self, step: Step, trial: str, level: int) -> StepForecast:
        item = self.plan.task(step)
        there = self.found.is_complete(item.artifact.relative, step.first)
        needed = Needed(()) if there else self._needed(step)
        seconds, most, source = (0.0, 0.0, "") if there else self._seconds(step, needed)
        worker = self.placement.train_worker if step.kind == "models" else self.placement.attack_worker
        return StepForecast(
            step.kind, step.spec.name, item.artifact.relative, trial, level, there, needed, seconds, most,
            (seconds or 0.0) * worker.get("GPU", 0.0), source,
        )  # fmt: skip

    def _needed(self, step: Step) -> Needed:
        if step.kind == "models":
            return self.counter.training(step.spec)
        if step.kind == "images":
            return self.counter.image(step.spec)
        if step.kind == "records":
            return self.counter.evaluation(step.spec, self.fitting.batch(step.spec))
        return Needed(())

    def _seconds(self, step: Step, needed: Needed) -> tuple[float | None, float | None, str]:
        """Worker-seconds, expected and at most, and where the speed is known from."""
        if not needed.amounts:
            return (None, None, "") if step.kind != "judgements" else (0.0, 0.0, "")
        request = self.placement.train_worker if step.kind == "models" else self.placement.attack_worker
        kinds = self.fitting.kinds(request)
        gpu = kinds[0].gpu if kinds and request.get("GPU") else None
        expected = most = 0.0
        sources: dict[str, None] = {}
        for index, amount in enumerate(needed.amounts):
            trains = index < len(needed.trains_language_model) and needed.trains_language_model[index]
            rate = self._rate(step, amount, index, gpu, trains)
            expected += rate.seconds(amount.flops, amount.calls)
            most += rate.seconds(amount.most, amount.calls)
            sources[rate.source] = None
        return expected, most, "; ".join(sources)

    def _rate(self, step: Step, amount: Amount, index: int, gpu: Gpu | None, trains: bool) -> Rate:
        work: Work = amount.work
        return self.known.rate(step.spec, work, index, amount.precision, gpu, trains)

    def trials(self, steps: Sequence[StepForecast]) -> list[list[Trial]]:
        """What the schedule is given: per level, the trials with something to do."""
        by_path = {step.path: step for step in steps}
        levels = []
        for trials in self.plan.levels:
            level = []
            for name, of in trials.items():
                own = [(step, by_path[self.plan.task(step).artifact.relative]) for step in of]
                phases = self._phases([(step, entry) for step, entry in own if not entry.found])
                if phases:
                    level.append(Trial(name, tuple(phases)))
            levels.append(level)
        return levels

    def _phases(self, to_do: Sequence[tuple[Step, StepForecast]]) -> list[Phase]:
        phases = []
        for step, entry in to_do:
            if step.kind == "models":
                phases.append(self._training(step.spec, entry))
        for kind, name in (("images", "images"), ("records", "attacks")):
            own = [(step, entry) for step, entry in to_do if step.kind == kind]
            if own:
                phases.append(self._pool(name, own))
        return phases

    def _training(self, spec: ModelSpec, entry: StepForecast) -> Phase:
        workers = self.placement.train_workers
        start = GROUP_START_S.value + self._load_s(spec, entry)
        seconds = (entry.worker_s or 0.0) / workers
        return Phase(f"training {spec.name}", self.placement.train_worker, workers, (seconds,), True, start)

    def _pool(self, name: str, own: Sequence[tuple[Step, StepForecast]]) -> Phase:
        units: dict[Any, float] = {}
        for step, entry in own:
            seconds = entry.worker_s or 0.0
            if step.kind == "images":
                units[entry.path] = seconds
                continue
            benchmark = step.spec.benchmark
            count = step.first or benchmark.shards_of(benchmark.samples)
            apart = step.spec.condition.label if step.spec.condition.changes_images else ""
            for shard in range(count):
                key = (benchmark.name, shard, apart)
                units[key] = units.get(key, 0.0) + seconds / count
        spec = own[0][0].spec
        start = POOL_START_S.value + self._load_s(spec, own[0][1])
        return Phase(
            name, self.placement.attack_worker, self.placement.attack_workers, tuple(units.values()), False, start
        )

    def _load_s(self, spec: Any, entry: StepForecast) -> float:
        llava = self.counter.llava(spec if isinstance(spec, ModelSpec) else spec.model)
        return 0.0 if llava is None else parameters(llava).total * 4 / LOAD_RATE.value

    def sizes(self) -> dict[str, tuple[Parameters, int]]:
        """Parameters and visual tokens of every candidate's LLaVA."""
        found = {}
        for candidate in self.plan.grid.candidates:
            llava = self.counter.llava(candidate.model, candidate.used)
            if llava is not None:
                found[candidate.name] = (parameters(llava), llava.visual_tokens)
        return found
