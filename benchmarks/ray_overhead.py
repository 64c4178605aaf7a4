"""What Ray Data and its pool of attack workers cost over the bare engine: the same work on both sides, in one run.

    python -m benchmarks.ray_overhead --storage results --model tiny-tecoa4

One side is a loop in this process: read a shard, decode it, attack it, write its parts. The other is the pipeline of
the sweeps in a local Ray with one attack worker. Model, shards, protocol, budgets and threads are the same. Each run of
the pipeline starts a Ray of its own and stops it, so that nothing of Ray runs beside the bare loop.

Both sides are timed by the files they write: from the first finished shard to the last one is the steady state. What
comes before, on the pipeline's side the start of Ray and of a worker that loads the model, is start-up.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import ray
import torch

from benchmarks.common import trained_llava, write_sheet
from cluster.connect import connect
from cluster.placement import logical_cpus, place
from rllava.attacks.protocols import PROTOCOLS
from rllava.conditions.attack import within
from rllava.data.benchmarks import BENCHMARKS, build_benchmark, read_metric
from rllava.data.shards import list_shards, parquet_bytes, read_shard
from rllava.errors import SweepError, UserError
from rllava.evaluation.pipeline import EvalJob, PoolArguments, evaluate
from rllava.evaluation.samples import decode_shard
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.victim import Victim
from rllava.model.llava import Llava
from rllava.specs import EvalSpec
from rllava.store import Store
from sweeps.console import run_script

GOAL = 0.05
"""Largest overhead in the steady state that we accept, as a share of the bare loop's time."""

ANSWERS = ("sample_id", "clean_prediction", "clean_score", "prediction", "score", "prediction_8bit", "score_8bit")
"""Columns of a record in which the two sides must not differ."""

HEAD = (
    "side", "steady state, s", "of it between attacks, s", "samples/s in it",
    "to the first shard, without Ray's start, s", "from the last shard to the end, s", "whole, s",
)  # fmt: skip
"""Of the sheet's table."""


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        storage: local results folder of an ablation; only read.
        model: candidate trained there, end-to-end.
        benchmark: name.
        shards: units of work.
        rows_per_shard: samples of each.
        budgets: in 1/255.
        protocol: name.
        batch_size: samples attacked together.
        repeats: of both sides, in turns.
        threads: of PyTorch, in this process and in the attack worker.
        output: Markdown file to write.
    """

    storage: Path = Path("results")
    model: str = "tiny-tecoa4"
    benchmark: str = "easy_vqa"
    shards: int = 8
    rows_per_shard: int = 32
    budgets: tuple[float, ...] = (0.0, 8.0)
    protocol: str = "paper_ensemble_10steps"
    batch_size: int = 32
    repeats: int = 5
    threads: int = 1
    output: Path = Path("benchmarks/sheets/ray_overhead.md")


@dataclass(frozen=True)
class Work:
    """What both sides do.

    Attributes:
        llava: attacked model, loaded in this process.
        model_path: where the pipeline's worker loads the same from.
        specs: evaluations of one benchmark, one per budget.
        data: folder of the benchmark's shards.
    """

    llava: Llava
    model_path: str
    specs: tuple[EvalSpec, ...]
    data: str

    def job(self, folder: Path) -> EvalJob:
        """The same work with its records in another place.

        Returns:
            What :func:`rllava.evaluation.pipeline.evaluate` takes.
        """
        store = Store(str(folder))
        paths = tuple(store.artifact("records", spec.name, spec).path for spec in self.specs)
        return EvalJob(str(folder), self.model_path, self.specs, paths, {self.specs[0].benchmark.name: self.data})


@dataclass(frozen=True)
class Run:
    """One side's way through all shards; seconds since it began.

    Attributes:
        ray_ready: when Ray had started; 0 without Ray.
        finished: when each shard's last part was written, rising.
        attacking: duration of attacking and writing each shard, in the same order.
    """

    ray_ready: float
    finished: tuple[float, ...]
    attacking: tuple[float, ...]
    ended: float

    @property
    def steady(self) -> float:
        """From the first finished shard to the last."""
        return self.finished[-1] - self.finished[0]

    @property
    def between(self) -> float:
        """The part of the steady state in which no shard was attacked."""
        return self.steady - sum(self.attacking[1:])

    @property
    def first(self) -> float:
        """To the first finished shard, without the start of Ray itself."""
        return self.finished[0] - self.ray_ready

    @property
    def tail(self) -> float:
        """From the last finished shard to the end."""
        return self.ended - self.finished[-1]


@dataclass(frozen=True)
class Measured:
    """All repeats.

    Attributes:
        bare: the loop in this process.
        attacked: records that took gradient steps; clean failures take none.
        differing: columns of the records that are not the same on both sides; none of :data:`ANSWERS`.
    """

    bare: Sequence[Run]
    pooled: Sequence[Run]
    samples: int
    records: int
    attacked: int
    differing: Sequence[str]

    @property
    def overheads(self) -> list[float]:
        """Per repeat: what the pipeline took longer in the steady state, as a share of the bare loop's time."""
        return [pooled.steady / bare.steady - 1 for bare, pooled in zip(self.bare, self.pooled, strict=True)]

    @property
    def gaps(self) -> list[float]:
        """Per repeat: how much longer no shard was attacked, as a share of the bare loop's time."""
        return [
            (pooled.between - bare.between) / bare.steady for bare, pooled in zip(self.bare, self.pooled, strict=True)
        ]

    @property
    def met(self) -> bool:
        """Whether the median overhead is within :data:`GOAL`."""
        return statistics.median(self.overheads) <= GOAL


