"""What the start of a finished sweep asks of its storage, and how long it takes: on a local disk and on S3.

    python -m benchmarks.start_of_sweep

A sweep is laid out as if it had run: real data, models without weights, records with made-up numbers. It is started
twice; the second start, which is measured, finds everything, the report included. The time is that of ``run``: Python's
start and its imports are over, and Ray is not needed. S3 is moto's server on this machine.
"""

import contextlib
import io
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.common import write_sheet
from benchmarks.storage_requests import Requests, counted_on_disk, counted_on_s3
from rllava.data.easy_vqa_source import easy_images
from rllava.data.shards import parquet_bytes
from rllava.errors import UserError
from rllava.evaluation.rows import record_head
from rllava.evaluation.samples import Sample
from rllava.records import RECORD_SCHEMA
from rllava.specs import EvalSpec
from rllava.store import Store
from sweeps.console import run_script
from sweeps.encoder_ablation import Options as Ablation
from sweeps.encoder_ablation import make_plan
from sweeps.plan import Plan, check_inputs, prepare_data
from sweeps.runner import Machines, run
from tests.fixtures.s3_server import BUCKET, run_s3_server

TINY = ("tiny-clip", "tiny-tecoa4", "tiny-fare4", "tiny-advxl")
CANDIDATES = (*TINY, *(f"{used}@{trained}" for trained in TINY for used in TINY if used != trained))
BENCHMARKS = ("easy_vqa", "easy_captions")
BUDGETS = ("0", "2", "4", "8", "16")
QUESTION = "<image>\nwhat color is the shape?"


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        candidates: rows of the grid, at most 16; each has 10 records artifacts.
        shards: of every records artifact, of 25 rows; at most 35.
        output: Markdown file to write.
        code: which state of the code is measured, for the sheet.
    """

    candidates: int = 10
    shards: int = 20
    output: Path = Path("benchmarks/sheets/start_of_sweep.md")
    code: str = "this state of the code"


def lay_out(storage: str, candidates: int, shards: int, benchmarks: Sequence[str] = BENCHMARKS) -> Plan:
    """Makes a finished sweep of preset smoke."""
    options = Ablation(
        preset="smoke",
        storage=storage,
        encoders=CANDIDATES[:candidates],
        benchmarks=tuple(benchmarks),
        budgets=BUDGETS,
        samples=25 * shards,
    )
    plan = check_inputs(make_plan(options))
    cut = tuple(replace(spec, rows_per_shard=25) for spec in plan.grid.benchmarks)
    plan = replace(plan, grid=replace(plan.grid, benchmarks=cut))
    plan.store.prepare()
    prepare_data(plan, lambda _: None)
    for candidate in plan.grid.candidates:
        spec, artifact = plan.model(candidate)
        plan.store.finish(artifact, spec, {"seconds": 1.0, "parameters": 1})
        for cell, records in plan.evaluations(candidate):
            for shard in range(shards):
                write_part(plan.store, f"{records.path}/part-{shard:05d}.parquet", cell, shard)
            plan.store.finish(records, cell, {"seconds": 1.0, "parts": shards})
    return plan


def write_part(store: Store, path: str, spec: EvalSpec, shard: int) -> None:
    """Writes records with made-up scores."""
    epsilon, (part,) = spec.condition.epsilon or 0.0, spec.condition.parts
    draw = np.random.default_rng([shard, int(epsilon)])
    images = easy_images("test")
    rows = [
        {
            **record_head(spec, Sample(f"test-{25 * shard + row:04d}", QUESTION, ("red",) * 10, None, None), part),
            "clean_prediction": "red",
            "prediction": "red",
            "clean_score": 100.0,
            "score": float(draw.integers(101)),
            "linf": epsilon,
            "prediction_8bit": "red",
            "score_8bit": 100.0,
            "steps": 30 if epsilon else 0,
            "rounds": ["apgd"] if epsilon else [],
            "round_predictions": ["red"] if epsilon else [],
            "round_scores": [100.0] if epsilon else [],
            "best_round": "clean",
            "loss_clean": 0.1,
            "loss_best": 0.2,
            "loss_last_rise": 0.0,
            "zero_gradient_share": 0.0,
            "checked": False,
            "findings": [],
            "clean_png": None if epsilon else images[25 * shard + row].png,
            "adversarial_png": images[25 * shard + row].png if epsilon else None,
        }
        for row in range(25)
    ]
    store.write(path, parquet_bytes(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA)))


def start(plan: Plan) -> float:
    """Starts a sweep."""
    fresh = replace(plan)  # nothing that the one before has found
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        run(fresh, Machines(None, 1, 1, None, None, 0.0))
    return time.perf_counter() - began


@contextlib.contextmanager
def s3_storage(folder: Path) -> Iterator[str]:
    """A bucket of a server on this machine.

    Yields:
        URL.
    """
    with run_s3_server(folder) as server:
        before = dict(os.environ)
        os.environ.update(server.env)
        try:
            yield f"s3://{BUCKET}/results"
        finally:
            os.environ.clear()
            os.environ.update(before)


def measure(options: Options) -> list[tuple[str, Requests, float]]:
    """Starts finished sweeps.

    Args:
        options: see :class:`Options`.

    Returns:
        Kind of storage, requests and seconds of a start.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="rllava-start-") as name, s3_storage(Path(name)) as url:
        for kind, storage in (("local", f"{name}/results"), ("S3", url)):
            plan = lay_out(storage, options.candidates, options.shards)
            start(plan)
            with counted_on_disk(storage) if kind == "local" else counted_on_s3() as requests:
                seconds = start(plan)
            print(f"{kind}: {seconds:.1f} s, {requests}", flush=True)
            found.append((kind, requests, seconds))
    return found


def main(options: Options) -> None:
    """Measures and writes the sheet.

    Args:
        options: see :class:`Options`.
    """
    if not 1 <= options.candidates <= len(CANDIDATES) or not 1 <= options.shards <= 35:
        raise UserError(f"--candidates and --shards: expected 1 to {len(CANDIDATES)} and 1 to 35")
    rows = [
        (options.code, kind, f"{requests.calls.total()}", str(requests), f"{seconds:.1f}")
        for kind, requests, seconds in measure(options)
    ]
    artifacts = options.candidates * len(BENCHMARKS) * len(BUDGETS)
    about = (
        f"`python -m benchmarks.start_of_sweep`: {options.candidates} candidates, {artifacts} records artifacts in "
        f"{artifacts * options.shards} shards,\nbesides models and data "
        f"({platform.machine()}, {os.cpu_count()} cores). Requests of the local disk are openings of files and folders."
    )
    write_sheet(
        options.output, "The start of a finished sweep", about, ("code", "storage", "requests", "which", "s"), rows
    )


if __name__ == "__main__":
    run_script(main, Options, __doc__)
