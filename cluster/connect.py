"""Connects to Ray: a local one of its own on a laptop, the running cluster inside a job or at an address.

A local Ray belongs to the process that calls :func:`connect` and dies with it, also when that process is killed.
"""

import logging
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ray
import yaml
from ray.exceptions import RaySystemError

from cluster.reaper import marked_processes, start_reaper
from rllava.errors import UserError

AUTOSCALING_LABEL = "rllava-autoscaling"
"""Label of a head node whose cluster adds nodes on demand; our cluster templates set it."""

DEFAULT_LOCAL_CPUS = 8
"""Logical CPUs of a local Ray when the caller does not compute them from its plan."""

_BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class NodeInfo:
    """One node that is up.

    Args:
        address: IP address.
        resources: Ray's resource names to totals; ``memory`` in bytes.
        labels: Ray's node labels.
    """

    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClusterInfo:
    """What a sweep has to work with.

    Args:
        nodes: the nodes that are up now.
        is_local: whether this process started this Ray, which ends with it.
        autoscaling: whether the cluster adds nodes on demand, so that absent resources may still come.
        max_resources: the most an autoscaling cluster can grow to; None where that is unknown or nothing grows.
    """

    nodes: tuple[NodeInfo, ...]
    is_local: bool
    autoscaling: bool = False
    max_resources: Mapping[str, float] | None = None

    def total(self, resource: str) -> float:
        """Returns the amount of ``resource`` over all nodes that are up."""
        return sum(node.resources.get(resource, 0.0) for node in self.nodes)

    @property
    def cpus(self) -> float:
        """Logical CPUs of the nodes that are up."""
        return self.total("CPU")

    @property
    def gpus(self) -> float:
        """GPUs of the nodes that are up."""
        return self.total("GPU")

    @property
    def memory(self) -> float:
        """Bytes of memory that Ray may hand out on the nodes that are up."""
        return self.total("memory")

    def knows(self, resource: str) -> bool:
        """Says whether ``resource`` is there, or may come by autoscaling."""
        if self.total(resource) > 0:
            return True
        if not self.autoscaling:
            return False
        return self.max_resources is None or self.max_resources.get(resource, 0.0) > 0


def connect(
    address: str | None = None, cpus: int | None = None, *, busy_processes: int = 2, verbose: bool = False
) -> ClusterInfo:
    """Connects this process to Ray, once; a second call only describes the cluster again.

    Inside ``ray job submit``, with ``RAY_ADDRESS`` set or with an ``address``, that cluster is used. Otherwise a local
    Ray is started, whatever else runs on this machine, and it ends with this process. Where no GPU is there or may
    come, DeepSpeed is told so in every worker. On a cluster, Ray itself gives each worker as many threads as CPUs.

    Args:
        address: ``host:port`` of a running cluster's head, ``auto`` for the cluster of this machine, ``local`` to
            start one even where ``RAY_ADDRESS`` is set.
        cpus: logical CPUs of a local Ray; they bound what Ray starts, not what the machine computes, and are best
            taken from :func:`cluster.placement.logical_cpus`. Ignored where a cluster is running already.
        busy_processes: processes expected to compute at the same time; a local Ray gives each its share of the
            machine's cores as threads.
        verbose: whether Ray's own messages and its workers' output come to this process's standard output.

    Returns:
        The cluster as it is now.

    Raises:
        UserError: if nothing answers at the address, or it is of a kind a driver cannot use.
    """
    local = False
    if not ray.is_initialized():
        target = address or _ambient_address()
        if target in (None, "local"):
            local = True
            _start_local(cpus or max(DEFAULT_LOCAL_CPUS, os.cpu_count() or 1), busy_processes, verbose)
        else:
            assert target is not None
            _join(target, verbose)
        _OWNED["local"] = local
    return describe(is_local=_OWNED.get("local", False))


def describe(is_local: bool) -> ClusterInfo:
    """Reads the connected cluster's nodes and, where it autoscales, its limits.

    Args:
        is_local: whether this process started it.

    Returns:
        The cluster as it is now.
    """
    nodes = tuple(
        NodeInfo(node["NodeManagerAddress"], dict(node["Resources"]), dict(node.get("Labels") or {}))
        for node in ray.nodes()
        if node["Alive"]
    )
    autoscaling = any(node.labels.get(AUTOSCALING_LABEL) == "true" for node in nodes)
    if is_local or not autoscaling:
        return ClusterInfo(nodes, is_local)
    return ClusterInfo(nodes, is_local, True, _launcher_limits(_BOOTSTRAP_CONFIG.expanduser()))


