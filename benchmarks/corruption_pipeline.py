"""Whether a worker with a model waits for the tasks that corrupt images beside it.

    python -m benchmarks.corruption_pipeline

First each corruption alone: how long one core takes per image, at the paper's size, all five severities. Then the
pipeline of a sweep: two Ray Data tasks read, decode and corrupt shards, and one worker takes what they make. On a
machine with a GPU the worker computes elsewhere; here it sleeps for as long as an answer takes. It is measured how much
of the steady state it had nothing to do.

How long an answer takes at least: LLaVA-1.5-7B reads 620 tokens (576 of the image) with 6.7 billion parameters, 8.3
TFLOP, after a ViT-L/14 at 336 pixels, 0.4 TFLOP: 9 ms at an H100's dense peak of 989 TFLOP/s, which nothing reaches,
22 ms at 40 % of it, 56 ms at 50 % of an A100's 312. Writing the answer comes on top.
"""

import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from PIL import Image

from benchmarks.common import write_sheet
from cluster.connect import connect
from cluster.placement import logical_cpus, place
from rllava.data.benchmarks import BENCHMARK_SCHEMA
from rllava.data.corruptions import SEVERITIES, CorruptedViews, all_corruptions, check_library
from rllava.data.shards import parquet_bytes, shard_path
from rllava.errors import UserError
from rllava.evaluation.samples import load_unit, unpack
from rllava.store import Store
from rllava.tasks.task import Needs
from sweeps.console import run_script

SIDE = 336
"""Stated size, and size of the encoder's input, as in the paper."""

TASKS = 2
"""That corrupt at a time."""

HEAD = ("an answer takes, ms", "images", "steady state, s", "the worker waited, s", "share of it, %")
"""Of the sheet's table."""


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        rows: images of a shard.
        shards: of the benchmark.
        answers_ms: how long the worker takes per image, one run of the pipeline each.
        output: Markdown file to write.
    """

    rows: int = 5
    shards: int = 3
    answers_ms: tuple[float, ...] = (9.0, 22.0, 56.0)
    output: Path = Path("benchmarks/sheets/corruption_pipeline.md")


@dataclass(frozen=True)
class Run:
    """One way of the pipeline through all images.

    Attributes:
        images: that the worker was given after its first unit.
        steady_s: from the end of the worker's first unit to the end of its last.
        waited_s: of it, with nothing to do.
    """

    images: int
    steady_s: float
    waited_s: float


def photograph(seed: int) -> bytes:
    """A JPEG of 640 x 480 pixels with structure at all scales, as photographs have."""
    generator = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(generator.integers(0, 256, (480 // size, 640 // size, 3), dtype=np.uint8)).resize(
                (640, 480), Image.Resampling.BICUBIC
            ),
            dtype=np.float64,
        )
        for size in (2, 8, 40, 160)
    ]
    buffer = BytesIO()
    Image.fromarray(np.mean(layers, axis=0).astype(np.uint8)).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def write_benchmark(folder: str, options: Options) -> list[str]:
    """Shards as a benchmark has them."""
    store, paths = Store(folder), []
    for shard in range(options.shards):
        rows = [
            {
                "row": shard * options.rows + n,
                "sample_id": f"{shard}-{n}",
                "image": photograph(shard * options.rows + n),
                "prompt": "<image>\nProvide a short caption for this image.",
                "references": ["a picture"],
            }
            for n in range(options.rows)
        ]
        paths.append(shard_path(f"{store.root}/data", shard))
        store.write(paths[-1], parquet_bytes(pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA)))
    return paths


def seconds_per_image(name: str, images: Sequence[bytes]) -> float:
    """How long one core takes to make a corrupted image, decoding and resizing included, on average over severities.

    Args:
        images: encoded; the first is not timed.
    """
    views = CorruptedViews(name, SEVERITIES, SIDE, "inside")
    views(images[0], "warm-up")  # what is loaded once
    started = time.process_time()
    for number, image in enumerate(images[1:]):
        views(image, str(number))
    return (time.process_time() - started) / (len(images) - 1) / len(SEVERITIES)


class Answerer:
    """Stands in for a worker whose model computes on a GPU: it takes a unit, and sleeps as long as its answers take."""

    def __init__(self, answer_s: float) -> None:
        self.answer_s = answer_s

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Answers.

        Args:
            batch: one unit as :func:`rllava.evaluation.samples.load_unit` returned it.

        Yields:
            When it began and ended, Unix time, and how many images there were.
        """
        began = time.time()
        images = sum(len(sample.views) for sample in unpack(bytes(batch["samples"][0])))
        time.sleep(max(0.0, self.answer_s * images - (time.time() - began)))
        yield {"began": [began], "ended": [time.time()], "images": [images]}


