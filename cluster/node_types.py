"""Node types: what machines a sweep can have, of which kind and how many. No torch, no Ray.

They come from a ``cluster.yaml`` of Ray's launcher, from the running cluster, or are this machine.
"""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster.machine import memory_limit, usable_cores
from rllava.errors import UserError

BOOT_S = 360.0
"""Assumed seconds from asking for a node to its first task: machine, container, setup commands."""

LAUNCHER = Path(__file__).parents[1] / "cluster.yaml"
"""The project's own template."""

_GIB = 2.0**30

_ACCELERATOR = "accelerator_type:"
"""What Ray begins the name of the resource with that says which GPU a node has."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        memory: bytes.
        half: peak operations per second in half precision; None: not known.
        float32: the same in float32.
    """

    name: str
    memory: float
    half: float | None = None
    float32: float | None = None


@dataclass(frozen=True)
class NodeType:
    """A kind of machine.

    Attributes:
        resources: Ray's names to amounts, of one node.
        most: nodes of it that there can be.
        there: nodes that are up already.
        kept: of which so many stay, however idle: a launcher's ``min_workers``.
        instance: the cloud's name of it; empty: none.
        gpu: None: it has none, or of no known kind.
        memory: of the host, in bytes; 0: not known.
        boot_s: seconds until a node that is asked for takes its first task.
        idle_s: seconds after which an idle node is given back; None: it stays.
    """

    name: str
    resources: Mapping[str, float]
    most: int
    there: int = 0
    instance: str = ""
    spot: bool = False
    gpu: Gpu | None = None
    memory: float = 0.0
    boot_s: float = BOOT_S
    idle_s: float | None = 300.0
    kept: int = 0

    def room(self, request: Mapping[str, float]) -> int:
        """How many workers of a request fit on one node."""
        if not any(request.values()):
            return 0
        return min(int((self.resources.get(name, 0.0) + 1e-6) // amount) for name, amount in request.items() if amount)


@dataclass(frozen=True)
class Machinery:
    """All node types that a plan is made for.

    Attributes:
        source: where they are from, for people.
        local: whether it is this machine, whose cores all processes share.
        most: nodes beside the head, all types together.
        cores: of this machine, where it is that.
    """

    kinds: tuple[NodeType, ...]
    source: str
    local: bool = False
    most: int = 1 << 20
    head: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def resources(self) -> dict[str, float]:
        """Ray's names to totals over all nodes that can be, the head included."""
        totals: dict[str, float] = {}
        for kind in self.kinds:
            count = kind.most if kind.name == self.head else min(kind.most, self.most)
            for name, amount in kind.resources.items():
                totals[name] = totals.get(name, 0.0) + count * amount
        return totals


def read_launcher(path: Path) -> Machinery:
    """Node types of a file of Ray's cluster launcher.

    Raises:
        UserError: if it cannot be read, or names no node types.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--plan-cluster {path} cannot be read ({error.strerror}); give a cluster.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--plan-cluster {path} is no YAML ({reason})") from error
    types = config.get("available_node_types") if isinstance(config, dict) else None
    if not isinstance(types, dict) or not types:
        raise UserError(f"--plan-cluster {path} names no available_node_types; give a file of Ray's cluster launcher")
    head = config.get("head_node_type")
    try:
        overall, idle = int(config.get("max_workers", 0)), 60.0 * float(config.get("idle_timeout_minutes", 5))
        kinds = tuple(_of_launcher(name, entry, name == head, overall, idle) for name, entry in types.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"--plan-cluster {path} is no file of Ray's cluster launcher ({error})") from error
    return Machinery(kinds, path.name, most=overall, head=head)


def _of_launcher(name: str, entry: Mapping[str, Any], is_head: bool, overall: int, idle: float) -> NodeType:
    node = entry.get("node_config") or {}
    kept = 0 if is_head else int(entry.get("min_workers", 0))
    instance = str(node.get("InstanceType", ""))
    known = _instances().get(instance, {})
    return NodeType(
        name,
        {key: float(amount) for key, amount in (entry.get("resources") or {}).items()},
        most=1 if is_head else min(int(entry.get("max_workers", overall)), overall),
        there=1 if is_head else kept,
        instance=instance,
        spot="InstanceMarketOptions" in node,
        gpu=gpus().get(str(known.get("gpu"))),
        memory=float(known.get("memory_gib", 0.0)) * _GIB,
        idle_s=None if is_head else float(entry.get("idle_timeout_s", idle)),
        kept=kept,
    )


def running_nodes(nodes: Sequence[Mapping[str, float]], limits: Mapping[str, float] | None) -> Machinery:
    """The nodes of a running cluster; nodes of equal GPUs, CPUs and labels are one type, with the least host memory of
    theirs, which differs by some bytes. What may come is not known but in sum.

    Args:
        nodes: resources of each, as Ray names them.
        limits: what the cluster can grow to; None: nothing is known, or nothing grows.
    """
    groups: dict[tuple[tuple[str, float], ...], list[Mapping[str, float]]] = {}
    for node in nodes:
        equal = {k: v for k, v in node.items() if not k.startswith(("node:", "object_store_memory")) and k != "memory"}
        groups.setdefault(tuple(sorted(equal.items())), []).append(node)
    kinds = []
    for number, (resources, alike) in enumerate(groups.items(), start=1):
        own, count = {k: v for k, v in resources if not k.startswith(_ACCELERATOR)}, len(alike)
        if all("memory" in node for node in alike):
            own["memory"] = min(node["memory"] for node in alike)
        growth = [int(limits[k] // v) for k, v in own.items() if limits and v and k in limits and k != "memory"]
        most = max(count, min(growth, default=count))
        models = [k.removeprefix(_ACCELERATOR) for k, _ in resources if k.startswith(_ACCELERATOR)]
        gpu = _by_label(models[0]) if models and own.get("GPU") else None
        kinds.append(NodeType(f"node{number}", own, most, count, gpu=gpu, memory=own.get("memory", 0.0), idle_s=None))
    return Machinery(tuple(kinds), "the running cluster")


def this_machine(trials: int, cpus: float) -> Machinery:
    """This machine as the only node; its GPUs are not looked at.

    Args:
        trials: that share its cores.
        cpus: logical ones that Ray is told of.
    """
    memory = min(float(psutil.virtual_memory().total), memory_limit(Path("/sys/fs/cgroup")))
    name = f"this machine, {usable_cores()} cores"
    kind = NodeType(name, {"CPU": cpus}, 1, 1, memory=memory, boot_s=0.0, idle_s=None)
    return Machinery((kind,), f"this machine, {trials} candidate{'s' if trials > 1 else ''} at a time", local=True)


@functools.cache
def gpus() -> dict[str, Gpu]:
    """Kinds of GPUs that are known, by name."""
    content = tomllib.loads(Path(__file__).with_name("hardware.toml").read_text())
    return {
        name: Gpu(name, entry["memory_gib"] * _GIB, entry["half"] * 1e12, entry["float32"] * 1e12)
        for name, entry in content["gpus"].items()
    }


def _by_label(label: str) -> Gpu | None:
    """A GPU by what Ray calls it, e.g. ``A100-80G``; of a model that Ray names without its size, the smaller one."""
    return gpus().get(f"{label}B") or gpus().get(label) or gpus().get(label.partition("-")[0])


@functools.cache
def _instances() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("prices.toml").read_text())["instances"]
    return found
