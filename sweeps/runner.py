"""Runs a plan: Ray Tune over candidates, then manifest, statistics and report."""

import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from analysis.report import refresh_report
from cluster.connect import ClusterInfo, connect, on_own_ray, warning_of_open_cluster
from cluster.machine import check_compiler, usable_cores
from cluster.placement import Placement, Request, attack_share, check_fits, logical_cpus, place
from cluster.shared import share_ray_data
from rllava.data.benchmarks import BenchmarkSpec
from rllava.data.ray_dataset import in_ray_tasks
from rllava.data.shards import FEW_ROWS, Tasks, in_this_process, list_shards
from rllava.errors import SweepError, UserError
from rllava.filesystem import remove_folder
from rllava.recipes import Candidate
from rllava.snapshot import Snapshot
from rllava.specs import ModelSpec
from rllava.store import Artifact, Store
from rllava.training.extensions import operator_is_built
from rllava.training.ray_trainer import RUN_NAME, check_workers
from sweeps.board import Board
from sweeps.console import Log, current_log, note, say, warn
from sweeps.manifest import write_manifest
from sweeps.options import CandidateOptions, SweepOptions
from sweeps.plan import Plan, check_sources, prepare_data
from sweeps.trial import Work, inherited_environment, run_trial
from sweeps.work import work_on

LOGS = "logs"
"""Folder of a storage for what need not be read."""


@dataclass(frozen=True)
class Machines:
    """What a sweep may use.

    Attributes:
        address: of a running cluster; None: inside a job that cluster, else a local Ray.
        attack_workers: most attack workers per candidate; None: 1 on this machine, on a cluster all that it has or can
            grow to, shared among the candidates that run at a time.
        trials: candidates at a time; None: as many as the machines serve.
        gpus: per worker; None: 1 where there are any; 0: insists on CPUs.
        memory_gib: host memory reserved per worker; 0: none.
    """

    address: str | None
    workers: int
    attack_workers: int | None
    trials: int | None
    gpus: float | None
    memory_gib: float


def machines_of(options: SweepOptions) -> Machines:
    """What options allow; a sweep that trains nothing has no workers to count."""
    workers = options.workers if isinstance(options, CandidateOptions) else 1
    return Machines(options.address, workers, options.attack_workers, options.trials, options.gpus, options.memory)


def run(plan: Plan, machines: Machines) -> str:
    """Does what is missing of a plan and writes its report.

    Raises:
        UserError: if the plan cannot be run as it is, here.
    """
    started = time.time()
    with logged_into(plan.store) as log:
        return carry_out(plan, machines, log, started)


@contextlib.contextmanager
def logged_into(store: Store) -> Iterator[Log | None]:
    """Prepares a storage, and keeps there meanwhile what need not be read.

    Yields:
        The log, if there is one.
    """
    store.prepare()
    log = current_log()
    if log is not None:
        log.in_use = True
        if store.is_local:
            log.move(Path(store.root) / LOGS)
    try:
        yield log
    finally:
        if log is not None and not store.is_local:
            with contextlib.suppress(Exception):  # it lies on this machine too, and must not hide why a run ended
                log.file.flush()
                store.put(f"{store.root}/{LOGS}/{log.path.name}", log.path)


def carry_out(plan: Plan, machines: Machines, log: Log | None, started: float) -> str:
    """As :func:`run`, with a storage that is prepared."""
    check_workers_of(plan, machines)
    board = Board(
        {candidate.trial: candidate.trains for candidate in plan.grid.candidates},
        kept=lambda name: kept(plan, plan.candidate(name)),
        after_failure=lambda: share_ray_data(in_use=True),
    )
    found = plan.store.snapshot(plan.artifacts(), keep=True)
    before = completed(plan, found)
    levels = [unfinished(plan, level, found) for level in range(len(plan.levels))]
    busy = len({name for names in levels for name in names})
    for protocol in plan.grid.protocols:
        board.say(protocol.describe())
    count = len(plan.grid.candidates)
    board.say(f"{plan.sweep}: {count} candidates, {busy} with something to do; storage {plan.storage}")
    machine: dict[str, Any] = {}
    most = max(map(len, levels))
    rows = check_sources(plan, found)
    tasks: Tasks = in_this_process
    if most or rows > FEW_ROWS:
        info, placement, trials = find_machines(plan, machines, max(most, 1))
        machine = describe_machine(info)
        if log is not None:
            board.say(f"messages of Ray and its workers: {log.path}")
        share_ray_data()
        if rows > FEW_ROWS:
            # On a laptop, logical CPUs are many: as many tasks at a time as there are cores.
            tasks = in_ray_tasks(placement.data_args(), usable_cores() if info.is_local else None)
    if rows:
        prepare_data(plan, board.say, tasks)
    for level, names in enumerate(levels):
        if names:
            with board:
                tune_over(plan, level, names, placement, min(trials, len(names)), board)
    if most or rows:
        found = plan.store.snapshot(plan.artifacts(), keep=True)
    manifest = write_manifest(plan, found, before, machine, started)
    page, table = refresh_report(plan.storage, plan.sweep)
    say(table)
    minutes, seconds = divmod(int(manifest.wall_seconds), 60)
    say(f"records: {plan.store.root}/records   took {minutes} min {seconds} s")
    say(f"report:  {page}")
    return page


