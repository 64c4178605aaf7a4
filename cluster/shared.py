"""What Ray Data keeps one of per cluster, made where it is safe.

Ray Data makes several detached actors when they are first needed (where actors run, statistics, the autoscaling
coordinator), each pinned to the node of whoever needed them first, and uses those it finds. Made by a trial they would
live in the trial's placement group, and die with it under the pipelines of all others.
"""

import contextlib
import time
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

NAMESPACES = frozenset(
    (
        "ActorLocationTracker",
        "AutoscalingCoordinator",
        "AutoscalingRequester",
        "DataUsageCollectionActor",
        "_dataset_stats_actor",
        "_dataset_stats_summary_actor",
    )
)
"""Ray Data's, of version 2.60; one name each."""

PATIENCE_S = 60.0
"""How long a cluster may take to notice that a node is gone, and its actors with it."""


def share_ray_data(*, in_use: bool = False) -> None:
    """Makes Ray Data's shared actors from this process; those that finished jobs left on other nodes are replaced.

    To be called by a sweep's own process before its first trial: what is there when a trial starts is used by it.

    Args:
        in_use: whether trials of this process run, which use what lives on any node: only what is on lost ones is
            made again.

    Raises:
        RayError: if the cluster runs no pipeline within a minute.
    """
    if in_use or not _others_run():
        for actor in _elsewhere(lost=in_use):
            ray.kill(actor, no_restart=True)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            _small_pipeline()
        except RayError:  # one of them is on a node whose loss is not noticed yet
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
        else:
            return


class _Same:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def _small_pipeline() -> None:
    """A pipeline with a pool of actors, which needs all that is shared; of no CPUs, so that it fits anywhere."""
    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        dataset = ray.data.from_items([{"number": 0}], override_num_blocks=1)
        pool = ray.data.ActorPoolStrategy(size=1)
        dataset.map_batches(_Same, batch_size=1, compute=pool, num_cpus=0).materialize()
    finally:
        context.enable_progress_bars = shown


def _others_run() -> bool:
    """Whether another job uses this cluster now: what it relies on is left alone."""
    own = ray.get_runtime_context().get_job_id()
    jobs = ray._private.worker.global_worker.gcs_client.get_all_job_info(
        skip_submission_job_info_field=True, skip_is_running_tasks_field=True
    )
    return any(
        # Ray's own programs, such as the job server, are jobs to it as well.
        not (job.is_dead or job_id.hex() == own or job.config.ray_namespace.startswith("_ray_internal"))
        for job_id, job in jobs.items()
    )


def _elsewhere(*, lost: bool = False) -> list[Any]:
    """Shared actors that live on other nodes than this process's (lost: than those that are up), or nowhere."""
    kept = {ray.get_runtime_context().get_node_id()}
    if lost:
        kept |= {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    found = []
    for named in ray.util.list_named_actors(all_namespaces=True):
        if named["namespace"] not in NAMESPACES:
            continue
        with contextlib.suppress(ValueError):  # gone in the meantime
            actor = ray.get_actor(named["name"], named["namespace"])
            if ray._private.state.actors(actor._actor_id.hex()).get("Address", {}).get("NodeID") not in kept:
                found.append(actor)
    return found
