"""A trial's work: find or train a candidate's LLaVA, find or make its records, have them judged.

Training runs in Ray Train workers, attacks and judges in Ray Data pools. What it needs to know comes with the plan,
what it leaves is in storage, so that it can be killed and started again at any moment.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from cluster.placement import Placement
from rllava.conditions.condition import Condition
from rllava.data.shards import list_shards, read_shard
from rllava.errors import UserError
from rllava.evaluation.imaging import ImagingJob, make_images
from rllava.evaluation.judging import JudgingJob, judge_parts, judged_facts, units_to_judge
from rllava.evaluation.pipeline import EvalJob, PoolArguments, evaluate, facts_of, units
from rllava.filesystem import remove_folder
from rllava.image_spec import ImageSpec
from rllava.judgement_spec import JudgementSpec
from rllava.records import CLEAN, SMALLEST
from rllava.snapshot import PARTS
from rllava.specs import EvalSpec, ModelSpec
from rllava.steps import Facts, Runner, Step, WorkItem, Workshop, ensure
from rllava.store import Kind, Store
from rllava.training.ray_trainer import RUN_NAME, TrainJob, train_model
from sweeps.events import Done, Evaluating, Found, Imaging, Judging, Refused, Starting, Waiting
from sweeps.failures import users_mistake
from sweeps.plan import DATA, Plan
from sweeps.telling import Tell, TellOptimising, TellTraining


def work_on(tell: Tell, name: str, plan: Plan, placement: Placement, report_every: int, level: int) -> None:
    """All of a trial's work.

    Args:
        report_every: optimiser steps between progress reports.
    """
    steps = plan.levels[level][name]

    def train(missing: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Facts]]:
        return train_models(tell, plan, missing, placement, report_every)

    def attack(missing: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Facts]]:
        return make_records(tell, plan, missing, placement)

    def image(missing: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Facts]]:
        return craft_images(tell, plan, missing, placement)

    def judge(missing: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Facts]]:
        return make_judgements(tell, plan.store, missing, placement)

    def found(kind: Kind) -> None:
        if kind in ("models", "records"):
            tell(Found("model" if kind == "models" else "records"))

    runners: dict[type, Runner] = {ModelSpec: train, ImageSpec: image, EvalSpec: attack, JudgementSpec: judge}
    runners |= dict.fromkeys(DATA, refuse_lost_data)
    try:
        ensure(steps, Workshop(plan.store, runners, found, lambda _, holder: tell(Waiting(holder))))
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is None:
            raise
        tell(Refused(mistake))
        return
    tell(scores(plan, steps))


def refuse_lost_data(missing: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Facts]]:
    """Data is there before the first trial; what has gone since is built by the sweep's own process.

    Yields:
        Nothing.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{missing[0].artifact.path}: shards were removed while the sweep ran; the same command builds them"
    )
    yield


def train_models(
    tell: Tell, plan: Plan, missing: Sequence[WorkItem], placement: Placement, report_every: int
) -> Iterator[tuple[WorkItem, Facts]]:
    """Trains LLaVAs.

    Args:
        report_every: optimiser steps between progress reports.

    Yields:
        Each with its facts.
    """
    for task in missing:
        tell(Starting())
        job = TrainJob(
            storage=plan.storage,
            path=task.artifact.path,
            spec=task.spec,
            data=plan.data_folders(task.spec),
            checkpoint_every=plan.grid.checkpoint_every,
            report_every=report_every,
        )
        yield task, train_model(job, task.artifact, placement.scaling_config(), callbacks=[TellTraining(tell)])
        remove_folder(plan.store.filesystem, f"{task.artifact.path}/{RUN_NAME}")


def craft_images(
    tell: Tell, plan: Plan, missing: Sequence[WorkItem], placement: Placement
) -> Iterator[tuple[WorkItem, Facts]]:
    """Makes universal images for one LLaVA with the same encoders, in one pool each worker of which loads it once.

    Yields:
        Each with its facts.
    """
    first = missing[0].spec
    job = ImagingJob(
        storage=plan.storage,
        model_path=plan.store.artifact("models", first.model.name, first.model).path,
        specs=tuple(task.spec for task in missing),
        paths=tuple(task.artifact.path for task in missing),
        save_every_s=plan.save_every_s,
    )
    tell(Imaging(0, len(missing)))
    names = tuple(f"{spec.making.recipe.name} {spec.restart} at {spec.making.epsilon:g}/255" for spec in job.specs)
    steps = tuple(spec.making.recipe.steps for spec in job.specs)
    made = make_images(job, placement.attack_args(), TellOptimising(tell, names, steps))
    for done, image in enumerate(made, start=1):
        task = missing[image.index]
        gained = image.facts["loss_best"] - image.facts["loss_clean"]
        tell(Imaging(done, len(missing), names[image.index], gained))
        yield task, image.facts


