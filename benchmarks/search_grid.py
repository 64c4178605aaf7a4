"""Computes a whole grid of small LLaVAs once, for searches to be replayed on: ``benchmarks/search_grid.csv``.

    python -m benchmarks.search_grid

Every combination of an encoder to train with, one to be judged with (the same: end-to-end; another: plugged in), a
projector, a peak learning rate and a number of instruction steps, on the embedded data: trained by the stages of preset
``tiny`` in batches of 16, and judged on the first 8, 16 and 32 samples of both its benchmarks, clean and under attack.
Without Ray, in one process and thread, whose CPU time the seconds in the table are: that of the work alone, whatever
else the machine does. The same command again computes what is missing.
"""

import csv
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from rllava.attacks.protocols import PROTOCOLS
from rllava.conditions.attack import at_budgets
from rllava.conditions.condition import Condition
from rllava.data.benchmarks import BenchmarkSpec, build_benchmark, read_metric
from rllava.data.instructions import InstructionSpec, build_instructions
from rllava.data.shards import read_shard
from rllava.data.stream import MicroBatch, Stream, keep_and_decode
from rllava.encoders import build_encoder, encoder_spec
from rllava.evaluation.samples import decode_shard
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.victim import Victim
from rllava.filesystem import open_filesystem
from rllava.metrics.metric import Metric, MetricState
from rllava.model.assemble import build_connector
from rllava.model.llava import Connector, Llava
from rllava.recipes import PRESETS
from rllava.specs import EvalSpec, ModelSpec, Rates, Stage
from rllava.training.loop import train_stage
from sweeps.console import run_script

TRAINED = ("tiny-clip", "tiny-tecoa4", "tiny-advxl")
USED = ("tiny-clip", "tiny-fare4", "tiny-tecoa4", "tiny-advxl")
PROJECTORS = ("linear", "mlp2x_gelu")
RATES = (3e-4, 1e-3, 3e-3)
STEPS = (30, 90)
SHARD = 8
PREFIXES = (8, 16, 32)
BUDGET = 8.0
PROTOCOL = "paper_ensemble_3steps"

COLUMNS = (
    "trained", "used", "projector", "rate", "steps", "training_s",
    *(f"{what}_{samples}" for samples in PREFIXES for what in ("clean", "robust", "evaluation_s")),
)  # fmt: skip
"""Scores are means over the benchmarks, in the paper's units; CPU seconds."""


@dataclass(frozen=True)
class Options:
    """What to compute.

    Attributes:
        output: CSV file, which is gone on with.
        trained: encoders to train with; several processes may share the work so, and by projectors.
    """

    output: Path = Path("benchmarks/search_grid.csv")
    trained: tuple[str, ...] = TRAINED
    projectors: tuple[str, ...] = PROJECTORS


@dataclass(frozen=True)
class Data:
    """The embedded data, built into a folder.

    Attributes:
        shards: per set of instructions and per benchmark, by name.
        metrics: per benchmark, with its frozen state.
    """

    folder: str
    shards: dict[str, list[str]]
    metrics: dict[str, tuple[Metric, MetricState]]


def stages(rate: float, steps: int) -> tuple[Stage, Stage]:
    """The two stages of preset ``tiny``, shorter and in smaller batches.

    Args:
        rate: peak learning rate of the second, of projectors and language model.
    """
    align, instruct = PRESETS.get("tiny").model.stages
    align, instruct = (replace(stage, global_batch=16, micro_batch=16) for stage in (align, instruct))
    rates = Rates(projectors=rate, language_model=rate)
    return replace(align, steps=20), replace(instruct, steps=steps, rates=rates)


def benchmarks() -> tuple[BenchmarkSpec, ...]:
    """Those of preset ``tiny``, in shards of a quarter."""
    return tuple(replace(spec, samples=PREFIXES[-1], rows_per_shard=SHARD) for spec in PRESETS.get("tiny").benchmarks)


def build_data(folder: str) -> Data:
    """Builds what is trained on and what is asked."""
    filesystem, root = open_filesystem(folder)
    shards, metrics = {}, {}
    for stage in PRESETS.get("tiny").model.stages:
        shards[stage.data.name] = build_instructions(stage.data, filesystem, f"{root}/{stage.data.name}")
    for spec in benchmarks():
        shards[spec.name] = build_benchmark(spec, filesystem, f"{root}/{spec.name}")
        metrics[spec.name] = read_metric(filesystem, f"{root}/{spec.name}")
    return Data(folder, shards, metrics)


