"""How fast a sweep's phases run: from what earlier steps in its storage took, a calibration, or data sheets.

A rate of another model is taken where it has the same language model: then most of its operations are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.node_types import Gpu
from cluster.rates import (
    GROUP_START_S,
    LOAD_RATE,
    POOL_START_S,
    STEPS_SHARE,
    Rate,
    Work,
    assumed_rate,
    measured_rate,
)
from rllava.conditions.attack import Attack
from rllava.data.shards import list_shards, read_shard
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.snapshot import Snapshot
from rllava.specs import EvalSpec, ModelSpec, WholeModel
from sweeps.amounts import Counter
from sweeps.plan import Plan

Pairs = dict["Key", list[tuple[float, float]]]
"""Operations and seconds of steps, by what their rate is for."""

STORAGE = "what earlier steps in this storage took"


@dataclass(frozen=True)
class Key:
    """What a rate is for.

    Attributes:
        language_model: name.
        stage: of a training, from 0; else -1.
    """

    work: Work
    language_model: str
    stage: int = -1


@dataclass(frozen=True)
class Taken:
    """Gradient steps that attacks have taken.

    Attributes:
        share: of the most that they could.
        models: that were attacked.
    """

    share: float
    samples: int
    models: int

    @property
    def expected(self) -> float:
        """The mean over the models that are known and one more that takes every step: those to come may be more robust,
        and a sample that is not beaten takes all."""
        return (self.share * self.models + 1.0) / (self.models + 1)


@dataclass
class Known:
    """Rates and shares that were measured, and the assumptions that stand in for the rest.

    Attributes:
        threads: cores of a worker that has no GPU.
        rates: measured ones.
        by_model: measured for one model alone; they count before the others.
        step_shares: by protocol and budget, the share of an attack's steps that were taken.
    """

    threads: float
    rates: dict[Key, Rate] = field(default_factory=dict)
    by_model: dict[tuple[Key, str], Rate] = field(default_factory=dict)
    step_shares: "dict[tuple[str, float], Taken]" = field(default_factory=dict)
    used: dict[str, None] = field(default_factory=dict)
    searches: bool = False

    def rate(self, spec: Any, work: Work, stage: int, precision: str, gpu: Gpu | None, trains: bool) -> Rate:
        """The best known one."""
        model = spec if isinstance(spec, ModelSpec) else spec.model
        key = key_of(model, work, stage)
        known = self.by_model.get((key, model.name)) or self.rates.get(key)
        if known is None and work == "images":  # the same steps as an attack's
            step = replace(key, work="attack")
            known = self.by_model.get((step, model.name)) or self.rates.get(step)
        if known is not None:
            return known
        found = assumed_rate(work, precision, gpu, self.threads, trains)
        self.used[f"{work.replace('_', ' ')}, {precision}: {found.source}"] = None
        return found

    def shares(self) -> dict[tuple[str, float], float]:
        """By protocol and budget, the share of gradient steps that is expected."""
        return {key: taken.expected for key, taken in self.step_shares.items()}

    def assumed(self) -> list[str]:
        """What was asked for and not measured."""
        lines = [*self.used, f"{GROUP_START_S.what}: {GROUP_START_S.value:g} s, {GROUP_START_S.source}"]
        lines += [f"{entry.what}: {entry.value:g}, {entry.source}" for entry in (POOL_START_S, LOAD_RATE)]
        if self.searches and not self.step_shares:
            lines.append(f"{STEPS_SHARE.what}: {STEPS_SHARE.value:g}, {STEPS_SHARE.source}")
        for (label, size), taken in sorted(self.step_shares.items()):
            lines.append(
                f"steps of {label} at {size:g}/255: {taken.expected:.0%} of the most (in storage {taken.share:.0%}, "
                f"over {taken.samples} samples of {taken.models} model{'s' if taken.models > 1 else ''})"
            )
        return lines


def key_of(model: ModelSpec | CheckpointSpec, work: Work, stage: int) -> Key:
    """What a rate of a model's phase is found by."""
    name = model.language_model.name if isinstance(model, ModelSpec) else model.name
    return Key(work, name, stage if work == "training" else -1)


