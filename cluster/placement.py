"""Says which part of a sweep asks for which resources, by the same code on a laptop and on a cluster.

A cluster made from our templates gives its node types the resources ``rllava_driver`` (on-demand machines for what
must not be lost), ``rllava_train`` (whole GPU machines, one per GPU), ``rllava_attack`` (single GPUs, spot) and
``rllava_data`` (CPU work; not on training machines, which would otherwise be kept from idling out). A resource that
the cluster does not know is not asked for, so a laptop or a plain ``ray start`` cluster serves everything.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.data import ActorPoolStrategy
from ray.train import ScalingConfig

from cluster.connect import ClusterInfo
from rllava.errors import UserError

DRIVER = "rllava_driver"
"""One per trial: the light process that runs a trial's steps. On-demand machines only."""

TRAIN = "rllava_train"
"""One per training worker. Whole GPU machines."""

ATTACK = "rllava_attack"
"""One per attack worker. Single GPUs, spot."""

DATA = "rllava_data"
"""One per Ray Data task that reads, decodes or writes."""

_DATA_TASKS = 2
_MOST_ATTACK_WORKERS = 1000
"""Of a trial, where a cluster says that it grows without a limit."""
_GIB = 1024.0**3


@dataclass(frozen=True)
class Placement:
    """Resource requests of every part of a sweep; each maps Ray's resource names to amounts.

    Args:
        trial: of a Tune trial, which only drives.
        data_task: of one Ray Data task that reads, decodes or writes.
        train_workers: training workers of one trial.
        attack_workers: attack workers of one trial, at most.
    """

    trial: Mapping[str, float]
    train_worker: Mapping[str, float]
    attack_worker: Mapping[str, float]
    data_task: Mapping[str, float]
    train_workers: int = 1
    attack_workers: int = 1

    def trial_resources(self) -> dict[str, float]:
        """Returns what ``ray.tune.with_resources`` takes."""
        return dict(self.trial)

    def scaling_config(self) -> ScalingConfig:
        """Returns the worker group of one training run."""
        return ScalingConfig(
            num_workers=self.train_workers,
            use_gpu=self.train_worker.get("GPU", 0) > 0,
            resources_per_worker=dict(self.train_worker),
            placement_strategy="PACK",
        )

    def attack_args(self) -> dict[str, Any]:
        """Returns arguments of ``Dataset.map_batches`` for the attack: resources and the pool of workers."""
        return self._pool(self.attack_worker)

    def judge_args(self, on_gpu: bool) -> dict[str, Any]:
        """Arguments of ``Dataset.map_batches`` for a judge.

        Args:
            on_gpu: whether it asks for what an attack worker does, rather than for what a data task does.

        Returns:
            Resources and the pool of workers.
        """
        return self._pool(self.attack_worker if on_gpu else self.data_task)

    def _pool(self, worker: Mapping[str, float]) -> dict[str, Any]:
        pool = ActorPoolStrategy(min_size=1, max_size=self.attack_workers, max_tasks_in_flight_per_actor=2)
        return {**_data_arguments(worker), "compute": pool}

    def data_args(self) -> dict[str, Any]:
        """Returns resource arguments for ``ray.data.read_*`` and for ``Dataset.map_batches`` on CPUs.

        For ``Dataset.write_*`` they go into ``ray_remote_args``.
        """
        return _data_arguments(self.data_task)


@dataclass(frozen=True)
class Request:
    """What a sweep wants to run at the same time.

    Args:
        trials: trials that run at once.
        judged: whether judges on CPUs follow, each of which holds what a data task does beside those that feed it.
    """

    trials: int = 1
    judged: bool = False


