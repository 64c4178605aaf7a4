"""How a search runs: what a trial of it is, what came out of one, what storage holds already, and the last look.

A (configuration, rung) is an ordinary trial: its work is the steps of a plan of one candidate, which find what is there
and leave what they make. Nothing of it is Ray Tune's to remember.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from analysis.loading import load_artifacts
from analysis.objectives import Column, mean_over_benchmarks, sample_values
from cluster.placement import Placement
from rllava.fingerprint import fingerprint
from rllava.recipes import Candidate
from rllava.search.history import FOUND, Event, Limits, Log, Study
from rllava.search.objectives import OBJECTIVES, Objective
from rllava.search.rungs import Rung
from rllava.search.space import Choice, Configuration, SearchSpace, applies
from rllava.snapshot import Snapshot
from rllava.specs import ModelSpec
from rllava.steps import WorkItem
from sweeps.events import Refused
from sweeps.plan import Plan
from sweeps.telling import Tell
from sweeps.work import work_on

MOST_LOOKED_FOR = 300
"""Configurations that are looked for in a storage before anything is proposed."""


@dataclass(frozen=True)
class Search:
    """A search.

    Attributes:
        name: of its folders below ``searches/`` and ``reports/``.
        plan: benchmarks, conditions, judges and storage; its candidates are all that its parts can make, so that all
            of them have been looked at.
        final_seeds: trainings with which it is scored, beside the search's own.
    """

    name: str
    plan: Plan
    space: SearchSpace
    objectives: tuple[Objective, ...]
    rungs: tuple[Rung, ...]
    limits: Limits
    sampler: str = "tpe"
    seed: int = 0
    final_seeds: tuple[int, ...] = ()

    def candidate(self, configuration: Configuration, rung: int) -> Candidate:
        """What a configuration is at a rung."""
        return self.space.candidate(configuration, self.rungs[rung].share)

    def plan_of(self, configuration: Configuration, rung: int) -> Plan:
        """The plan of one trial."""
        grid = replace(self.plan.grid, candidates=(self.candidate(configuration, rung),))
        return replace(self.plan, grid=grid, first_samples=self.rungs[rung].samples)

    def label(self, number: int, rung: int, configuration: Configuration) -> str:
        """What a trial is called on the board."""
        return f"{number}.{rung}:{self.candidate(configuration, rung).name}"

    def description(self) -> dict[str, Any]:
        """What makes two searches one: whoever differs in it cannot go on with the other's state."""
        grid = self.plan.grid
        return {
            "space": [asdict(setting) for setting in self.space.settings],
            "objectives": [objective.name for objective in self.objectives],
            "rungs": [asdict(rung) for rung in self.rungs],
            "recipe": fingerprint(replace(self.space.model, encoders=grid.model.encoders)),
            "benchmarks": [fingerprint(spec) for spec in grid.benchmarks],
            "conditions": [fingerprint(condition) for condition in grid.conditions],
            "judges": [judge.label for judge in self.plan.judges],
        }

    @property
    def front_sweep(self) -> str:
        """Name of the sweep that scores the front again; searches with other seeds have fronts of their own."""
        return f"{self.name}_front-{self.seed}"

    @property
    def columns(self) -> tuple[Column, ...]:
        """The objectives, as the analysis knows them."""
        return tuple(
            Column(entry.name, entry.kind, entry.sign, entry.budget, OBJECTIVES.get(entry.kind).worst)
            for entry in self.objectives
        )


@dataclass(frozen=True)
class Outcome:
    """What a finished trial is worth.

    Attributes:
        values: of the objectives, in their own direction.
        hours: of one worker, spent on its artifacts by whoever made them.
    """

    values: tuple[float, ...]
    hours: float