def kept(plan: Plan, candidate: Candidate) -> str:
    """What storage holds of a candidate, for one line on a terminal."""
    filesystem = plan.store.filesystem
    spec, model = plan.model(candidate)
    if isinstance(spec, ModelSpec) and not plan.store.is_complete(model):
        saved = filesystem.find(f"{model.path}/{RUN_NAME}")
        found = any("/checkpoint" in path.removeprefix(model.path) for path in saved)
        return "its training up to the last checkpoint" if found else "nothing of its training yet"
    evaluations, judgements = plan.evaluations(candidate), plan.judgements(candidate)

    def parts(made: Sequence[tuple[BenchmarkSpec, Artifact]]) -> str:
        there = of = 0
        for benchmark, artifact in made:
            first = plan.shards(benchmark)
            there += len(list_shards(filesystem, artifact.path)[:first])
            of += len(list_shards(filesystem, plan.benchmark_folder(benchmark))[:first])
        return f"{there} of {of} parts"

    records = parts([(evaluated.benchmark, artifact) for evaluated, artifact in evaluations])
    said = parts([(judged.evaluation.benchmark, artifact) for judged, artifact in judgements])
    return f"its LLaVA and {records} of its records{f', {said} of judgements' if judgements else ''}"


def unfinished(plan: Plan, level: int, found: Snapshot) -> list[str]:
    """Candidates with something to do.

    Returns:
        Their names, such that those which only plug into another's LLaVA come last.
    """
    return [
        name
        for name, steps in plan.levels[level].items()
        if not all(found.is_complete(plan.task(step).artifact.relative, step.first) for step in steps)
    ]


def check_workers_of(plan: Plan, machines: Machines) -> None:
    """Refuses worker counts that training cannot use.

    Raises:
        UserError: naming the option.
    """
    for option, value in (("--workers", machines.workers), ("--attack-workers", machines.attack_workers)):
        if value is not None and value < 1:
            raise UserError(f"{option} {value}: expected at least 1")
    if machines.trials is not None and machines.trials < 1:
        raise UserError(f"--trials {machines.trials}: expected at least 1")
    for candidate in plan.grid.candidates:
        spec, _ = plan.model(candidate)
        if isinstance(spec, ModelSpec):
            check_workers(spec, machines.workers)