def place(
    info: ClusterInfo,
    workers: int,
    gpus: float | None = None,
    *,
    attack_workers: int = 1,
    memory_per_worker: float = 0,
) -> Placement:
    """Decides the resource requests for a cluster.

    Args:
        gpus: GPUs per worker: None for 1 where the cluster has or can get GPUs and 0 elsewhere; a fraction lets
            attack workers share a GPU, while a training worker always takes whole ones.
        attack_workers: most attack workers per trial.
        memory_per_worker: bytes of host memory to reserve per training or attack worker; 0 reserves none.

    Returns:
        The requests, without what the cluster does not know.

    Raises:
        UserError: if there are no workers, or an amount is impossible.
    """
    if workers < 1 or attack_workers < 1:
        raise UserError(f"{workers} training and {attack_workers} attack workers per trial; give at least 1 of each")
    if gpus is None:
        gpus = 1.0 if info.knows("GPU") else 0.0
    if not gpus >= 0 or (gpus > 1 and gpus != int(gpus)):
        raise UserError(f"{gpus:g} GPUs per worker; give 0, a fraction below 1, or a whole number")
    if not memory_per_worker >= 0:
        raise UserError(f"{memory_per_worker / _GIB:g} GiB of memory per worker; give 0 to reserve none, or more")
    # GPU machines have about eight cores per GPU; a laptop's CPUs are logical and only count processes.
    train = {"CPU": 8.0 if gpus else 1.0, "GPU": float(math.ceil(gpus)), "memory": memory_per_worker, TRAIN: 1.0}
    attack = {"CPU": 2.0 if gpus else 1.0, "GPU": gpus, "memory": memory_per_worker, ATTACK: 1.0}
    if gpus and not info.knows(TRAIN):
        # Machines nobody sized for us: ask for no more cores than each GPU's share, and for few where none is known.
        there = info.most
        known = there.get("GPU", 0.0) > 0
        share = max(1.0, math.floor(there.get("CPU", 0.0) / there["GPU"]) - 2.0) if known else 2.0
        train["CPU"], attack["CPU"] = min(8.0, share), min(2.0, share)
    return Placement(
        trial=_known({"CPU": 1.0, DRIVER: 1.0}, info),
        train_worker=_known(train, info),
        attack_worker=_known(attack, info),
        data_task=_known({"CPU": 1.0, DATA: 1.0}, info),
        train_workers=workers,
        attack_workers=attack_workers,
    )


