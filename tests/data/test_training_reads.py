"""A training worker fetches little more than its own rows, and gets the same ones as if it had read everything."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.storage_requests import counted_on_s3
from rllava.data.entries import Instruction
from rllava.data.instructions import INSTRUCTION_SOURCES, InstructionSpec, build_instructions
from rllava.data.ray_dataset import read_and_decode
from rllava.data.shards import list_shards, read_shard
from rllava.data.stream import Stream, keep_and_decode
from rllava.errors import UserError
from rllava.store import Store

ROWS = 200
SLACK = 2 * 65536 + 6 * 20_000
"""Two ends of files, and the rows of other workers at both ends of what is asked for, in bytes."""
SPEC = InstructionSpec("noise", "noise", rows_per_shard=128)


class Noise:
    """Bytes of no image, different for every row."""

    def __init__(self, row: int) -> None:
        self.row = row

    def __call__(self) -> bytes:
        return random.Random(self.row).randbytes(20_000)


@pytest.fixture(autouse=True)
def _source() -> Iterator[None]:
    turns = (("<image>\nWhat is it?", "red"),)
    INSTRUCTION_SOURCES.register("noise", lambda: [Instruction(f"{row}", Noise(row), turns) for row in range(ROWS)])
    yield
    INSTRUCTION_SOURCES._entries.pop("noise")


def stream(store: Store, worker: int, workers: int) -> Stream:
    return Stream(store.url, f"{store.root}/noise", ROWS, 128, 8, 64, 8, worker, workers)


def reads(of: Stream, epoch: int) -> pa.Table:
    store = Store(of.storage)
    batches: list[dict[str, Any]] = [{"path": [path]} for path in list_shards(store.filesystem, of.folder)]
    return pa.concat_tables([read_and_decode(batch, of, epoch * ROWS, 3, ROWS - 2) for batch in batches])


def test_workers_fetch_their_own_rows_alone(s3_storage: str) -> None:
    store = Store(f"{s3_storage}/reads")
    paths = build_instructions(SPEC, store.filesystem, f"{store.root}/noise")
    whole = pa.concat_tables([read_shard(store.filesystem, path) for path in paths])
    total = sum(store.filesystem.size(path) for path in paths)
    for workers in (1, 2, 8):
        for epoch, most in ((0, 1.1), (1, 1.6)):  # ROWS is no multiple of the global batch: runs of rows shift
            for worker in range(workers):
                own = stream(store, worker, workers)
                with counted_on_s3() as requests:
                    got = reads(own, epoch)
                assert got.equals(keep_and_decode(whole, own, epoch * ROWS, 3, ROWS - 2))
                assert requests.received < most * total * got.num_rows / ROWS + SLACK


def test_shards_of_one_row_group_are_read_as_well(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    paths = build_instructions(SPEC, store.filesystem, f"{store.root}/noise")
    before = [reads(stream(store, worker, 2), 1) for worker in range(2)]
    for path in paths:
        table = read_shard(store.filesystem, path)
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    assert [reads(stream(store, worker, 2), 1) for worker in range(2)] == before


def test_a_damaged_shard_is_named_by_the_worker_that_reads_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    path = Path(build_instructions(SPEC, store.filesystem, f"{store.root}/noise")[0])
    image = read_shard(store.filesystem, str(path)).column("image")[9].as_py()
    content = path.read_bytes()
    middle = content.index(image[:100])
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(UserError, match=r"noise/part-00000.parquet' is damaged .*; delete it and build the data again"):
        reads(stream(store, 1, 8), 0)
    assert reads(stream(store, 2, 8), 0).num_rows > 0