def batches(data: Data, spec: InstructionSpec, stage: Stage, image_size: int) -> Iterator[MicroBatch]:
    """One worker's portions of a stage, in the order in which Ray Data would bring them."""
    filesystem, _ = open_filesystem(data.folder)
    tables = [read_shard(filesystem, path) for path in data.shards[spec.name]]
    rows = sum(map(len, tables))
    size = stage.global_batch
    stream = Stream(data.folder, "", rows, spec.rows_per_shard, image_size, size, size, 0, 1, stage.fit)
    waiting: list[dict[str, object]] = []
    for epoch in itertools.count():
        for table in tables:
            waiting += keep_and_decode(table, stream, epoch * rows, 0, rows).to_pylist()
            while len(waiting) >= size:
                taken, waiting = waiting[:size], waiting[size:]
                pixels = np.frombuffer(b"".join(row["pixels"] for row in taken), np.uint8)  # type: ignore[misc]
                yield MicroBatch(
                    pixels.reshape(size, image_size, image_size, 3).copy(),
                    [str(row["conversations"]) for row in taken],
                    [None] * size,
                    [int(str(row["row"])) + epoch * rows for row in taken],
                )


def train(data: Data, spec: ModelSpec) -> tuple[Connector, object, float]:
    """Trains both stages in this process.

    Returns:
        The connector, its tokenizer, and seconds.
    """
    started = time.process_time()
    connector, tokenizer = build_connector(spec)
    encoders = [build_encoder(encoder) for encoder in spec.encoders]
    for number, stage in enumerate(spec.stages, start=1):
        train_stage(
            stage,
            encoders,
            connector,
            tokenizer,
            lambda step, stage=stage: batches(data, stage.data, stage, encoders[0].spec.image_size),  # type: ignore[misc]
            seed=number,
        )
    return connector, tokenizer, time.process_time() - started


def judge(data: Data, spec: ModelSpec, used: str, connector: Connector, tokenizer: object) -> dict[str, float]:
    """Scores of one encoder in a trained LLaVA, after each number of samples, and the seconds it took up to there."""
    encoders = (encoder_spec(used),)
    llava = Llava([build_encoder(encoders[0])], connector, tokenizer, spec.conversation).requires_grad_(False).eval()
    victim = Victim(llava, torch.device("cpu"))
    conditions = at_budgets(PROTOCOLS.get(PROTOCOL), (0.0, BUDGET))
    filesystem, _ = open_filesystem(data.folder)
    scores: dict[tuple[str, str], list[float]] = {}
    found: dict[str, float] = {}
    seconds = 0.0
    for shard in range(PREFIXES[-1] // SHARD):
        started = time.process_time()
        for benchmark in benchmarks():
            rows = read_shard(filesystem, data.shards[benchmark.name][shard])
            for condition, table in tables(victim, rows, spec, benchmark, conditions, data.metrics[benchmark.name]):
                scores.setdefault((condition, benchmark.name), []).extend(table.column("score").to_pylist())
        seconds += time.process_time() - started
        if (seen := (shard + 1) * SHARD) in PREFIXES:
            for name, kind in (("clean", "clean"), ("robust", "attack")):
                means = [np.mean(values) for (condition, _), values in scores.items() if condition == kind]
                found[f"{name}_{seen}"] = round(float(np.mean(means)), 3)
            found[f"evaluation_s_{seen}"] = round(seconds, 2)
    return found


def tables(
    victim: Victim, rows: pa.Table, spec: ModelSpec, benchmark: BenchmarkSpec, conditions: tuple[Condition, ...],
    metric: tuple[Metric, MetricState],
) -> Iterator[tuple[str, pa.Table]]:  # fmt: skip
    """Records of a shard, by the kind of condition."""
    samples = decode_shard(rows, spec.encoders[0].image_size, needs=benchmark.task.needs)
    specs = [EvalSpec("replayed", spec, spec.encoders, benchmark, condition, SHARD) for condition in conditions]
    for made, table in evaluate_shard(victim, samples, specs, *metric, checked=0):
        yield made.condition.kind, table


def main(options: Options) -> None:
    """Computes what is missing."""
    torch.set_num_threads(1)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # as DeepSpeed's own launcher does
    written = []
    if options.output.exists():
        with options.output.open() as file:
            written = [tuple(row[name] for name in COLUMNS[:5]) for row in csv.DictReader(file)]
    else:
        options.output.write_text(",".join(COLUMNS) + "\n")
    base = PRESETS.get("tiny").model
    with tempfile.TemporaryDirectory(prefix="rllava-grid-") as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        data = build_data(folder)
        for trained, projector, rate, steps in itertools.product(options.trained, options.projectors, RATES, STEPS):
            missing = [used for used in USED if (trained, used, projector, str(rate), str(steps)) not in written]
            if not missing:
                continue
            spec = replace(base, encoders=(encoder_spec(trained),), projector=projector, stages=stages(rate, steps))
            connector, tokenizer, took = train(data, spec)
            for used in missing:
                found = judge(data, spec, used, connector, tokenizer)
                own = [trained, used, projector, rate, steps, round(took, 2)]
                with options.output.open("a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerow([*own, *(found[name] for name in COLUMNS[6:])])
                print(*own, found, flush=True)
        dist.destroy_process_group()


if __name__ == "__main__":
    run_script(main, Options, __doc__)