def work_on_search(tell: Tell, config: Mapping[str, Any], search: Search, placement: Placement) -> None:
    """All of a trial's work; what comes before something else comes first."""
    plan = search.plan_of(config["configuration"], config["rung"])
    (candidate,) = plan.grid.candidates
    refused = False

    def pass_on(event: Any) -> None:
        nonlocal refused
        refused = refused or isinstance(event, Refused)
        tell(event)

    steps = max((stage.steps for model in plan.grid.models for stage in model.stages), default=1)
    # Training's progress is told by another process, to which the function goes: that one takes the plain way.
    for level in range(len(plan.levels)):
        if not refused and candidate.trial in plan.levels[level]:
            work_on(tell, candidate.trial, plan, placement, max(1, steps // 4), level)


def hours_of(plan: Plan, found: Snapshot) -> float:
    """Hours of one worker spent on what is there of a plan's artifacts, data left out."""
    seconds = 0.0
    for task in made_by(plan):
        if found.is_finished(task.artifact.relative):
            facts = found.facts(task.artifact.relative)
            seconds += float(facts.get("seconds", 0.0)) * float(facts.get("workers", 1))
    return seconds / 3600


def hours_so_far(search: Search, configuration: Configuration, rung: int) -> float:
    """Hours of one worker spent on what is there of a trial's artifacts."""
    plan = search.plan_of(configuration, rung)
    return hours_of(plan, plan.store.snapshot([task.artifact for task in made_by(plan)]))


def made_by(plan: Plan) -> list[WorkItem]:
    """What a plan makes beside its data, each once."""
    return [task for task in plan.tasks() if task.step.kind != "data"]


def outcome_of(search: Search, configuration: Configuration, rung: int) -> Outcome:
    """What a trial whose work is complete has come to."""
    plan = search.plan_of(configuration, rung)
    (candidate,) = plan.grid.candidates
    found = plan.store.snapshot([task.artifact for task in made_by(plan)])
    records = load_artifacts(plan.storage, folders_of(plan, judged=False))
    judgements = load_artifacts(plan.storage, folders_of(plan, judged=True)) if plan.judges else records.iloc[:0]
    _, model = plan.model(candidate)
    hours = hours_of(plan, found)
    whole = {"gpu_hours": hours, "parameters": float(found.facts(model.relative).get("parameters") or math.nan) / 1e6}
    values = [
        mean_over_benchmarks(sample_values(records, judgements, column)) if column.per_sample else whole[column.kind]
        for column in search.columns
    ]
    return Outcome(tuple(values), hours)


def folders_of(plan: Plan, judged: bool) -> dict[str, int | None]:
    """Records or judgements artifacts of a plan of one candidate, with how many parts are asked of each."""
    (candidate,) = plan.grid.candidates
    if judged:
        return {made.relative: plan.shards(spec.evaluation.benchmark) for spec, made in plan.judgements(candidate)}
    return {made.relative: plan.shards(spec.benchmark) for spec, made in plan.evaluations(candidate)}


def is_done(plan: Plan, found: Snapshot) -> bool:
    """Whether nothing of a plan is left to do."""
    return all(found.is_complete(task.artifact.relative, task.step.first) for task in made_by(plan))


def seeded(search: Search, study: Study) -> int:
    """Takes in what an ablation, another sweep or another search has left in storage.

    Looked for are the preset's settings with all parts of the space, and what other searches of this storage proposed.

    Returns:
        How many configurations were found.
    """
    known = [dict(event.configuration) for event in study.history.proposed]
    wanted = [c for c in _to_look_for(search) if dict(c) not in known][:MOST_LOOKED_FOR]
    plans = {n: search.plan_of(c, len(search.rungs) - 1) for n, c in enumerate(wanted)}
    models = search.plan.store.snapshot([plan.model(plan.grid.candidates[0])[1] for plan in plans.values()])
    plans = {
        n: plan for n, plan in plans.items() if models.is_finished(plan.model(plan.grid.candidates[0])[1].relative)
    }
    found = search.plan.store.snapshot([task.artifact for plan in plans.values() for task in made_by(plan)])
    count = 0
    for n in (n for n, plan in plans.items() if is_done(plan, found)):
        number = len(study.history.proposed)
        study.happened(Event("proposed", number, configuration=wanted[n], source=FOUND))
        for rung in range(len(search.rungs)):
            if search.rungs[rung].share == 1:  # of a shorter training nothing is known
                outcome = outcome_of(search, wanted[n], rung)
                study.happened(Event("finished", number, rung, values=outcome.values, hours=outcome.hours))
        count += 1
    return count


def _to_look_for(search: Search) -> Iterator[Configuration]:
    seen: list[dict[str, Any]] = []
    for configuration in (*search.space.points(search.space.usual()), *_of_other_searches(search)):
        if dict(configuration) not in seen:
            seen.append(dict(configuration))
            yield configuration


def _of_other_searches(search: Search) -> Iterator[Configuration]:
    """What was proposed by any search of the storage and lies in this one's space."""
    store = search.plan.store
    folders = {path.rsplit("/", 1)[0] for path in store.filesystem.find(f"{store.root}/searches")}
    for folder in sorted(folder for folder in folders if "/seed-" in folder):
        name, seed = folder.split("/")[-2:]
        for event in Log(store, name, int(seed.removeprefix("seed-"))).read():
            if event.what == "proposed" and _lies_in(search.space, event.configuration):
                yield event.configuration


def _lies_in(space: SearchSpace, configuration: Configuration) -> bool:
    asked = [setting for setting in space.settings if applies(setting, configuration)]
    if {setting.name for setting in asked} != set(configuration):
        return False
    for setting in asked:
        value = configuration[setting.name]
        if isinstance(setting, Choice):
            if value not in setting.values:
                return False
        elif not setting.low <= float(value) <= setting.high:
            return False
    return space.refusal(configuration) is None


def front_plan(search: Search, study: Study) -> Plan:
    """The front, each trained in full and scored on every sample, with each of the final seeds as well."""
    found = []
    for number in study.history.front():
        whole = search.space.candidate(study.history.proposed[number].configuration)
        assert isinstance(whole.model, ModelSpec)
        seeds: Sequence[int] = dict.fromkeys((whole.model.seed, *search.final_seeds))  # type: ignore[assignment]
        found += [replace(whole, model=replace(whole.model, seed=seed)) for seed in seeds]
    grid = replace(search.plan.grid, candidates=tuple(found))
    return replace(search.plan, sweep=search.front_sweep, grid=grid, first_samples=None)
