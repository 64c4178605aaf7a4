"""A made-up search over synthetic records: what ``sweeps.search_report`` would have written of it."""

import json
from typing import Any

from analysis.search import FILE
from rllava.filesystem import open_filesystem
from tests.analysis.synthetic import SyntheticSweep, write_manifest, write_sweep

SWEEP = SyntheticSweep(
    sweep="search_front",
    clean={"accurate": 0.95, "robust": 0.7, "both": 0.8, "neither": 0.4},
    decay={"accurate": 0.75, "robust": 0.99, "both": 0.95, "neither": 0.8},
    budgets=(0.0, 8.0),
    samples=48,
    part_rows=16,
)
COLUMNS = [
    {"name": "clean", "kind": "clean", "sign": 1.0, "budget": None, "worst": 0.0},
    {"name": "robust@8", "kind": "robust", "sign": 1.0, "budget": 8.0, "worst": 0.0},
]
SETTINGS = [
    {"name": "encoders", "values": ["accurate", "robust"], "when": None},
    {"name": "instruct_rate", "low": 1e-4, "high": 1e-2, "when": None},
]


def write_search(storage: str, seed: int = 0, shift: float = 0.0) -> dict[str, Any]:
    """Four configurations that finished both rungs (32 of 48 samples), nine that went out at the first.

    Args:
        shift: of the scores of the last rung, in points: another seed has found others.

    Returns:
        What was written of it.
    """
    manifest = write_sweep(storage, SWEEP)
    front = ["accurate", "robust", "both"]
    write_manifest(
        storage,
        {**manifest, "candidates": front, "records": [r for r in manifest["records"] if r["candidate"] in front]},
    )
    values = {"accurate": [95.0, 10.0], "robust": [70.0, 60.0], "both": [80.0, 50.0], "neither": [40.0, 5.0]}
    configurations = []
    for number, (name, points) in enumerate(values.items()):
        records = {r["path"]: 2 for r in manifest["records"] if r["candidate"] == name}
        last = {"rung": 1, "candidate": name, "values": [v + shift for v in points], "hours": 0.5}
        first = {"rung": 0, "candidate": f"{name}:stepsx0.5", "values": points, "hours": 0.25}
        rungs = [{**trial, "records": records, "judgements": {}} for trial in (first, last)]
        configurations.append(_configuration(number, rungs, "the last rung"))
    for number in range(4, 13):
        trial = {"rung": 0, "candidate": f"out{number}", "values": [10.0 * (number % 2), 1.0], "hours": 0.25}
        rungs = [{**trial, "records": {}, "judgements": {}}]
        configurations.append(_configuration(number, rungs, "not among the best 4 of 13 at rung 0"))
    run = {
        "name": "search", "seed": seed, "training_seed": 0, "sampler": "tpe", "startup": 10, "columns": COLUMNS,
        "settings": SETTINGS, "rungs": [{"samples": 16, "share": 0.5}, {"samples": 32, "share": 1.0}], "one_in": 3,
        "max_trials": 17, "max_hours": None, "trials": 17, "spent": 5.25, "benchmarks": list(SWEEP.benchmarks),
        "judged": [], "top": 1, "front": [0, 1, 2], "front_sweep": "search_front", "configurations": configurations,
        "timeline": [[n, 0, 0.25 * (n + 1)] for n in range(13)] + [[n, 1, 3.25 + 0.5 * (n + 1)] for n in range(4)],
    }  # fmt: skip
    filesystem, root = open_filesystem(storage)
    filesystem.pipe_file(f"{root}/reports/search/{FILE.format(seed)}", json.dumps(run).encode())
    return run


def _configuration(number: int, rungs: list[dict[str, Any]], fate: str) -> dict[str, Any]:
    chosen = {"encoders": ("accurate", "robust")[number % 2], "instruct_rate": 1e-3 + 1e-4 * number}
    name = rungs[-1]["candidate"]
    return {"number": number, "name": name, "source": "tpe", "configuration": chosen, "fate": fate, "rungs": rungs}
