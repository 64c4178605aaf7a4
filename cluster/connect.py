"""Connects to Ray: a local one of its own on a laptop, the running cluster inside a job or at an address.

A local Ray belongs to the process that calls :func:`connect` and dies with it, also when that process is killed.
"""

import atexit
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ray
import yaml
from ray._private import ray_constants
from ray._private.state import state
from ray._raylet import AuthenticationMode, get_authentication_mode  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.exceptions import AuthenticationError, RaySystemError
from ray.experimental.internal_kv import _internal_kv_get, internal_kv_get_gcs_client

from cluster.machine import check_machine, ray_refused, usable_cores
from cluster.reaper import marked_processes, start_reaper
from rllava.errors import UserError

AUTOSCALING_LABEL = "rllava-autoscaling"
"""Label of a head node whose cluster adds nodes on demand; our cluster templates set it."""

DEFAULT_LOCAL_CPUS = 8
"""Logical CPUs of a local Ray when the caller does not compute them from its plan."""

_BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_PROBE_TIMEOUT_S = 10.0
_FIRST_LOOK_S = 30.0  # it takes 5 s where the machine is idle


@dataclass(frozen=True)
class NodeInfo:
    """One node that is up.

    Args:
        resources: Ray's resource names to totals; ``memory`` in bytes.
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

    @property
    def ours(self) -> bool:
        """Whether the cluster is made from our templates, so that its nodes to come have the resources we name."""
        return any(node.labels.get(AUTOSCALING_LABEL) == "true" for node in self.nodes)

    @property
    def unlimited(self) -> bool:
        """Whether nodes may come of which nothing is known."""
        return self.autoscaling and self.max_resources is None

    @property
    def most(self) -> Mapping[str, float]:
        """Resource names to totals: what the cluster can grow to where that is known, else what is there."""
        if self.max_resources is not None:
            return self.max_resources
        return {resource: self.total(resource) for node in self.nodes for resource in node.resources}

    def knows(self, resource: str) -> bool:
        """Says whether ``resource`` is there, or will come by autoscaling."""
        if self.total(resource) > 0:
            return True
        if not self.autoscaling:
            return False
        return self.ours if self.max_resources is None else self.max_resources.get(resource, 0.0) > 0

    def summary(self) -> str:
        """What was found, in one line."""
        nodes = f"{len(self.nodes)} node{'s' if len(self.nodes) > 1 else ''}"
        there = f"cluster of {nodes} with {self.cpus:g} CPUs and {self.gpus:g} GPUs"
        if not self.autoscaling:
            return f"{there}; it does not autoscale"
        if self.max_resources is None:
            return f"{there}; it autoscales, to what is not known"
        most = [f"{_many(self.max_resources.get(name, 0.0))} {name}s" for name in ("CPU", "GPU")]
        return f"{there}; it autoscales to {' and '.join(most)}"


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
        UserError: if nothing answers at the address, it is of a kind a driver cannot use, or this machine cannot run a
            local Ray.
    """
    local = False
    if not ray.is_initialized():
        target = address or _ambient_address()
        if target in (None, "local"):
            local = True
            check_machine()
            try:
                _start_local(cpus or max(DEFAULT_LOCAL_CPUS, usable_cores()), busy_processes, verbose)
            except Exception as error:  # Ray raises all kinds, the plain one too
                raise ray_refused(error) from error
        else:
            assert target is not None
            _join(target, verbose)
        if "local" not in _OWNED and not verbose:
            atexit.register(_leave_quietly)  # after Ray's own, so that it runs before
        _OWNED["local"] = local
    return describe(is_local=on_own_ray())


def launcher_file() -> Path | None:
    """The configuration that Ray's cluster launcher leaves on the head; None on any other node."""
    path = _BOOTSTRAP_CONFIG.expanduser()
    return path if path.exists() else None


def on_own_ray() -> bool:
    """Whether this process is connected to a Ray that it started itself."""
    return _OWNED.get("local", False)


