"""One trial of a sweep: find or train a candidate's LLaVA, find or make its records.

A trial only drives: training runs in Ray Train workers, attacks in a Ray Data pool. What it needs to know comes with
the plan, what it leaves is in storage, so that it can be killed and started again at any moment.
"""

import contextlib
import re
import time
from typing import Any

import numpy as np
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from cluster.placement import Placement
from rllava.data.shards import list_shards, read_shard
from rllava.errors import UserError
from rllava.evaluation.pipeline import EvalJob, PoolArguments, evaluate, units
from rllava.model.checkpoint import CheckpointSpec
from rllava.specs import EvalSpec, ModelSpec
from rllava.store import Artifact
from rllava.training.ray_trainer import TrainJob, train_model
from sweeps.plan import Plan
from sweeps.presets import Candidate


def run_trial(config: dict[str, Any], plan: Plan, placement: Placement, report_every: int) -> None:
    """The function Ray Tune calls.

    Args:
        config: ``{"candidate": name}``.
        plan: of the sweep.
        placement: resources of workers.
        report_every: optimiser steps between progress reports.
    """
    candidate = plan.candidate(config["candidate"])
    try:
        model, artifact = plan.model(candidate)
        find_or_train(plan, model, artifact, placement, report_every)
        find_or_attack(plan, candidate, artifact, placement)
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is None:
            raise
        tune.report({"phase": "refused", "error": mistake})  # a retry would not help
        return
    tune.report({"phase": "done", **scores(plan, candidate)})


def users_mistake(error: BaseException) -> str | None:
    """What a user can mend, within what Ray makes of an error in a worker.

    Args:
        error: as caught.

    Returns:
        The message of the first :class:`UserError` in it, or in the text of a traceback; None if there is none.
    """
    waiting, seen, texts = [error], set(), list[str]()
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        within = [found.__cause__, getattr(found, "cause", None), found.__context__]
        within += list(getattr(found, "worker_failures", {}).values())  # of Ray Train's TrainingFailedError
        # Ray's own stand-in is of the same class, but its text is a traceback: what it stands for comes first.
        if isinstance(found, UserError) and not isinstance(getattr(found, "cause", None), UserError):
            return str(found)
        waiting += [inner for inner in within if isinstance(inner, BaseException)]
        texts.append(str(found))
    # Of an error in one of its tasks, Ray Data keeps the traceback's text alone.
    told = re.findall(rf"^{UserError.__module__}\.{UserError.__name__}: (.+)$", "\n".join(texts), re.MULTILINE)
    return told[0] if told else None


def find_or_train(
    plan: Plan, spec: ModelSpec | CheckpointSpec, artifact: Artifact, placement: Placement, report_every: int
) -> None:
    """Trains a LLaVA unless it is there, or waits while another driver or trial does.

    Args:
        plan: of the sweep.
        spec: of the model.
        artifact: where it belongs.
        placement: resources.
        report_every: optimiser steps between progress reports.
    """
    if plan.store.is_complete(artifact):
        tune.report({"phase": "found", "what": "model"})
        return
    with plan.store.lease(artifact, lambda holder: tune.report({"phase": "waiting", "holder": holder})):
        if plan.store.is_complete(artifact):
            tune.report({"phase": "found", "what": "model"})
            return
        assert isinstance(spec, ModelSpec)  # a checkpoint from elsewhere is complete from the start
        tune.report({"phase": "starting", "what": "training"})
        job = TrainJob(
            storage=plan.storage,
            path=artifact.path,
            spec=spec,
            data=plan.data_places(),
            checkpoint_every=plan.preset.checkpoint_every,
            report_every=report_every,
        )
        train_model(job, artifact, placement.scaling_config(), callbacks=[TuneReportCallback()])


def find_or_attack(plan: Plan, candidate: Candidate, model: Artifact, placement: Placement) -> None:
    """Makes the candidate's records that are missing.

    Args:
        plan: of the sweep.
        candidate: which.
        model: its trained LLaVA.
        placement: resources.
    """
    cells = len(plan.evaluations(candidate))
    if not plan.pending(candidate):
        tune.report({"phase": "found", "what": "records", "cells": cells})
        return
    with contextlib.ExitStack() as leases:
        # Always in the same order, so that two drivers cannot hold what the other waits for.
        for _, artifact in sorted(plan.pending(candidate), key=lambda pair: pair[1].path):
            leases.enter_context(
                plan.store.lease(artifact, lambda holder: tune.report({"phase": "waiting", "holder": holder}))
            )
        pending = plan.pending(candidate)
        if not pending:
            tune.report({"phase": "found", "what": "records", "cells": cells})
            return
        attack(plan, model, pending, placement)


def attack(plan: Plan, model: Artifact, pending: list[tuple[EvalSpec, Artifact]], placement: Placement) -> None:
    """Runs the pipeline and reports every part.

    Args:
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
    tune.report({"phase": "attack", "parts": 0, "of": total, "seconds": 0.0})
    started = time.time()
    pool = PoolArguments(attack=placement.attack_args(), data=placement.data_args())
    for done, part in enumerate(evaluate(job, pool), start=1):
        tune.report(
            {
                "phase": "attack",
                "parts": done,
                "of": total,
                "seconds": time.time() - started,
                "benchmark": part.benchmark,
                "epsilon": part.epsilon,
                "shard": part.shard,
                "mean": part.mean,
            }
        )


def scores(plan: Plan, candidate: Candidate) -> dict[str, float]:
    """Clean and robust score of a candidate, for Tune: means over benchmarks at the smallest and largest budget.

    Args:
        plan: of the sweep.
        candidate: complete.

    Returns:
        ``clean`` and ``robust``.
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
    return {"clean": float(np.mean(means[min(means)])), "robust": float(np.mean(means[max(means)]))}