def run_bare(work: Work, folder: Path) -> Run:
    """The loop in this process."""
    job = work.job(folder)
    store = Store(job.storage)
    began = time.time()
    worker = Victim(work.llava, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    metric, state = read_metric(store.filesystem, work.data)
    attacking = {}
    for shard, path in enumerate(list_shards(store.filesystem, work.data)):
        table = read_shard(store.filesystem, path)
        samples = decode_shard(table, work.llava.image_size, needs=job.specs[0].benchmark.task.needs)
        started = time.monotonic()
        for spec, table in evaluate_shard(worker, samples, job.specs, metric, state):
            store.write(job.part(job.specs.index(spec), shard), parquet_bytes(table))
        attacking[shard] = time.monotonic() - started
    return timed(job, attacking, began, began)


def run_pooled(work: Work, folder: Path) -> Run:
    """The pipeline in a local Ray, which is started here and stopped again."""
    assert not ray.is_initialized(), "another Ray than the measured one"
    job = work.job(folder)
    began = time.time()
    info = connect("local", cpus=logical_cpus())
    ray_ready = time.time()
    try:
        placement = place(info, workers=1)
        attacking: dict[int, float] = {}
        for part in evaluate(job, PoolArguments(attack=placement.attack_args(), data=placement.data_args())):
            attacking[part.shard] = attacking.get(part.shard, 0.0) + part.seconds
        return timed(job, attacking, began, ray_ready)
    finally:
        ray.shutdown()


def timed(job: EvalJob, attacking: Mapping[int, float], began: float, ray_ready: float) -> Run:
    """Reads the times at which parts were written.

    Args:
        attacking: seconds, by shard.
    """
    ended = time.time()
    written = {
        shard: max(os.stat(job.part(place, shard)).st_mtime for place in range(len(job.specs))) - began
        for shard in attacking
    }
    order = sorted(written, key=lambda shard: written[shard])
    return Run(
        ray_ready=ray_ready - began,
        finished=tuple(written[shard] for shard in order),
        attacking=tuple(attacking[shard] for shard in order),
        ended=ended - began,
    )


def records(job: EvalJob) -> pa.Table:
    """All records of a job.

    Returns:
        By budget, shard and row.
    """
    filesystem = Store(job.storage).filesystem
    parts = [read_shard(filesystem, part) for folder in job.paths for part in list_shards(filesystem, folder)]
    return pa.concat_tables(parts)


def differing_columns(bare: pa.Table, pooled: pa.Table) -> list[str]:
    """Compares the records of both sides.

    Returns:
        Columns that are not the same.

    Raises:
        SweepError: if answers or scores are among them.
    """
    names = [name for name in bare.column_names if not bare.column(name).equals(pooled.column(name))]
    wrong = [name for name in names if name in ANSWERS]
    if wrong:
        raise SweepError(f"the two sides disagree in {', '.join(wrong)}; a comparison of their times means nothing")
    return names


def measure(work: Work, repeats: int, folder: Path) -> Measured:
    """Runs both sides in turns; which of them begins alternates too.

    Args:
        folder: for the records of all runs.
    """
    sides: dict[str, Callable[[Work, Path], Run]] = {"bare": run_bare, "pooled": run_pooled}
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    differing: dict[str, None] = {}
    for repeat in range(repeats):
        places = {side: folder / f"{side}-{repeat}" for side in sides}
        for side in sides if repeat % 2 == 0 else reversed(sides):
            run = sides[side](work, places[side])
            runs[side].append(run)
            print(
                f"{side}: {run.steady:.2f} s, of it {run.between:.2f} s between attacks, "
                f"after {run.finished[0]:.2f} s for the first shard",
                flush=True,
            )
        tables = {side: records(work.job(places[side])) for side in sides}
        differing |= dict.fromkeys(differing_columns(tables["bare"], tables["pooled"]))
    table = tables["bare"]
    return Measured(
        bare=runs["bare"],
        pooled=runs["pooled"],
        samples=table.num_rows // len(work.specs),
        records=table.num_rows,
        attacked=sum(bool(steps) for steps in table.column("steps").to_pylist()),
        differing=list(differing),
    )


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median with the smallest and the largest value.

    Args:
        values: at least one.

    Returns:
        A text like ``5.12 (5.01 to 5.40)``.
    """
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def conclusion(measured: Measured) -> str:
    """What the measurement says.

    Returns:
        Four sentences, a line each.
    """
    overhead, gap = (
        spread([100 * share for share in shares], "+.1f") for shares in (measured.overheads, measured.gaps)
    )
    ray_ready = spread([run.ray_ready for run in measured.pooled], ".1f")
    first_bare, first_pooled = (
        statistics.median(run.first for run in runs) for runs in (measured.bare, measured.pooled)
    )
    same = f"but for {', '.join(measured.differing)}" if measured.differing else "in every column"
    return "\n".join(
        (
            f"Overhead in the steady state: {overhead} %; goal: at most {GOAL:.0%}, "
            f"{'met' if measured.met else 'not met'} by the median.",
            f"Of it, longer gaps between the attacks on two shards: {gap} %. The rest is the speed of the attacks "
            "themselves, in which the two sides share code, and what else this machine did.",
            f"Start-up, not in it: Ray itself {ray_ready} s, then the first shard {first_pooled - first_bare:.1f} s "
            "later than in the bare loop (a worker starts and loads the model).",
            f"The {measured.records} records of both sides, {measured.attacked} of them attacked, are the same {same}.",
        )
    )


def table_rows(measured: Measured) -> Iterator[tuple[str, ...]]:
    """The sheet's table.

    Yields:
        One row per side.
    """
    for side, runs in (("bare loop", measured.bare), ("Ray Data and actor pool", measured.pooled)):
        shards = len(runs[0].finished)
        steady_samples = measured.samples * (shards - 1) / shards
        yield (
            side,
            spread([run.steady for run in runs]),
            spread([run.between for run in runs]),
            spread([steady_samples / run.steady for run in runs], ".1f"),
            spread([run.first for run in runs]),
            spread([run.tail for run in runs]),
            spread([run.ended for run in runs]),
        )


def prepare(options: Options, folder: Path) -> Work:
    """Loads the model and builds the shards.

    Args:
        options: see :class:`Options`.

    Returns:
        The work of both sides.

    Raises:
        UserError: if there is no such model, or too little to do.
    """
    for option, value, least in (("shards", options.shards, 2), ("repeats", options.repeats, 1)):
        if value < least:
            raise UserError(f"--{option} {value}: expected at least {least}")
    if not options.budgets or any(first >= second for first, second in pairwise(options.budgets)):
        raise UserError("--budgets: expected rising numbers in 1/255")
    llava, model = trained_llava(options.storage, options.model)
    artifact = Store(str(options.storage)).artifact("models", model.name, model)
    samples = options.shards * options.rows_per_shard
    benchmark = replace(BENCHMARKS.get(options.benchmark), samples=samples, rows_per_shard=options.rows_per_shard)
    store = Store(str(folder))
    build_benchmark(benchmark, store.filesystem, store.root)
    protocol = PROTOCOLS.get(options.protocol)
    specs = tuple(
        EvalSpec(options.model, model, model.encoders, benchmark, within(protocol, epsilon), options.batch_size)
        for epsilon in options.budgets
    )
    return Work(llava, artifact.path, specs, store.root)


def about(options: Options) -> str:
    """What was run, for the sheet.

    Args:
        options: see :class:`Options`.
    """
    budgets = ", ".join(f"{epsilon:g}" for epsilon in options.budgets)
    return (
        f"`python -m benchmarks.ray_overhead`: {options.model} of the ablation on {options.benchmark}, "
        f"{options.shards} shards of {options.rows_per_shard} samples,\n"
        f"{options.protocol} at {budgets}/255 in batches of {options.batch_size}, one attack worker, "
        f"PyTorch threads on either side: {options.threads}\n"
        f"({platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, ray {ray.__version__}). Median of "
        f"the repeats ({options.repeats}, the sides in turns), and from the smallest to the largest.\n"
        "The steady state goes from the first finished shard to the last."
    )


def main(options: Options) -> None:
    """Measures and writes the sheet.

    Args:
        options: see :class:`Options`.
    """
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # a local Ray and its workers inherit it
    with tempfile.TemporaryDirectory(prefix="rllava-ray-overhead-") as name:
        work = prepare(options, Path(name) / "data")
        measured = measure(work, options.repeats, Path(name))
    print(conclusion(measured))
    write_sheet(
        options.output,
        "Ray Data and an actor pool beside the bare engine",
        f"{about(options)}\n\n{conclusion(measured)}",
        HEAD,
        list(table_rows(measured)),
    )


if __name__ == "__main__":
    run_script(main, Options, __doc__)