def attack_share(placement: Placement, trials: int, info: ClusterInfo) -> int:
    """Attack workers of each trial when all that the cluster has or can grow to is shared among the running ones.

    Returns:
        At least 1; 1 on a local Ray, whose CPUs are logical.
    """
    if info.is_local:
        return 1
    there = info.most
    room = float(_MOST_ATTACK_WORKERS * trials)
    for resource, amount in placement.attack_worker.items():
        if info.autoscaling and resource == "memory" and resource not in there:
            continue  # not known
        taken = trials * (placement.trial.get(resource, 0.0) + placement.data_task.get(resource, 0.0))
        room = min(room, (there.get(resource, 0.0) - taken) // amount)
    return max(1, int(room // trials))


def logical_cpus(trials: int = 1, workers: int = 1, attack_workers: int = 1) -> int:
    """Computes the logical CPUs with which no part of a local sweep waits for another.

    A trial holds one CPU while its training workers, or its attack workers and the tasks that feed and drain them,
    run beside it. Each trial is given room for both, since one run's workers may still be leaving when the next
    step's arrive.

    Args:
        trials: trials that run at once.

    Returns:
        What :func:`cluster.connect.connect` takes as ``cpus``.
    """
    return trials * (1 + workers + attack_workers + _DATA_TASKS)


def check_fits(placement: Placement, request: Request, info: ClusterInfo) -> None:
    """Refuses a sweep that would wait for ever.

    A cluster that autoscales is measured by what it can grow to, and where that is unknown anything is let through.

    Args:
        request: how much of it runs at once.

    Raises:
        UserError: saying what is needed, what is there, and what to change.
    """
    if info.autoscaling and info.max_resources is None:
        return
    there = info.most
    for what, needed in _peaks(placement, request).items():
        for resource in sorted(needed, key=_scarcity):
            amount = needed[resource]
            if info.autoscaling and resource == "memory" and resource not in there:
                continue  # node types of a launcher's file need not say how much memory they have
            if amount > there.get(resource, 0.0) + 1e-6:
                raise UserError(
                    f"{what} need {_amount(resource, amount)}, "
                    f"but the cluster {'can grow to' if info.autoscaling else 'has'} "
                    f"{_amount(resource, there.get(resource, 0.0))}; {_remedy(resource, info)}"
                )
    if not info.autoscaling:
        _check_nodes(placement, request, info)


def _peaks(placement: Placement, request: Request) -> dict[str, dict[str, float]]:
    """Returns the resources of each phase of ``request.trials`` concurrent trials, by a description of the phase."""
    n = request.trials
    trials = f"{n} concurrent trial{'s' if n > 1 else ''}"
    training = _sum((1, placement.trial), (placement.train_workers, placement.train_worker))
    # One attack worker is enough to get on; the pool takes more where there is room.
    attacking = _sum((1, placement.trial), (1, placement.attack_worker), (1, placement.data_task))
    judging = _sum((1, placement.trial), (2, placement.data_task)) if request.judged else {}
    return {
        f"{trials} with {placement.train_workers} training worker{'s' if placement.train_workers > 1 else ''} each": {
            resource: n * amount for resource, amount in training.items()
        },
        f"{trials} with an attack worker and a data task each": {
            resource: n * amount for resource, amount in attacking.items()
        },
        f"{trials} with a judge and a data task each": {resource: n * amount for resource, amount in judging.items()},
    }


def _check_nodes(placement: Placement, request: Request, info: ClusterInfo) -> None:
    """Checks that the workers fit on the nodes one by one, not only in sum.

    Args:
        request: how much of it runs at once.

    Raises:
        UserError: if they do not.
    """
    kinds = {
        "training": (placement.train_worker, request.trials * placement.train_workers),
        "attack": (placement.attack_worker, request.trials),
    }
    for kind, (worker, count) in kinds.items():
        room = sum(
            min((int((node.resources.get(r, 0.0) + 1e-6) // a) for r, a in worker.items() if a > 0), default=count)
            for node in info.nodes
        )
        if room < count:
            wanted = ", ".join(_amount(resource, amount) for resource, amount in worker.items())
            raise UserError(
                f"{count} {kind} worker{'s' if count > 1 else ''} of {wanted} each on one node are needed, but the "
                f"nodes have room for {room}; run fewer trials at once or fewer workers, or add nodes"
            )


def _known(request: Mapping[str, float], info: ClusterInfo) -> dict[str, float]:
    """Drops amounts of zero and our own resources where the cluster does not know them."""
    ours = {DRIVER, TRAIN, ATTACK, DATA}
    return {name: amount for name, amount in request.items() if amount and (name not in ours or info.knows(name))}


def _data_arguments(request: Mapping[str, float]) -> dict[str, Any]:
    """Spells a request as Ray Data does."""
    spelled = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    arguments: dict[str, Any] = {word: request[name] for name, word in spelled.items() if name in request}
    custom = {name: amount for name, amount in request.items() if name not in spelled}
    return {**arguments, "resources": custom} if custom else arguments


def _sum(*parts: tuple[int, Mapping[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for count, request in parts:
        for resource, amount in request.items():
            totals[resource] = totals.get(resource, 0.0) + count * amount
    return totals


def _amount(resource: str, amount: float) -> str:
    """Writes an amount for people: ``3 CPUs``, ``0.5 GPUs``, ``12.0 GiB of memory``, ``2 rllava_train``."""
    if resource == "memory":
        return f"{amount / _GIB:.1f} GiB of memory"
    if resource in ("CPU", "GPU"):
        return f"{amount:g} {resource}{'' if amount == 1 else 's'}"
    return f"{amount:g} {resource}"


def _scarcity(resource: str) -> int:
    """Orders complaints: of several shortages the one that matters is named."""
    order = ["GPU", "memory", "CPU"]
    return order.index(resource) if resource in order else len(order)


def _remedy(resource: str, info: ClusterInfo) -> str:
    if info.autoscaling:
        return f"run fewer trials at once or raise max_workers of the node type with {resource} in cluster.yaml"
    if info.is_local and resource == "CPU":
        return "run fewer trials at once or fewer workers, or start Ray with more logical CPUs"
    return "run fewer trials at once or fewer workers, or add nodes"
