"""``--plan``: the one place where a sweep is planned instead of run, whichever sweep it is."""

import os
from collections.abc import Callable
from dataclasses import replace

import torch

from cluster.connect import ClusterInfo, NodeInfo, connect
from cluster.machine import usable_cores
from cluster.node_types import LAUNCHER, Machinery, read_launcher, running_nodes, this_machine
from cluster.placement import Placement, attack_share, logical_cpus, place
from cluster.prices import read_prices
from rllava.errors import UserError
from rllava.filesystem import check_answers
from rllava.recipes import check_grid
from sweeps.calibration import calibrate
from sweeps.console import say
from sweeps.forecast import Forecast, forecast
from sweeps.forecast_table import as_json, table
from sweeps.known_rates import from_storage
from sweeps.options import SweepOptions
from sweeps.plan import Plan, missing_inputs, pin_inputs
from sweeps.runner import Machines, check_workers_of, concurrent_trials, machines_of, unfinished

FORMATS: dict[str, Callable[[Forecast], str]] = {"table": table, "json": as_json}


def print_plan(options: SweepOptions, plan: Plan) -> None:
    """Prints what a sweep would do, as a table unless ``--plan`` names another of :data:`FORMATS`."""
    form, *_ = (*(options.plan or ()), "table")
    say(FORMATS[form](plan_ahead(options, plan)))


def plan_ahead(options: SweepOptions, plan: Plan) -> Forecast:
    """Forecasts a plan on the machines that the options name. Nothing is run, written or fetched.

    Files of weights are hashed only where the storage may hold something that was made from them.

    Raises:
        UserError: for what no sweep could do, or a table of prices that lacks a node type.
    """
    check_grid(plan.grid)
    prices = read_prices(options.prices)
    machines = machines_of(options)
    missing = missing_inputs(plan)
    check_answers(plan.storage)
    plan = pin_inputs(plan, look=plan.store.holds_anything(), lenient=True)
    check_workers_of(plan, machines)
    found = plan.store.snapshot(plan.artifacts())
    busy = max((len(unfinished(plan, level, found)) for level in range(len(plan.levels))), default=0)
    machinery, info, trials = find_machinery(options, plan, machines, max(1, busy))
    placement = _placement(machines, info)
    if options.calibrate and placement.attack_worker.get("GPU") and not torch.cuda.is_available():
        raise UserError(
            f"--calibrate: this machine has no GPU, and the plan is for those of {machinery.source}; leave it out"
        )
    if machines.trials is None and not machinery.local:
        trials = concurrent_trials(max(1, busy), placement, info)
    if machines.attack_workers is None:
        placement = replace(placement, attack_workers=attack_share(placement, trials, info))
    threads = max(1.0, usable_cores() / (trials * machines.workers)) if machinery.local else 1.0
    known = from_storage(plan, found, threads, machines.workers)
    if options.calibrate:
        calibrate(plan, known, machines.workers, int(threads))
    return forecast(plan, found, missing, machinery, placement, trials, prices, known)


def find_machinery(
    options: SweepOptions, plan: Plan, machines: Machines, busy: int
) -> tuple[Machinery, ClusterInfo, int]:
    """The machines that are planned for: a file's, the running cluster's, or this one.

    A recipe for GPUs is planned for the project's own template; of this machine only the cores are looked at.

    Args:
        busy: candidates with something to do.

    Returns:
        Node types, the cluster as placement sees it, and candidates at a time as far as they are known by now.
    """
    trials = min(busy, machines.trials or max(1, usable_cores() // machines.workers))
    if options.plan_cluster is not None:
        return _of_file(read_launcher(options.plan_cluster), trials)
    if options.address is not None or {"RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"} & set(os.environ):
        info = connect(options.address)
        nodes = [dict(node.resources) for node in info.nodes]
        return running_nodes(nodes, info.max_resources), info, trials
    if plan.grid.for_gpus and machines.gpus is None and LAUNCHER.exists():
        return _of_file(read_launcher(LAUNCHER), trials)
    cpus = logical_cpus(trials, machines.workers, machines.attack_workers or 1)
    machinery = this_machine(trials, cpus)
    return machinery, ClusterInfo((NodeInfo("here", machinery.resources),), is_local=True), trials


def _of_file(machinery: Machinery, trials: int) -> tuple[Machinery, ClusterInfo, int]:
    head = [kind for kind in machinery.kinds if kind.there]
    nodes = tuple(NodeInfo(kind.name, kind.resources) for kind in head)
    return machinery, ClusterInfo(nodes, False, autoscaling=True, max_resources=machinery.resources), trials


def _placement(machines: Machines, info: ClusterInfo) -> Placement:
    return place(
        info,
        machines.workers,
        machines.gpus,
        attack_workers=machines.attack_workers or 1,
        memory_per_worker=machines.memory_gib * 2**30,
    )
