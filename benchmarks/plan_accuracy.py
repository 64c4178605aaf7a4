"""What a plan predicts beside what a sweep takes, phase by phase.

    python -m benchmarks.plan_accuracy [--preset tiny] [--nodes 0] [--storage DIR] [--output FILE]

The sweep is planned twice: calibrated, before anything has run; and after its first candidate has, whose steps then say
how fast the others go. Then it runs, on this machine or, with --nodes, on a cluster of so many local nodes, and its
storage says what every step took. A machine that does other things measures those, too: the load is in the sheet.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import tyro
from ray.cluster_utils import Cluster

from cluster.placement import logical_cpus


@dataclass(frozen=True)
class Options:
    """What is planned and run.

    Attributes:
        preset: of the encoder ablation.
        encoders: candidates instead of the preset's; the first one is run before the second plan.
        budgets: instead of the preset's.
        nodes: of a local cluster on which it runs; 0: this machine's own Ray.
        storage: results folder; none: a temporary one.
        output: Markdown file.
    """

    preset: str = "tiny"
    encoders: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    nodes: int = 0
    storage: Path | None = None
    output: Path | None = None


def main(options: Options) -> None:
    """Plans, runs, plans, runs, and compares."""
    with tempfile.TemporaryDirectory(prefix="rllava-plan-") as scratch, cluster(options.nodes) as address:
        storage = options.storage or Path(scratch) / "results"
        arguments = ["--preset", options.preset, "--storage", str(storage)]
        arguments += ["--encoders", *options.encoders] if options.encoders else []
        arguments += ["--budgets", *options.budgets] if options.budgets else []
        where = ["--address", address, "--attack-workers", "1"] if address else []
        cold = plan([*arguments, *where, "--calibrate"])
        first = next(step["candidate"] for step in cold["steps"] if step["kind"] == "records")
        alone = [*arguments[:4], "--encoders", first, *(("--budgets", *options.budgets) if options.budgets else ())]
        started = time.time()
        run([*alone, *where])
        warm = plan([*arguments, *where])
        between = time.time()
        run([*arguments, *where])
        walls = [between - started, time.time() - between]
        text = sheet(options, cold, warm, took(storage), walls)
    print(text)
    if options.output is not None:
        options.output.write_text(text)


@contextmanager
def cluster(nodes: int) -> Iterator[str | None]:
    """A head without CPUs and some nodes with room for one trial each: on a host that has a core for each of them, they
    go as fast as machines of their own would. None: no cluster."""
    if not nodes:
        yield None
        return
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    try:
        for _ in range(nodes):
            made.add_node(num_cpus=logical_cpus(trials=1, workers=1, attack_workers=1), num_gpus=0)
        yield made.address
    finally:
        ray.shutdown()
        made.shutdown()


def _sweep(arguments: Sequence[str]) -> str:
    command = [sys.executable, "-W", "ignore", "sweeps/encoder_ablation.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def plan(arguments: Sequence[str]) -> dict[str, Any]:
    """A plan as JSON."""
    found: dict[str, Any] = json.loads(_sweep([*arguments, "--plan", "json"]))
    return found


def run(arguments: Sequence[str]) -> None:
    """The sweep itself."""
    _sweep(arguments)


def took(storage: Path) -> dict[str, float]:
    """Seconds by the path of a step's artifact, from the markers."""
    return {
        f"{kind}/{folder.name}": float(json.loads((folder / "COMPLETE").read_text())["seconds"])
        for kind in ("models", "records")
        for folder in (storage / kind).iterdir()
        if (folder / "COMPLETE").exists()
    }


def sheet(
    options: Options, cold: dict[str, Any], warm: dict[str, Any], real: dict[str, float],
    walls: Sequence[float],
) -> str:  # fmt: skip
    """The comparison as Markdown, phase by phase and in all."""
    load = os.getloadavg()[1]
    lines = [
        f"# Plans of the preset {options.preset}, and what came",
        "",
        f"`python -m benchmarks.plan_accuracy --preset {options.preset}"
        f"{f' --nodes {options.nodes}' if options.nodes else ''}`, {os.cpu_count()} cores, load average {load:.1f} at "
        "its end, its own part included. Seconds of workers, start-up of groups included.",
        "",
        "| plan | phase | steps | predicted, s | took, s | off by, % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for label, made in (("calibrated", cold), ("after the first candidate", warm)):
        for phase, chosen in _phases(made):
            pairs = [
                (step["worker_seconds"] + _start(step), real[step["path"]]) for step in chosen if step["path"] in real
            ]
            if pairs:
                predicted, found = (sum(column) for column in zip(*pairs, strict=True))
                off = 100 * (predicted / found - 1)
                lines.append(f"| {label} | {phase} | {len(pairs)} | {predicted:.1f} | {found:.1f} | {off:+.0f} |")
    if warm["wall_seconds"]:
        off = 100 * (warm["wall_seconds"] / walls[1] - 1)
        nodes = f"{options.nodes} local nodes" if options.nodes else "this machine"
        wall = f"{warm['wall_seconds']:.1f} | {walls[1]:.1f} | {off:+.0f}"
        lines.append(f"| after the first candidate | wall-clock, {nodes} | | {wall} |")
    return "\n".join(lines) + "\n"


def _start(step: dict[str, Any]) -> float:
    return 14.0 if step["kind"] == "models" else 0.0


def _phases(made: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    to_do = [step for step in made["steps"] if not step["found"]]
    phases = [("training", [step for step in to_do if step["kind"] == "models"])]
    ends = sorted({step["name"].rpartition("-")[2] for step in to_do if step["kind"] == "records"})
    for end in ends:
        own = [step for step in to_do if step["kind"] == "records" and step["name"].endswith(f"-{end}")]
        phases.append((f"records {end}", own))
    return phases


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
