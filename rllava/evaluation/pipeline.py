"""Streams the shards of benchmarks through a pool of attack workers (Ray Data) and completes the records.

A unit of work is one shard of one benchmark, under all conditions that show nothing but what is in it, or under one
that makes other images of it first. Rows are read, decoded and changed in CPU tasks; an attack worker loads the model
once, answers the clean images once, and writes one part per evaluation under a fixed name. A part that is there is
never computed again, so a killed worker's successor, or a second run, does only what is missing.
"""

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from rllava.data.benchmarks import BenchmarkSpec, read_metric
from rllava.data.listed import SampleList
from rllava.data.shards import list_shards, parquet_bytes, read_shard, shard_path
from rllava.encoders import input_size
from rllava.evaluation.answers import answer_bank, sample_list
from rllava.evaluation.in_flight import Saving, ShardStates, state_path
from rllava.evaluation.loading import dtype_of, load_victim
from rllava.evaluation.samples import Sample, load_unit, unpack
from rllava.evaluation.shard import Known, evaluate_shard, run_as
from rllava.evaluation.transfer import images_of_others, stored_images
from rllava.evaluation.universal_image import read_image
from rllava.records import CLEAN
from rllava.snapshot import OF, PARTS
from rllava.specs import EvalSpec
from rllava.store import Artifact, Store


@dataclass(frozen=True)
class EvalJob:
    """What the attack workers of one candidate need to know. All specs share model and encoders.

    Attributes:
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

    def part(self, index: int, shard: int) -> str:
        """Path of a part."""
        return shard_path(self.paths[index], shard)


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
        index: of its evaluation in the job.
        mean: of their scores; NaN if none has one.
        seconds: it took (the first part of a shard includes the clean answers).
    """

    index: int
    shard: int
    rows: int
    mean: float
    seconds: float


def units(job: EvalJob) -> list[dict[str, Any]]:
    """What some evaluation still lacks.

    Returns:
        Per unit: benchmark, path and number of its shard, and the indices of its evaluations. Those whose images have
        to be made first come last: the clean answers are there by then.
    """
    store = Store(job.storage)
    written = {path for folder in job.paths for path in list_shards(store.filesystem, folder)}
    found, later = [], []
    for name, folder in job.data.items():
        of = [index for index, spec in enumerate(job.specs) if spec.benchmark.name == name]
        plain = [index for index in of if not job.specs[index].condition.changes_images]
        for number, path in enumerate(list_shards(store.filesystem, folder)[: job.first.get(name)]):
            unit = {"benchmark": name, "path": path, "shard": number}
            lacking = [index for index in of if job.part(index, number) not in written]
            if together := [index for index in lacking if index in plain]:
                found.append({**unit, "indices": together})
            later += [{**unit, "indices": [index]} for index in lacking if index not in plain]
    return found + later


def evaluate(job: EvalJob, pool: PoolArguments) -> Iterator[PartDone]:
    """Attacks what is missing.

    Args:
        job: what to do; the leases of its artifacts are held by the caller.

    Yields:
        Each part as it is written.
    """
    work = units(job)
    if not work:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_items(work, override_num_blocks=len(work))
    image_size = input_size(job.specs[0].encoders)
    store = Store(job.storage)
    lists = {spec.benchmark.name: functools.cache(_list_of(store, job, spec.benchmark)) for spec in job.specs}
    views = {index: spec.condition.views_in(lists[spec.benchmark.name]) for index, spec in enumerate(job.specs)}
    needs = {spec.benchmark.name: spec.benchmark.task.needs for spec in job.specs}
    loading = {"storage": job.storage, "image_size": image_size, "views": views, "needs": needs}
    dataset = dataset.map(load_unit, fn_kwargs=loading, **pool.data)
    dataset = dataset.map_batches(
        ShardAttacker,
        fn_constructor_kwargs={"job": job},
        batch_size=1,
        **{"compute": ray.data.ActorPoolStrategy(size=1), **pool.attack},
    )
    for row in dataset.iter_rows():
        yield PartDone(
            index=int(row["index"]),
            shard=int(row["shard"]),
            rows=int(row["rows"]),
            mean=float(row["mean"]),
            seconds=float(row["seconds"]),
        )


def _list_of(store: Store, job: EvalJob, benchmark: BenchmarkSpec) -> Callable[[], SampleList]:
    return lambda: sample_list(store.filesystem, job.data[benchmark.name], benchmark.task)


def facts_of(
    store: Store, artifact: Artifact, data_folder: str, seconds: float, first: int | None = None
) -> dict[str, Any]:
    """What a records artifact's marker says, after a last look that every part is there.

    Its facts say how the parts were computed, of which several runs may have made some.

    Args:
        seconds: spent on its parts since the last start.
        first: how many of its first parts were asked for; None: all.
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

    Returns:
        See :func:`rllava.evaluation.shard.run_as`.
    """
    with store.filesystem.open(part, "rb") as file:
        return run_as(pq.read_schema(file))


