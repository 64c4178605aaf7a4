"""Instruction data as a Ray Data stream, and shards written by Ray Data: the only file of this package that knows Ray.

Every training worker streams the shards in their order and keeps the rows that are its own by position, so that the
data order depends on nothing but the spec: not on timing, not on which worker restarted. Row groups without such a row
are not fetched. Images are decoded in Ray Data tasks, after the rows of other workers are gone.
"""

import functools
import socket
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray.cloudpickle
import ray.data
from ray.data import ExecutionResources, TaskPoolStrategy

from rllava.data.shards import ShardWork, Tasks, list_shards, read_shard, shard_number
from rllava.data.stream import MicroBatch, Stream, keep_and_decode
from rllava.errors import UserError
from rllava.faults import known_fault
from rllava.store import Store

DECODE_TASKS = 2
"""Most tasks of one training worker that read and decode at a time: hundreds of images a second, few processes."""

HELD = 256
"""Shards whose texts are in the object store at a time: a few MB each."""

_READ = ("row", "image", "conversations")


def micro_batches(stream: Stream, first_step: int, last_step: int) -> Iterator[MicroBatch]:
    """Streams a worker's portions of some optimiser steps; epochs follow one another in the same order.

    Args:
        stream: see :class:`Stream`.
        last_step: step before which to stop.

    Yields:
        ``global_batch / workers / micro_batch`` portions per step.
    """
    position, end = first_step * stream.global_batch, last_step * stream.global_batch
    held: list[dict[str, Any]] = []
    while position < end:
        epoch, row = divmod(position, stream.rows)
        stop = min(stream.rows, row + end - position)
        for kept in _epoch(stream, epoch * stream.rows, row, stop):
            held.append({**kept, "position": epoch * stream.rows + int(kept["row"])})
            if len(held) == stream.micro_batch:
                yield _portion(held, stream.image_size)
                held = []
        position += stop - row


def _epoch(stream: Stream, offset: int, first_row: int, stop_row: int) -> Iterator[dict[str, Any]]:
    store = Store(stream.storage)
    shards = list_shards(store.filesystem, stream.folder)
    wanted = shards[first_row // stream.rows_per_shard : (stop_row - 1) // stream.rows_per_shard + 1]
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(cpu=DECODE_TASKS)
    context.enable_progress_bars = False
    # One task reads, checks and decodes a shard: ray.data.read_parquet would first start actors that read its footer.
    dataset = ray.data.from_items([{"path": path} for path in wanted], override_num_blocks=len(wanted))
    dataset = dataset.map_batches(
        read_and_decode,
        batch_size=1,
        fn_kwargs={"stream": stream, "offset": offset, "first_row": first_row, "stop_row": stop_row},
    )
    yield from dataset.iter_rows()


def read_and_decode(batch: dict[str, Any], stream: Stream, offset: int, first_row: int, stop_row: int) -> pa.Table:
    """Reads what a worker needs of a shard, checksums verified, and decodes its images (in a CPU task).

    Args:
        stream: says whose rows to keep.
        first_row: first row of the epoch that is wanted.
        stop_row: row before which to stop.

    Returns:
        See :func:`rllava.data.stream.keep_and_decode`.
    """
    path = str(batch["path"][0])
    before = (shard_number(path) or 0) * stream.rows_per_shard

    def wanted(first: int, stop: int) -> bool:
        rows = range(max(before + first, first_row), min(before + stop, stop_row))
        return stream.owns_any(rows, offset)

    table = read_shard(Store(stream.storage).filesystem, path, _READ, wanted)
    return keep_and_decode(table, stream, offset, first_row, stop_row)


def _portion(rows: list[dict[str, Any]], image_size: int) -> MicroBatch:
    pixels = [np.frombuffer(row["pixels"], np.uint8).reshape(image_size, image_size, 3) for row in rows]
    columns = ([row[name] for row in rows] for name in ("conversations", "damaged", "position"))
    return MicroBatch(np.stack(pixels), *columns)


def in_ray_tasks(options: Mapping[str, Any], at_a_time: int | None = None) -> Tasks:
    """Shards are written by Ray Data's tasks.

    Args:
        options: resources of a task, as of ``map_batches``.
        at_a_time: most tasks at a time; None: as many as the cluster has room for.
    """
    return functools.partial(_run, {**options, "compute": TaskPoolStrategy(size=at_a_time)})


def _run(options: Mapping[str, Any], work: Iterator[ShardWork], count: int) -> Iterator[None]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    while items := [{"work": ray.cloudpickle.dumps(piece)} for piece in islice(work, HELD)]:
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        for row in dataset.map_batches(_write, batch_size=1, **options).iter_rows():
            if row["mistake"] is not None:
                raise UserError(str(row["mistake"]))
            yield None


def _write(batch: dict[str, Any]) -> pa.Table:
    """Writes a shard; what a user can mend comes back as text, not as the traceback of a task."""
    mistake = None
    try:
        ray.cloudpickle.loads(bytes(batch["work"][0])).run()
    except UserError as error:
        mistake = str(error)
    except Exception as error:
        meaning = known_fault(error)
        if meaning is None:
            raise
        mistake = f"on {socket.gethostname()}: {meaning}"
    return pa.table({"mistake": pa.array([mistake], pa.string())})
