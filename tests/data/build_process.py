"""A driver that builds instruction data in Ray Data tasks; started, and killed, by the tests.

python -m tests.data.build_process STORAGE
"""

import sys
import time

from cluster.connect import connect
from rllava.data.entries import Instruction
from rllava.data.instructions import INSTRUCTION_SOURCES, InstructionSpec, build_instructions
from rllava.data.ray_dataset import in_ray_tasks
from rllava.store import Store

SPEC = InstructionSpec("slow", "slow", rows_per_shard=50)
ROWS = 1000


class Slow:
    """An image that takes a moment to fetch."""

    def __init__(self, row: int, seconds: float) -> None:
        self.row, self.seconds = row, seconds

    def __call__(self) -> bytes:
        time.sleep(self.seconds)
        return self.row.to_bytes(4, "big") * 50


def register(seconds: float) -> None:
    """Adds the source."""
    turns = (("<image>\nWhat is it?", "red"),)
    INSTRUCTION_SOURCES.register(
        "slow", lambda: [Instruction(f"{row}", Slow(row, seconds), turns) for row in range(ROWS)]
    )


def main() -> None:
    register(0.01)
    connect("local", cpus=4)
    store = Store(sys.argv[1])
    build_instructions(
        SPEC, store.filesystem, store.root, in_ray_tasks({"num_cpus": 1}, 2), lambda *done: print(*done, flush=True)
    )


if __name__ == "__main__":
    main()