def warning_of_open_cluster(info: ClusterInfo) -> str | None:
    """What to tell of a cluster that whoever reaches it can run code on.

    Args:
        info: the cluster that this process joined.

    Returns:
        One line; None if it asks for tokens, as far as this process can tell, or listens on loopback alone.
    """
    # Had the cluster asked for a token, a process that sends none would not have come in.
    sends_tokens = get_authentication_mode() != AuthenticationMode.DISABLED
    beyond = [node.address for node in info.nodes if not node.address.startswith(("127.", "::1", "localhost"))]
    if info.is_local or sends_tokens or not beyond:
        return None
    return (
        f"this Ray cluster asks for no token: whoever reaches {beyond[0]} runs code on it; make a token "
        "(ray get-auth-token --generate) and start every node with RAY_AUTH_MODE=token"
    )


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
    if is_local:
        return ClusterInfo(nodes, is_local)
    limits = _limits_of_ray()
    if limits is not None:
        return ClusterInfo(nodes, is_local, True, limits)
    if not ClusterInfo(nodes, is_local).ours and not _autoscaler_runs():
        return ClusterInfo(nodes, is_local)
    return ClusterInfo(nodes, is_local, True, _launcher_limits(_BOOTSTRAP_CONFIG.expanduser()))


def _limits_of_ray() -> dict[str, float] | None:
    """What the cluster can grow to, where its platform told Ray; Ray Train asks the same.

    Neither Ray's launcher nor KubeRay's operator does in Ray 2.60: their limits are in :func:`_launcher_limits`, or
    unknown.
    """
    limits = state.get_max_resources_from_cluster_config()
    return {resource: float(amount) for resource, amount in limits.items()} if limits else None


def _autoscaler_runs() -> bool:
    """Whether Ray's autoscaler, of either version, runs with node types of its own (KubeRay's are its groups).

    Where a monitor runs without an autoscaler's configuration, the status gives every node a type of its own,
    ``node_<id>``; and the second version is switched on by those alone who configure it. A head that has just started
    is asked again until its monitor has looked for the first time: a job may be submitted the moment its cluster is
    up, as KubeRay does.
    """
    if is_autoscaler_v2(fetch_from_server=True):
        nodes = get_cluster_resource_state(internal_kv_get_gcs_client()).node_states
        return any(node.ray_node_type_name for node in nodes)
    deadline = time.monotonic() + _FIRST_LOOK_S
    while not (kinds := _kinds_of_nodes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return any(not kind.startswith("node_") for kind in kinds)


def _kinds_of_nodes() -> list[str]:
    """The types of the nodes as the first autoscaler's monitor last saw them; none before its first look."""
    status = _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
    report = json.loads(status).get("autoscaler_report") if status else None
    return list(((report or {}).get("node_type_mapping") or {}).values())


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


def _leave_quietly() -> None:
    """Leaves Ray at the end of this process without its last messages.

    The driver's C++ part writes errors to standard error as well as to its session's logs; that work still running
    cannot report its end to a driver that leaves is one of them, now and then.
    """
    if not ray.is_initialized():
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        ray.shutdown()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _many(amount: float) -> str:
    return "any number of" if amount >= sys.maxsize else f"{amount:g}"


def _ambient_address() -> str | None:
    """Returns the cluster this process was started in, if any."""
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return address
    return "auto" if _JOB_VARIABLE in os.environ else None


def _start_local(cpus: int, busy_processes: int, verbose: bool) -> None:
    """Starts a Ray that shares this process's fate; its workers inherit this process's environment."""
    threads = max(1, usable_cores() // max(1, busy_processes))
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
        found = describe(is_local=False)
        if "DS_ACCELERATOR" not in os.environ and not found.knows("GPU") and not found.unlimited:
            # Workers' variables can only be given on connecting, and only now is it known that no GPU is there.
            ray.shutdown()
            ray.init(**options, runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}})
    except (ConnectionError, RaySystemError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, AuthenticationError) or "InvalidAuthToken" in f"{error} {error.__cause__}":
            raise UserError(
                f"Ray address '{address}': the cluster asks for another token than this process has; export "
                "RAY_AUTH_MODE=token and copy the head's ~/.ray/auth_token here, or name it in RAY_AUTH_TOKEN_PATH"
            ) from error
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
