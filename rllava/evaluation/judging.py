"""Streams the parts of records through a pool of judges (Ray Data) and completes the judgements.

A unit of work is one part of one records artifact. Its texts are read in CPU tasks; a worker loads the judge once and
writes one part of judgements per part of records, under the same name. A part that is there is never computed again, so
a killed worker's successor, or a second run, does only what is missing.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from rllava.data.shards import list_shards, parquet_bytes, read_shard, shard_path
from rllava.evaluation.verdicts import READ, judgements_of
from rllava.judgement_spec import JudgementSpec
from rllava.snapshot import OF, PARTS
from rllava.store import Artifact, Store


@dataclass(frozen=True)
class JudgingJob:
    """What the workers of one judge, or of several light ones, need to know.

    Attributes:
        specs: judgements, complete ones left out.
        records: paths of the records artifacts that they are about, in the same order.
        parts: how many of the first parts of each are judged.
        paths: of their own artifacts, in the same order.
    """

    storage: str
    specs: tuple[JudgementSpec, ...]
    records: tuple[str, ...]
    parts: tuple[int, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class PartJudged:
    """One part was written.

    Attributes:
        index: of its spec in the job.
    """

    index: int
    rows: int
    flagged: int
    seconds: float


def units_to_judge(job: JudgingJob) -> list[dict[str, Any]]:
    """The parts of records that have no judgements yet.

    Returns:
        Per part: index of its spec, path, number.
    """
    filesystem = Store(job.storage).filesystem
    work = []
    for index, (records, parts, path) in enumerate(zip(job.records, job.parts, job.paths, strict=True)):
        judged = set(list_shards(filesystem, path))
        for number in range(parts):
            if shard_path(path, number) not in judged:
                work.append({"index": index, "path": shard_path(records, number), "number": number})
    return work


def judge_parts(job: JudgingJob, workers: Mapping[str, Any], readers: Mapping[str, Any]) -> Iterator[PartJudged]:
    """Judges what is missing.

    Args:
        job: what to do; the leases of its artifacts are held by the caller.
        workers: resources of the pool of judges, as arguments of ``map_batches``.
        readers: of the tasks that read.

    Yields:
        Each part as it is written.
    """
    work = units_to_judge(job)
    if not work:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_items(work, override_num_blocks=len(work))
    dataset = dataset.map(load_part, fn_kwargs={"storage": job.storage}, **readers)
    dataset = dataset.map_batches(
        PartJudge,
        fn_constructor_kwargs={"job": job},
        batch_size=1,
        **{"compute": ray.data.ActorPoolStrategy(size=1), **workers},
    )
    for row in dataset.iter_rows():
        yield PartJudged(int(row["index"]), int(row["rows"]), int(row["flagged"]), float(row["seconds"]))


def load_part(unit: dict[str, Any], storage: str) -> dict[str, Any]:
    """Reads the texts of a part of records, without its images.

    Args:
        unit: from :func:`units_to_judge`.

    Returns:
        The unit with them.
    """
    table = read_shard(Store(storage).filesystem, unit["path"], READ)
    return {"index": unit["index"], "number": unit["number"], "records": parquet_bytes(table)}


class PartJudge:
    """Judges as Ray Data wants them: loaded once per actor, called with one unit at a time."""

    def __init__(self, job: JudgingJob) -> None:
        self.job = job
        self.store = Store(job.storage)
        self.judges = {judge: judge.load() for judge in dict.fromkeys(spec.judge for spec in job.specs)}

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """Writes the judgements of one part of records, unless they are there.

        Args:
            batch: one unit as :func:`load_part` returned it.

        Yields:
            A row that tells of it.
        """
        index, started = int(batch["index"][0]), time.monotonic()
        path = shard_path(self.job.paths[index], int(batch["number"][0]))
        if self.store.exists(path):
            return
        records = pq.read_table(pa.BufferReader(bytes(batch["records"][0])))
        spec = self.job.specs[index]
        table = judgements_of(records, spec, self.judges[spec.judge])
        self.store.write(path, parquet_bytes(table))
        flagged = sum(map(bool, table.column("flagged").to_pylist()))
        seconds = time.monotonic() - started
        yield {"index": [index], "rows": [table.num_rows], "flagged": [flagged], "seconds": [seconds]}


def judged_facts(
    store: Store, artifact: Artifact, records: Artifact, seconds: float, first: int | None = None
) -> dict[str, Any]:
    """What a judgements artifact's marker says, after a last look that every part is there.

    Args:
        seconds: spent on its parts since the last start.
        first: how many of its first parts were asked for; None: as many as there are of the records.

    Returns:
        Counts over all parts, whichever run wrote them: rows, and of those flagged, of empty answers, and undecided.
    """
    filesystem = store.filesystem
    about = store.facts(records)
    there = set(list_shards(filesystem, artifact.path))
    expected = [shard_path(artifact.path, number) for number in range(int(about[PARTS]))]
    parts = list(itertools.takewhile(there.__contains__, expected))  # an earlier question may have asked for more
    asked = len(expected[:first])
    assert len(parts) >= asked, f"{artifact.relative}: {len(parts)} of {asked} parts"
    tables = [read_shard(filesystem, part, ["flagged", "empty"]) for part in parts]
    flagged = [verdict for table in tables for verdict in table.column("flagged").to_pylist()]
    return {
        PARTS: len(parts),
        OF: int(about[OF]),
        "seconds": round(seconds, 2),
        "rows": len(flagged),
        "flagged": flagged.count(True),
        "empty": sum(sum(table.column("empty").to_pylist()) for table in tables),
        "undecided": flagged.count(None),
    }