def max_resources(config: Mapping[str, object]) -> dict[str, float]:
    """Adds up what the node types of a cluster launcher's config can grow to.

    Args:
        config: contents of a ``cluster.yaml``.

    Returns:
        Resource names to totals over all node types at their ``max_workers`` (one head), each type bounded by the
        config's own ``max_workers``.
    """
    node_types = config.get("available_node_types") or {}
    assert isinstance(node_types, Mapping)
    overall = int(str(config.get("max_workers", 0)))
    totals: dict[str, float] = {}
    for name, node_type in node_types.items():
        is_head = name == config.get("head_node_type")
        count = 1 if is_head else min(int(node_type.get("max_workers", overall)), overall)
        for resource, amount in node_type.get("resources", {}).items():
            totals[resource] = totals.get(resource, 0.0) + count * float(amount)
    return totals


_OWNED: dict[str, bool] = {}


def _ambient_address() -> str | None:
    """Returns the cluster this process was started in, if any."""
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return address
    return "auto" if _JOB_VARIABLE in os.environ else None


def _start_local(cpus: int, busy_processes: int, verbose: bool) -> None:
    """Starts a Ray that shares this process's fate; its workers inherit this process's environment."""
    threads = max(1, (os.cpu_count() or 1) // max(1, busy_processes))
    defaults = {
        "OMP_NUM_THREADS": str(threads),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_register_timeout_seconds": "180",  # a busy laptop starts Python slowly
        # Starting a Python process takes a second of a core: keep idle workers instead of ending them after a second.
        "RAY_num_workers_soft_limit": str(max(10, cpus)),
        "RAY_idle_worker_killing_time_threshold_ms": "30000",
        "RAY_worker_maximum_startup_concurrency": "4",
        # One machine that nobody takes away and no dashboard to feed: spares each training run some processes.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    if not _has_gpu():
        defaults["DS_ACCELERATOR"] = "cpu"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    programs = str(Path(sys.executable).parent)
    if programs not in os.environ.get("PATH", "").split(os.pathsep):
        # DeepSpeed's operators are loaded through ninja, which PyTorch calls by name.
        os.environ["PATH"] = os.pathsep.join(filter(None, (programs, os.environ.get("PATH"))))
    with marked_processes() as mark:
        start_reaper(mark)
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
        )


def _join(address: str, verbose: bool) -> None:
    """Connects to a running cluster.

    Args:
        address: ``host:port`` or ``auto``.
        verbose: whether Ray's own messages and its workers' output come to this process's standard output.

    Raises:
        UserError: if that is not possible.
    """
    if "://" in address:
        raise UserError(
            f"Ray address '{address}': a driver joins a cluster by host:port from inside it; "
            "from outside use: ray job submit --address http://<head>:8265 --working-dir . -- python <script>"
        )
    _probe(address)
    options = {
        "address": address,
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    try:
        ray.init(**options)
        if "DS_ACCELERATOR" not in os.environ and not describe(is_local=False).knows("GPU"):
            # Workers' variables can only be given on connecting, and only now is it known that no GPU is there.
            ray.shutdown()
            ray.init(**options, runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}})
    except (ConnectionError, RaySystemError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"Ray address '{address}': {reason[:300]}; start a cluster (ray up cluster.yaml), "
            "or leave the address out to run on this machine alone"
        ) from error


def _probe(address: str) -> None:
    """Fails fast where nothing listens; Ray itself would try for minutes.

    Args:
        address: ``host:port`` or ``auto``.

    Raises:
        UserError: if ``address`` is no host:port or does not answer.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"Ray address '{address}': give host:port, e.g. 127.0.0.1:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"Ray address '{address}': nothing answers there ({error}); start a cluster (ray up cluster.yaml), "
            "or leave the address out to run on this machine alone"
        ) from error


def _has_gpu() -> bool:
    """Says whether this machine shows a CUDA device, without starting CUDA in this process."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return sys.platform == "linux" and any(Path("/dev").glob("nvidia[0-9]*"))


def _launcher_limits(path: Path) -> dict[str, float] | None:
    """Reads the limits from the config that the cluster launcher leaves on the head; None on any other node."""
    if not path.exists():
        return None
    config = yaml.safe_load(path.read_text())
    return max_resources(config) if isinstance(config, dict) else None