def load_dtype(specs: Sequence[EvalSpec]) -> torch.dtype:
    """In which precision a model is loaded: if none of the rounds needs float32, in that of all rounds.

    Returns:
        float32, or the one half precision that is used.
    """
    return dtype_of(precision for spec in specs for precision in spec.precisions)


class ShardAttacker:
    """An attack worker as Ray Data wants it: constructed once per actor, called with one unit at a time."""

    def __init__(self, job: EvalJob) -> None:
        self.job = job
        self.store = Store(job.storage)
        spec, dtype = job.specs[0], load_dtype(job.specs)
        self.worker = load_victim(self.store, spec.model, job.model_path, spec.encoders, dtype, spec.compiled)
        self.read_image = functools.cache(functools.partial(read_image, self.store))
        self.banks: dict[str, tuple[str, ...]] = {}
        self.answered: dict[tuple[str, int, str], Known] = {}

    def bank(self, specs: Sequence[EvalSpec]) -> tuple[str, ...]:
        """Answers to other samples, if a protocol aims at such; read once per benchmark."""
        name = specs[0].benchmark.name
        if not any(spec.condition.aims_at_decoys(spec.benchmark.task.kind) for spec in specs):
            return ()
        if name not in self.banks:
            self.banks[name] = answer_bank(self.store.filesystem, self.job.data[name], specs[0].benchmark.task)
        return self.banks[name]

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """Makes what the evaluations of a job lack of one shard.

        Args:
            batch: one unit as :func:`load_unit` returned it.

        Yields:
            One row per part.
        """
        shard = int(batch["shard"][0])
        asked = [int(index) for index in batch["indices"][0]]
        indices = [index for index in asked if not self.store.exists(self.job.part(index, shard))]
        if not indices:
            return
        # One clean pass for all whose clean images are answered in the same precision.
        passes: dict[str, list[int]] = {}
        for index in indices:
            passes.setdefault(self.job.specs[index].precisions[0], []).append(index)
        samples = unpack(bytes(batch["samples"][0]))
        for together in passes.values():
            yield from self._make(together, shard, samples)

    def _make(self, indices: Sequence[int], shard: int, samples: list[Sample]) -> Iterator[dict[str, Any]]:
        specs = [self.job.specs[index] for index in indices]
        metric, state = read_metric(self.store.filesystem, self.job.data[specs[0].benchmark.name])
        states = ShardStates(
            self.store,
            {spec: self.job.paths[index] for spec, index in zip(specs, indices, strict=True)},
            shard,
            samples,
        )
        started = time.monotonic()
        tables = evaluate_shard(
            self.worker,
            samples,
            specs,
            metric,
            state,
            bank=self.bank(specs),
            saving=Saving(states, self.job.save_every_s),
            others=lambda spec, wanted: images_of_others(self.store, spec, shard, wanted),
            known=self._known(specs[0], shard),
            image=self.read_image,
            stored=lambda source, wanted: stored_images(self.store, source, shard, wanted),
        )
        for index, (spec, table) in zip(indices, tables, strict=True):
            self.store.write(self.job.part(index, shard), parquet_bytes(table))
            states.remove(spec)
            if spec.condition.keeps_prompt:
                self._note(spec, shard, table)
            scores = [score for score in table.column("score").to_pylist() if score is not None]
            yield {
                "index": [index],
                "shard": [shard],
                "rows": [table.num_rows],
                "mean": [float(np.mean(scores)) if scores else float("nan")],
                "seconds": [time.monotonic() - started],
            }
            started = time.monotonic()

    def _known(self, spec: EvalSpec, shard: int) -> Known:
        """Clean answers to a shard's samples: from a unit before, or from the records of clean answers in the job."""
        key = (spec.benchmark.name, shard, spec.precisions[0])
        for index, other in enumerate(self.job.specs):
            part = self.job.part(index, shard)
            same = (other.benchmark.name, shard, other.precisions[0]) == key
            if key not in self.answered and same and other.condition.kind == CLEAN and self.store.exists(part):
                self._note(other, shard, read_shard(self.store.filesystem, part, list(_CLEAN_COLUMNS)))
        return self.answered.get(key, {})

    def _note(self, spec: EvalSpec, shard: int, table: pa.Table) -> None:
        rows = table.select(_CLEAN_COLUMNS).to_pylist()
        answered = {(name, draw): (text, score) for name, draw, text, score in (tuple(row.values()) for row in rows)}
        key = (spec.benchmark.name, shard, spec.precisions[0])
        self.answered[key] = {who: found for who, found in answered.items() if found[1] is not None}
        while len(self.answered) > _SHARDS_KNOWN:
            del self.answered[next(iter(self.answered))]


_CLEAN_COLUMNS = ("sample_id", "draw", "clean_prediction", "clean_score")
_SHARDS_KNOWN = 64
"""Shards whose clean answers a worker remembers; those of others are read again."""