def from_storage(plan: Plan, found: Snapshot, threads: float, workers: int) -> Known:
    """Rates and shares from the steps of a plan that are complete.

    Args:
        workers: of a training, where its facts do not say.
    """
    known = Known(threads, searches=any(condition.searches for condition in plan.grid.conditions))
    steps = [step for level in plan.levels for of in level.values() for step in of]
    done = [step for step in steps if found.is_complete(plan.task(step).artifact.relative, step.first)]
    evaluations = [step for step in done if step.kind == "records"]
    taken = {step: _steps_taken(plan, step.spec) for step in evaluations if step.spec.condition.searches}
    known.step_shares = _shares(plan, taken)
    counter = Counter(plan, workers, {key: seen.share for key, seen in known.step_shares.items()})
    seconds = {step: float(found.facts(plan.task(step).artifact.relative).get("seconds", 0.0)) for step in done}
    training: Pairs = {}
    for step in done:
        if step.kind == "models":
            group = int(found.facts(plan.task(step).artifact.relative).get("workers", workers))
            needed = counter.training(step.spec)
            net = max(seconds[step] - GROUP_START_S.value, 0.1 * seconds[step]) * group
            for index, amount in enumerate(needed.amounts):
                pair = (amount.flops, net * amount.flops / needed.flops)
                training.setdefault(key_of(step.spec, "training", index), []).append(pair)
    _take(known, training)
    images: Pairs = {}
    for step in done:
        if step.kind == "images":
            pair = (counter.image(step.spec).flops, seconds[step])
            images.setdefault(key_of(step.spec.model, "images", -1), []).append(pair)
    _take(known, images)
    cells = {step: counter.evaluation(step.spec, plan.grid.batch_size or 8) for step in evaluations}
    answers: Pairs = {}
    for step, needed in cells.items():
        if needed.amounts and all(amount.work == "answers" for amount in needed.amounts):
            answers.setdefault(key_of(step.spec.model, "answers", -1), []).append((needed.flops, seconds[step]))
    _take(known, answers)
    attacks: Pairs = {}
    for step, needed in cells.items():
        steps_s = seconds[step] - sum(
            known.rates[key].seconds(amount.flops)
            for amount in needed.amounts
            if amount.work == "answers" and (key := key_of(step.spec.model, "answers", -1)) in known.rates
        )
        flops = sum(amount.flops for amount in needed.amounts if amount.work == "attack")
        if flops:
            pair = (flops, max(steps_s, 0.1 * seconds[step]))
            attacks.setdefault(key_of(step.spec.model, "attack", -1), []).append(pair)
    _take(known, attacks)
    return known


def _take(known: Known, pairs: Mapping[Key, list[tuple[float, float]]]) -> None:
    for key, own in pairs.items():
        rate = measured_rate(own, STORAGE)
        if rate is not None:
            known.rates[key] = rate


def _steps_taken(plan: Plan, spec: EvalSpec) -> list[int]:
    """Gradient steps of every sample that has a record."""
    folder = plan.store.artifact("records", spec.name, spec).path
    return [
        int(steps or 0)
        for part in list_shards(plan.store.filesystem, folder)
        for steps in read_shard(plan.store.filesystem, part, ["steps"]).column("steps").to_pylist()
    ]


def _shares(plan: Plan, taken: Mapping[Any, list[int]]) -> dict[tuple[str, float], Taken]:
    sums: dict[tuple[str, float], list[float]] = {}
    models: dict[tuple[str, float], set[WholeModel]] = {}
    counter = Counter(plan, 1)
    for step, counts in taken.items():
        spec: EvalSpec = step.spec
        if not counts or not isinstance(spec.condition, Attack):
            continue
        labels = counter.texts(spec).labels
        most = sum(entry.steps for entry in spec.condition.passes(spec.benchmark, labels))
        total = sums.setdefault((spec.condition.label, spec.condition.epsilon), [0.0, 0.0, 0.0])
        total[0] += sum(counts)
        total[1] += most * len(counts)
        total[2] += len(counts)
        models.setdefault((spec.condition.label, spec.condition.epsilon), set()).add(spec.whole_model)
    return {
        key: Taken(steps / most, int(count), len(models[key])) for key, (steps, most, count) in sums.items() if most
    }
