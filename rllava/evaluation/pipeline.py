"""Streams the shards of benchmarks through a pool of attack workers (Ray Data) and completes the records.

A unit of work is one shard of one benchmark. Its rows are read and decoded in CPU tasks; an attack worker loads the
model once, answers the clean images once, and writes one part per budget under a fixed name. A part that is there is
never computed again, so a killed worker's successor, or a second run, does only what is missing.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray.data
import torch

from rllava.data.benchmarks import read_metric
from rllava.data.shards import list_shards, parquet_bytes, shard_path
from rllava.encoders import input_size
from rllava.evaluation.answers import answer_bank
from rllava.evaluation.in_flight import InFlight, Keeping, state_path
from rllava.evaluation.samples import Sample, load_unit, unpack
from rllava.evaluation.transfer import images_of_others
from rllava.evaluation.worker import HALF, AttackWorker, evaluate_shard, rounds_of, run_as
from rllava.model.assemble import load_llava
from rllava.model.checkpoint import load_checkpoint
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.snapshot import OF, PARTS
from rllava.specs import EvalSpec
from rllava.store import Artifact, Store


@dataclass(frozen=True)
class EvalJob:
    """What the attack workers of one candidate need to know. All specs share model and encoders.

    Attributes:
        storage: URL.
        model_path: of the trained LLaVA in the storage.
        specs: evaluations, complete ones left out.
        paths: of their records artifacts, in the same order.
        data: benchmark name to the folder of its shards.
        first: how many of a benchmark's first shards are evaluated, by its name; those not named: all.
        save_every_s: seconds between two saved states of an attack in flight; a killed worker loses at most that.
    """

    storage: str
    model_path: str
    specs: tuple[EvalSpec, ...]
    paths: tuple[str, ...]
    data: Mapping[str, str]
    first: Mapping[str, int] = field(default_factory=dict)
    save_every_s: float = 60.0

    def part(self, place: int, shard: int) -> str:
        """Path of a part.

        Args:
            place: of the spec.
            shard: number.

        Returns:
            The path.
        """
        return shard_path(self.paths[place], shard)


@dataclass(frozen=True)
class PoolArguments:
    """Resources of the two kinds of Ray work, as arguments of ``map_batches`` and ``read_*``.

    Attributes:
        attack: of the pool of attack workers.
        data: of the tasks that read and decode.
    """

    attack: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PartDone:
    """One part was written.

    Attributes:
        place: of its evaluation in the job.
        shard: number.
        rows: records in it.
        mean: of their scores; NaN if none has one.
        seconds: it took (the first part of a shard includes the clean answers).
    """

    place: int
    shard: int
    rows: int
    mean: float
    seconds: float


def units(job: EvalJob) -> list[dict[str, Any]]:
    """The shards that some evaluation still lacks.

    Args:
        job: what to do.

    Returns:
        Per shard: benchmark, path, number.
    """
    store = Store(job.storage)
    written = {path for folder in job.paths for path in list_shards(store.filesystem, folder)}
    work = []
    for name, folder in job.data.items():
        places = [place for place, spec in enumerate(job.specs) if spec.benchmark.name == name]
        for number, path in enumerate(list_shards(store.filesystem, folder)[: job.first.get(name)]):
            if any(job.part(place, number) not in written for place in places):
                work.append({"benchmark": name, "path": path, "shard": number})
    return work


def evaluate(job: EvalJob, pool: PoolArguments) -> Iterator[PartDone]:
    """Attacks what is missing.

    Args:
        job: what to do; the leases of its artifacts are held by the caller.
        pool: resources.

    Yields:
        Each part as it is written.
    """
    work = units(job)
    if not work:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_items(work, override_num_blocks=len(work))
    image_size = input_size(job.specs[0].encoders)
    dataset = dataset.map(load_unit, fn_kwargs={"storage": job.storage, "image_size": image_size}, **pool.data)
    dataset = dataset.map_batches(
        ShardAttacker,
        fn_constructor_kwargs={"job": job},
        batch_size=1,
        **{"compute": ray.data.ActorPoolStrategy(size=1), **pool.attack},
    )
    for row in dataset.iter_rows():
        yield PartDone(
            place=int(row["place"]),
            shard=int(row["shard"]),
            rows=int(row["rows"]),
            mean=float(row["mean"]),
            seconds=float(row["seconds"]),
        )


def facts_of(
    store: Store, artifact: Artifact, data_folder: str, seconds: float, first: int | None = None
) -> dict[str, Any]:
    """What a records artifact's marker says, after a last look that every part is there.

    Its facts say how the parts were computed, of which several runs may have made some.

    Args:
        store: results folder.
        artifact: of the records.
        data_folder: shards of the benchmark.
        seconds: spent on its parts since the last start.
        first: how many of its first parts were asked for; None: all.

    Returns:
        The facts.
    """
    shards, there = list_shards(store.filesystem, data_folder), {*list_shards(store.filesystem, artifact.path)}
    expected = [shard_path(artifact.path, number) for number in range(len(shards))]
    parts = list(itertools.takewhile(there.__contains__, expected))  # an earlier question may have asked for more
    asked = len(expected[:first])
    assert len(parts) >= asked, f"{artifact.relative}: {len(parts)} of {asked} parts"
    left = {state_path(artifact.path, number) for number in range(len(parts))}
    for path in left.intersection(store.filesystem.ls(artifact.path, detail=False)):
        store.filesystem.rm_file(path)  # of a worker that was killed after its part was written
    run = list({json.dumps(how): how for part in parts if (how := how_made(store, part))}.values())
    return {PARTS: len(parts), OF: len(shards), "seconds": round(seconds, 2), "run_as": run}


def how_made(store: Store, part: str) -> dict[str, Any]:
    """How a part was computed; its footer alone is read.

    Args:
        store: results folder.
        part: path in it.

    Returns:
        See :func:`rllava.evaluation.worker.run_as`.
    """
    with store.filesystem.open(part, "rb") as file:
        return run_as(pq.read_schema(file))


def load_dtype(specs: Sequence[EvalSpec]) -> torch.dtype:
    """In which precision a model is loaded: if none of the rounds needs float32, in that of all rounds.

    Args:
        specs: evaluations.

    Returns:
        float32, or the one half precision that is used.
    """
    used = {entry.precision for spec in specs for entry in rounds_of(spec)}
    return HALF[used.pop()] if len(used) == 1 and "float32" not in used else torch.float32


class ShardAttacker:
    """An attack worker as Ray Data wants it: constructed once per actor, called with one unit at a time.

    Args:
        job: what to do.
    """

    def __init__(self, job: EvalJob) -> None:
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self.job = job
        self.store = Store(job.storage)
        spec = job.specs[0]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = load_dtype(job.specs)
        if isinstance(spec.model, CheckpointSpec):
            llava = load_checkpoint(spec.model, spec.encoders, device, dtype)
        else:
            llava = load_llava(
                spec.model, self.store.filesystem, job.model_path, spec.encoders, device=device, dtype=dtype
            )
        self.worker = AttackWorker(llava, device, "inductor" if spec.compiled else None)
        self.banks: dict[str, tuple[str, ...]] = {}

    def bank(self, specs: Sequence[EvalSpec]) -> tuple[str, ...]:
        """Answers to other samples, if a protocol aims at such; read once per benchmark.

        Args:
            specs: evaluations of one benchmark.

        Returns:
            Texts.
        """
        name = specs[0].benchmark.name
        if not any(entry.decoy is not None for spec in specs for entry in rounds_of(spec)):
            return ()
        if name not in self.banks:
            self.banks[name] = answer_bank(self.store.filesystem, self.job.data[name])
        return self.banks[name]

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """Makes what the evaluations of a job lack of one shard.

        Args:
            batch: one unit as :func:`load_unit` returned it.

        Yields:
            One row per part.
        """
        name, shard = str(batch["benchmark"][0]), int(batch["shard"][0])
        places = [
            place
            for place, spec in enumerate(self.job.specs)
            if spec.benchmark.name == name and not self.store.exists(self.job.part(place, shard))
        ]
        if not places:
            return
        # One clean pass for all whose clean images are answered in the same precision.
        passes: dict[str, list[int]] = {}
        for place in places:
            passes.setdefault(rounds_of(self.job.specs[place])[0].precision, []).append(place)
        samples = unpack(bytes(batch["samples"][0]))
        for together in passes.values():
            yield from self._make(together, shard, samples)

    def _make(self, places: Sequence[int], shard: int, samples: list[Sample]) -> Iterator[dict[str, Any]]:
        specs = [self.job.specs[place] for place in places]
        metric, state = read_metric(self.store.filesystem, self.job.data[specs[0].benchmark.name])
        states = InFlight(
            self.store, {spec: self.job.paths[place] for spec, place in zip(specs, places, strict=True)}, shard, samples
        )
        started = time.monotonic()
        tables = evaluate_shard(
            self.worker,
            samples,
            specs,
            metric,
            state,
            bank=self.bank(specs),
            keeping=Keeping(states, self.job.save_every_s),
            others=lambda spec, wanted: images_of_others(self.store, spec, shard, wanted),
        )
        for place, (spec, table) in zip(places, tables, strict=True):
            self.store.write(self.job.part(place, shard), parquet_bytes(table))
            states.remove(spec)
            scores = [score for score in table.column("score").to_pylist() if score is not None]
            yield {
                "place": [place],
                "shard": [shard],
                "rows": [table.num_rows],
                "mean": [float(np.mean(scores)) if scores else float("nan")],
                "seconds": [time.monotonic() - started],
            }
            started = time.monotonic()
