"""Instruction data as a Ray Data stream: the only file of this package that knows Ray.

Every training worker streams the shards in their order and keeps the rows that are its own by position, so that the
data order depends on nothing but the spec: not on timing, not on which worker restarted. Images are decoded in Ray Data
tasks, after the rows of other workers are gone.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionResources

from rllava.data.shards import list_shards, read_shard
from rllava.data.stream import MicroBatch, Stream, keep_and_decode
from rllava.store import Store

DECODE_TASKS = 2
"""Most tasks of one training worker that read and decode at a time: hundreds of images a second, few processes."""


def micro_batches(stream: Stream, first_step: int, last_step: int) -> Iterator[MicroBatch]:
    """Streams a worker's portions of some optimiser steps; epochs follow one another in the same order.

    Args:
        stream: see :class:`Stream`.
        first_step: first optimiser step.
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
            held.append(kept)
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
    """Reads a shard, with its checksums verified, and decodes the images of a worker's rows (in a CPU task).

    Args:
        batch: one path.
        stream: says whose rows to keep.
        offset: positions before this epoch.
        first_row: first row of the epoch that is wanted.
        stop_row: row before which to stop.

    Returns:
        See :func:`rllava.data.stream.keep_and_decode`.
    """
    table = read_shard(Store(stream.storage).filesystem, str(batch["path"][0]))
    return keep_and_decode(table, stream, offset, first_row, stop_row)


def _portion(rows: list[dict[str, Any]], image_size: int) -> MicroBatch:
    pixels = [np.frombuffer(row["pixels"], np.uint8).reshape(image_size, image_size, 3) for row in rows]
    return MicroBatch(np.stack(pixels), [row["conversations"] for row in rows], [row["damaged"] for row in rows])
