"""A trial's work: find or train a candidate's LLaVA, find or make its records.

Training runs in Ray Train workers, attacks in a Ray Data pool. What it needs to know comes with the plan, what it
leaves is in storage, so that it can be killed and started again at any moment.
"""

import contextlib

import numpy as np

from cluster.placement import Placement
from rllava.data.shards import list_shards, read_shard
from rllava.evaluation.pipeline import EvalJob, PoolArguments, evaluate, units
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.specs import EvalSpec, ModelSpec
from rllava.store import Artifact
from rllava.training.ray_trainer import TrainJob, train_model
from sweeps.events import Attacking, Done, Found, Refused, Starting, Waiting
from sweeps.failures import users_mistake
from sweeps.plan import Plan
from sweeps.presets import Candidate
from sweeps.telling import Tell, TellTraining


def work_on(tell: Tell, name: str, plan: Plan, placement: Placement, report_every: int) -> None:
    """All of a trial's work.

    Args:
        tell: told what happens.
        name: of the candidate.
        plan: of the sweep.
        placement: resources of workers.
        report_every: optimiser steps between progress reports.
    """
    candidate = plan.candidate(name)
    try:
        model, artifact = plan.model(candidate)
        find_or_train(tell, plan, model, artifact, placement, report_every)
        find_or_attack(tell, plan, candidate, artifact, placement)
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is None:
            raise
        tell(Refused(mistake))
        return
    tell(scores(plan, candidate))


def find_or_train(
    tell: Tell,
    plan: Plan,
    spec: ModelSpec | CheckpointSpec,
    artifact: Artifact,
    placement: Placement,
    report_every: int,
) -> None:
    """Trains a LLaVA unless it is there, or waits while another driver or trial does.

    Args:
        tell: told what happens.
        plan: of the sweep.
        spec: of the model.
        artifact: where it belongs.
        placement: resources.
        report_every: optimiser steps between progress reports.
    """
    if plan.store.is_complete(artifact):
        tell(Found("model"))
        return
    with plan.store.lease(artifact, lambda holder: tell(Waiting(holder))):
        if plan.store.is_complete(artifact):
            tell(Found("model"))
            return
        assert isinstance(spec, ModelSpec)  # a checkpoint from elsewhere is complete from the start
        tell(Starting())
        job = TrainJob(
            storage=plan.storage,
            path=artifact.path,
            spec=spec,
            data=plan.data_places(),
            checkpoint_every=plan.preset.checkpoint_every,
            report_every=report_every,
        )
        train_model(job, artifact, placement.scaling_config(), callbacks=[TellTraining(tell)])


def find_or_attack(tell: Tell, plan: Plan, candidate: Candidate, model: Artifact, placement: Placement) -> None:
    """Makes the candidate's records that are missing.

    Args:
        tell: told what happens.
        plan: of the sweep.
        candidate: which.
        model: its trained LLaVA.
        placement: resources.
    """
    if not plan.pending(candidate):
        tell(Found("records"))
        return
    with contextlib.ExitStack() as leases:
        # Always in the same order, so that two drivers cannot hold what the other waits for.
        for _, artifact in sorted(plan.pending(candidate), key=lambda pair: pair[1].path):
            leases.enter_context(plan.store.lease(artifact, lambda holder: tell(Waiting(holder))))
        pending = plan.pending(candidate)
        if not pending:
            tell(Found("records"))
            return
        attack(tell, plan, model, pending, placement)


def attack(
    tell: Tell, plan: Plan, model: Artifact, pending: list[tuple[EvalSpec, Artifact]], placement: Placement
) -> None:
    """Runs the pipeline and tells of every part.

    Args:
        tell: told what happens.
        plan: of the sweep.
        model: trained LLaVA.
        pending: evaluations with their artifacts; leases are held.
        placement: resources.
    """
    names = {spec.benchmark.name for spec, _ in pending}
    job = EvalJob(
        storage=plan.storage,
        model_path=model.path,
        specs=tuple(spec for spec, _ in pending),
        paths=tuple(artifact.path for _, artifact in pending),
        data={spec.name: plan.benchmark_folder(spec) for spec in plan.benchmarks if spec.name in names},
        save_every_s=plan.save_every_s,
    )
    budgets = {name: sum(spec.benchmark.name == name for spec in job.specs) for name in names}
    total = sum(budgets[unit["benchmark"]] for unit in units(job))
    tell(Attacking(0, total))
    pool = PoolArguments(attack=placement.attack_args(), data=placement.data_args())
    for done, part in enumerate(evaluate(job, pool), start=1):
        tell(Attacking(done, total, part.benchmark, part.epsilon, part.mean))


def scores(plan: Plan, candidate: Candidate) -> Done:
    """Clean and robust score of a candidate: means over benchmarks at the smallest and largest budget.

    Args:
        plan: of the sweep.
        candidate: complete.

    Returns:
        The scores.
    """
    means: dict[float, list[float]] = {}
    for spec, artifact in plan.evaluations(candidate):
        values = [
            score
            for part in list_shards(plan.store.filesystem, artifact.path)
            for score in read_shard(plan.store.filesystem, part, ["score"]).column("score").to_pylist()
            if score is not None
        ]
        means.setdefault(spec.epsilon, []).append(float(np.mean(values)) if values else float("nan"))
    return Done(clean=float(np.mean(means[min(means)])), robust=float(np.mean(means[max(means)])))