def find_machines(plan: Plan, machines: Machines, missing: int) -> tuple[ClusterInfo, Placement, int]:
    """Connects to Ray and decides how many candidates run at a time.

    Args:
        missing: candidates with something to do.

    Returns:
        The cluster, the resources of each kind of work, and the number of concurrent trials.

    Raises:
        UserError: if the cluster cannot hold the request.
    """
    trials = min(missing, machines.trials or max(1, usable_cores() // machines.workers))
    info = connect(
        machines.address,
        cpus=logical_cpus(trials, machines.workers, machines.attack_workers or 1),
        busy_processes=trials * machines.workers,
        verbose=current_log() is not None,
    )
    if not info.is_local:
        say(info.summary())
        if warning := warning_of_open_cluster(info):
            warn(warning)
    placement = place(
        info,
        machines.workers,
        gpus_per_worker(plan, machines.gpus, info),
        attack_workers=machines.attack_workers or 1,
        memory_per_worker=machines.memory_gib * 2**30,
    )
    if machines.trials is None and not info.is_local:
        trials = concurrent_trials(missing, placement, info)
    if machines.attack_workers is None:
        placement = replace(placement, attack_workers=attack_share(placement, trials, info))
    if info.is_local and not info.gpus and has_to_train(plan) and not operator_is_built():
        check_compiler()
    if len(info.nodes) > 1 and plan.store.is_local:
        note(f"{plan.storage} must be a folder that all {len(info.nodes)} nodes share")
    check_fits(placement, Request(trials=trials, judged=any(not judge.on_gpu for judge in plan.judges)), info)
    return info, placement, trials


def gpus_per_worker(plan: Plan, asked: float | None, info: ClusterInfo) -> float | None:
    """Keeps a recipe that is meant for GPUs from being trained on CPUs without a word.

    Returns:
        What :func:`cluster.placement.place` takes: 1 where nothing is known of the nodes that may come. A laptop may
        attack with such a recipe, if it trains nothing.

    Raises:
        UserError: if there are no GPUs and none can come.
    """
    if asked is not None or info.knows("GPU") or not plan.grid.for_gpus:
        return asked
    if info.unlimited:
        note("no GPU is there yet: workers ask for one each, and wait until the cluster brings them")
        return 1.0
    if not has_to_train(plan):
        return asked
    where = "this machine shows none" if info.is_local else "the cluster has none and can get none"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") and info.is_local
    raise UserError(
        f"--preset {plan.grid.name} is meant to be trained on GPUs, and {where}"
        f"{' (CUDA_VISIBLE_DEVICES hides all)' if hidden else ''}; use machines with GPUs or another preset, or insist "
        "on CPUs with --gpus 0"
    )


def has_to_train(plan: Plan) -> bool:
    """Whether a LLaVA of the sweep is not trained yet.

    Returns:
        False if all are complete, or come from elsewhere.
    """
    models = [plan.model(candidate) for candidate in plan.grid.candidates]
    return any(isinstance(spec, ModelSpec) and not plan.store.is_complete(artifact) for spec, artifact in models)


def concurrent_trials(missing: int, placement: Placement, info: ClusterInfo) -> int:
    """As many trials as training finds room for at a time, at least one.

    Args:
        missing: candidates with something to do.
        placement: resources of a trial and its workers.
        info: the cluster, with what it can grow to.
    """
    there = info.most
    room = missing
    for resource in ("CPU", "GPU"):
        needed = placement.trial.get(resource, 0.0) + max(
            placement.train_workers * placement.train_worker.get(resource, 0.0),
            placement.attack_worker.get(resource, 0.0) + placement.data_task.get(resource, 0.0),
        )
        if needed and resource in there:
            room = min(room, int(there[resource] // needed))
    return max(1, room)


def tune_over(
    plan: Plan, level: int, candidates: Sequence[str], placement: Placement, trials: int, board: Board
) -> None:
    """One trial per candidate; Tune's own state is thrown away.

    Raises:
        UserError: if a trial found a user's mistake.
        SweepError: if a trial failed.
    """
    report_every = max(1, max((stage.steps for model in plan.grid.models for stage in model.stages), default=1) // 12)
    trainable = tune.with_parameters(run_trial, work=Work.of(work_on, plan, placement, report_every, level))
    space = {"candidate": tune.grid_search(list(candidates))}
    config = tune.TuneConfig(max_concurrent_trials=trials, reuse_actors=False)
    results = fit(plan, trainable, space, placement, config, board)
    if board.refusals:
        raise UserError("; ".join(f"{name}: {text}" for name, text in board.refusals.items()))
    if results.num_errors:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in board.failures.items())
        log = current_log()
        raise SweepError(
            f"{results.num_errors} of {len(results)} candidates failed ({reasons}); what is complete is kept, the same "
            f"command tries the rest again{f'; details: {log.path}' if log is not None else ''}"
        )


def fit(
    plan: Plan, trainable: Any, space: dict[str, Any], placement: Placement, config: tune.TuneConfig, board: Board
) -> Any:
    """Has Ray Tune run trials; its own state is thrown away.

    Args:
        trainable: what a trial runs.
        space: of the trials' configurations.

    Returns:
        Tune's results.
    """
    # Progress is the board's: no files per trial, no table of Tune's own.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Else Tune takes Ctrl+C for itself, and returns as if its trials were done.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    scratch = tempfile.mkdtemp(prefix="rllava-tune-")
    storage = {"storage_path": scratch}
    if not plan.store.is_local:
        storage = {
            "storage_path": f"{plan.store.root}/ray",
            "storage_filesystem": plan.store.arrow_filesystem(),
        }
    name = f"{plan.sweep}-{os.path.basename(scratch)}"
    tuner = tune.Tuner(
        tune.with_resources(trainable, placement.trial_resources()),
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=name,
            verbose=0,
            callbacks=[board],
            failure_config=tune.FailureConfig(max_failures=3),
            **storage,
        ),
    )
    environment = inherited_environment() if on_own_ray() else contextlib.nullcontext()
    try:
        with environment:
            return tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not plan.store.is_local:
            remove_folder(plan.store.filesystem, f"{plan.store.root}/ray/{name}")


def completed(plan: Plan, found: Snapshot) -> set[str]:
    """Artifacts that are complete.

    Returns:
        Paths below the storage's root.
    """
    tasks = plan.tasks()
    return {task.artifact.relative for task in tasks if found.is_complete(task.artifact.relative, task.step.first)}


def describe_machine(info: ClusterInfo) -> dict[str, Any]:
    """What a sweep ran on, for its report."""
    memory = sum(node.resources.get("memory", 0.0) for node in info.nodes)
    return {
        "cpus": usable_cores() if info.is_local else info.cpus,
        "gpus": info.gpus,
        "memory_gib": round(memory / 2**30, 1),
        "nodes": len(info.nodes),
        "python": platform.python_version(),
    }


def shut_down() -> None:
    """Leaves Ray, if this process joined it."""
    if ray.is_initialized():
        ray.shutdown()