def make_records(
    tell: Tell, plan: Plan, missing: Sequence[WorkItem], placement: Placement
) -> Iterator[tuple[WorkItem, Facts]]:
    """Makes the records of evaluations of one LLaVA with the same encoders, in one pool that loads it once.

    Yields:
        Each with its facts.
    """
    store = plan.store
    # Budgets rising: an attack may start from what the smaller one found.
    tasks = sorted(missing, key=lambda task: task.spec.condition.epsilon or 0.0)
    model = tasks[0].spec.model
    data = {spec.name: plan.data(spec).path for spec in dict.fromkeys(task.spec.benchmark for task in tasks)}
    job = EvalJob(
        storage=plan.storage,
        model_path=store.artifact("models", model.name, model).path,
        specs=tuple(task.spec for task in tasks),
        paths=tuple(task.artifact.path for task in tasks),
        data=data,
        first={task.spec.benchmark.name: task.step.first for task in tasks if task.step.first is not None},
        save_every_s=plan.save_every_s,
    )
    total = sum(len(unit["indices"]) for unit in units(job))
    tell(Evaluating(0, total))
    pool = PoolArguments(attack=placement.attack_args(), data=placement.data_args())
    seconds = [0.0] * len(tasks)
    for done, part in enumerate(evaluate(job, pool), start=1):
        spec = job.specs[part.index]
        seconds[part.index] += part.seconds
        tell(Evaluating(done, total, f"{spec.benchmark.name} {spec.condition.phrase}", part.mean))
    for task, took in zip(tasks, seconds, strict=True):
        before = _seconds_before(store, task)
        yield task, facts_of(store, task.artifact, data[task.spec.benchmark.name], before + took, task.step.first)


def _seconds_before(store: Store, task: WorkItem) -> float:
    """What an artifact took that was complete for fewer samples."""
    return float(store.facts(task.artifact).get("seconds", 0.0)) if store.is_complete(task.artifact) else 0.0


def make_judgements(
    tell: Tell, store: Store, missing: Sequence[WorkItem], placement: Placement
) -> Iterator[tuple[WorkItem, Facts]]:
    """Has records judged by one judge, or by several light ones, in one pool that loads them once.

    Args:
        missing: judgements, the records of which are complete.

    Yields:
        Each with its facts.
    """
    judges = dict.fromkeys(task.spec.judge for task in missing)
    label = " and ".join(judge.label for judge in judges)
    records = [store.artifact("records", task.spec.evaluation.name, task.spec.evaluation) for task in missing]
    job = JudgingJob(
        storage=store.url,
        specs=tuple(task.spec for task in missing),
        records=tuple(artifact.path for artifact in records),
        parts=tuple(
            task.step.first or int(store.facts(artifact)[PARTS])
            for task, artifact in zip(missing, records, strict=True)
        ),
        paths=tuple(task.artifact.path for task in missing),
    )
    total = len(units_to_judge(job))
    tell(Judging(label, 0, total))
    seconds = [0.0] * len(missing)
    parts = judge_parts(job, placement.judge_args(any(judge.on_gpu for judge in judges)), placement.data_args())
    for done, part in enumerate(parts, start=1):
        seconds[part.index] += part.seconds
        tell(Judging(label, done, total))
    for task, artifact, took in zip(missing, records, seconds, strict=True):
        before = _seconds_before(store, task)
        yield task, judged_facts(store, task.artifact, artifact, before + took, task.step.first)


def scores(plan: Plan, steps: Sequence[Step]) -> Done:
    """What a trial has made, in two numbers.

    Returns:
        Means over benchmarks: of the clean answers, and of what is hardest in it.
    """
    means: dict[str, list[float]] = {}
    conditions: dict[str, Condition] = {}
    for task in (plan.task(step) for step in steps if step.kind == "records"):
        values = [
            score
            for part in list_shards(plan.store.filesystem, task.artifact.path)[: task.step.first]
            for score in read_shard(plan.store.filesystem, part, ["score"]).column("score").to_pylist()
            if score is not None
        ]
        condition = task.spec.condition
        conditions[condition.short] = condition
        means.setdefault(condition.short, []).append(float(np.mean(values)) if values else float("nan"))
    clean = [np.mean(means[name]) for name, condition in conditions.items() if condition.kind == CLEAN]
    others = [name for name, condition in conditions.items() if condition.kind != CLEAN]
    searched = [name for name in others if conditions[name].kind == SMALLEST]
    budgets = {name: size for name in others if (size := conditions[name].epsilon) is not None}
    hardest, where = others, "under all others"
    if searched:
        hardest, where = searched, "where it is beaten"
    elif budgets:
        hardest, where = [max(budgets, key=lambda name: budgets[name])], "at the largest budget"
    shown = float(np.mean([np.mean(means[name]) for name in hardest])) if hardest else None
    return Done(float(clean[0]) if clean else None, shown, where)
