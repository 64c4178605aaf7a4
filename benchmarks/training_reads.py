"""How many bytes of instruction data each training worker fetches, and what share of them are its own rows.

    python -m benchmarks.training_reads

Rows are noise of the size of photographs, with a line of text. Each worker reads its rows of whole epochs by the tasks
that training runs, one worker after the other, in this process. The storage is moto's S3 server on this machine.
"""

import os
import platform
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import write_sheet
from benchmarks.start_of_sweep import s3_storage
from benchmarks.storage_requests import counted_on_s3
from rllava.data import instructions
from rllava.data.entries import Instruction
from rllava.data.instructions import InstructionSpec, build_instructions
from rllava.data.ray_dataset import read_and_decode
from rllava.data.shards import list_shards
from rllava.data.stream import Stream
from rllava.errors import UserError
from rllava.store import Store
from sweeps.console import run_script

HEAD = (
    "code",
    "workers",
    "epoch",
    "fetched per worker, MB",
    "of the data, %",
    "its own rows, %",
    "requests per worker",
)
"""Of the sheet's table."""


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        rows: of the data; not a multiple of the global batch, so that a worker's rows shift from epoch to epoch.
        rows_per_shard: of every shard but the last.
        kilobytes: of an image.
        global_batch: rows of an optimiser step.
        micro_batch: most rows of a portion; fewer where workers share the global batch.
        workers: counts of them.
        output: Markdown file to write.
        code: which state of the code is measured, for the sheet.
    """

    rows: int = 2050
    rows_per_shard: int = 1024
    kilobytes: int = 50
    global_batch: int = 128
    micro_batch: int = 16
    workers: tuple[int, ...] = (1, 2, 8)
    output: Path = Path("benchmarks/sheets/training_reads.md")
    code: str = "this state of the code"


class Noise:
    """An image that nobody can decode, as large as a photograph."""

    def __init__(self, row: int, kilobytes: int) -> None:
        self.row, self.kilobytes = row, kilobytes

    def __call__(self) -> bytes:
        return random.Random(self.row).randbytes(self.kilobytes * 1000)


def noise(options: Options) -> list[Instruction]:
    """The data.

    Args:
        options: see :class:`Options`.
    """
    turns = (("<image>\nWhat is on the bus?", "A bicycle."),)
    return [Instruction(f"{row}", Noise(row, options.kilobytes), turns) for row in range(options.rows)]


def measure(options: Options, storage: str) -> list[Sequence[str]]:
    """Builds the data and reads it as so many workers.

    Args:
        options: see :class:`Options`.
    """
    instructions.INSTRUCTION_SOURCES.register("noise", lambda: noise(options))
    spec = InstructionSpec("noise", "noise", rows_per_shard=options.rows_per_shard)
    store = Store(storage)
    folder = f"{store.root}/data/noise"
    build_instructions(spec, store.filesystem, folder)
    shards = list_shards(store.filesystem, folder)
    total = sum(store.filesystem.size(path) for path in shards)
    rows: list[Sequence[str]] = []
    for workers in options.workers:
        for epoch in range(2):
            fetched, own, calls = [], [], []
            for worker in range(workers):
                stream = Stream(
                    storage, folder, options.rows, options.rows_per_shard, 8, options.global_batch,
                    options.micro_batch, worker, workers,
                )  # fmt: skip
                kept, requests = 0, 0
                with counted_on_s3() as counted:
                    for path in shards:
                        batch: dict[str, Any] = {"path": [path]}
                        kept += read_and_decode(batch, stream, epoch * options.rows, 0, options.rows).num_rows
                    requests = counted.calls.total()
                fetched.append(counted.received)
                own.append(kept)
                calls.append(requests)
            assert sum(own) == options.rows, f"{sum(own)} rows of {options.rows}"
            mean = sum(fetched) / workers
            rows.append(
                (
                    options.code, str(workers), str(epoch), f"{mean / 1e6:.1f}", f"{100 * mean / total:.1f}",
                    f"{100 * max(own) / options.rows:.1f}", f"{sum(calls) / workers:.0f}",
                )
            )  # fmt: skip
            print(" | ".join(rows[-1]), flush=True)
    return rows


def main(options: Options) -> None:
    """Measures and writes the sheet.

    Args:
        options: see :class:`Options`.
    """
    if any(options.global_batch % (options.micro_batch * workers) for workers in options.workers):
        raise UserError("--workers: expected numbers that share the global batch in whole portions")
    with tempfile.TemporaryDirectory(prefix="rllava-reads-") as name, s3_storage(Path(name)) as url:
        rows = measure(options, url)
    about = (
        f"`python -m benchmarks.training_reads`: {options.rows} rows with images of {options.kilobytes} kB in shards "
        f"of {options.rows_per_shard},\nglobal batches of {options.global_batch} in portions of {options.micro_batch} "
        f"({platform.machine()}, {os.cpu_count()} cores). Worker's means; its own rows: the largest share."
    )
    write_sheet(options.output, "Bytes of instruction data per training worker", about, HEAD, rows)


if __name__ == "__main__":
    run_script(main, Options, __doc__)