def run_pipeline(folder: str, paths: Sequence[str], answer_s: float) -> Run:
    """Sends all shards under all corruptions through the pipeline, in the order of a sweep."""
    names = all_corruptions()
    units = [
        {"benchmark": "photographs", "path": path, "shard": shard, "indices": [n]}
        for shard, path in enumerate(paths)
        for n in range(len(names))
    ]
    views = {n: CorruptedViews(name, SEVERITIES, SIDE, "inside") for n, name in enumerate(names)}
    loading = {"storage": folder, "image_size": SIDE, "views": views, "needs": {"photographs": Needs()}}
    info = connect("local", cpus=logical_cpus())
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        placement = place(info, workers=1)
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_items(units, override_num_blocks=len(units))
        dataset = dataset.map(
            load_unit, fn_kwargs=loading, compute=ray.data.TaskPoolStrategy(TASKS), **placement.data_args()
        )
        dataset = dataset.map_batches(
            Answerer, fn_constructor_kwargs={"answer_s": answer_s}, batch_size=1, **placement.attack_args()
        )
        rows = sorted(dataset.iter_rows(), key=lambda row: float(row["began"]))
    finally:
        ray.shutdown()
    waited = sum(float(then["began"]) - float(now["ended"]) for now, then in pairwise(rows))
    steady = float(rows[-1]["ended"]) - float(rows[0]["ended"])
    return Run(sum(int(row["images"]) for row in rows[1:]), steady, waited)


def main(options: Options) -> None:
    """Measures and writes the sheet.

    Args:
        options: see :class:`Options`.

    Raises:
        UserError: if there is too little to do.
    """
    if options.rows < 2 or options.shards < 1:
        raise UserError("expected at least --rows 2 and --shards 1")
    check_library()
    images = [photograph(seed) for seed in range(options.rows)]
    cost = {name: seconds_per_image(name, images) for name in all_corruptions()}
    mean = float(np.mean(list(cost.values())))
    alone = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in cost.items())
    print(f"ms per image on one core: {alone}; mean {1000 * mean:.1f}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="rllava-corruption-pipeline-") as folder:
        paths = write_benchmark(folder, options)
        for answer_ms in options.answers_ms:
            run = run_pipeline(folder, paths, answer_ms / 1000)
            share = 100 * run.waited_s / run.steady_s
            rows.append(
                (f"{answer_ms:g}", f"{run.images}", f"{run.steady_s:.1f}", f"{run.waited_s:.2f}", f"{share:.1f}")
            )
            print(f"{answer_ms:g} ms an answer: the worker waited {share:.1f} % of {run.steady_s:.1f} s", flush=True)
    text = (
        f"`python -m benchmarks.corruption_pipeline`: {options.shards} shards of {options.rows} photographs, all "
        f"corruptions and severities at {SIDE} pixels,\n{TASKS} tasks that corrupt and one worker that sleeps as long "
        f"as its answers take ({platform.machine()}, {os.cpu_count()} cores).\nOne core takes, in ms per image, "
        f"decoding and resizing included: {alone}; {1000 * mean:.1f} on average,\nso {TASKS} tasks feed a worker "
        f"that takes {1000 * mean / TASKS:.0f} ms or more per answer."
    )
    write_sheet(options.output, "A worker beside the tasks that corrupt images", text, HEAD, rows)


if __name__ == "__main__":
    run_script(main, Options, __doc__)
