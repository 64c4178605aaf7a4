"""Where training data lies."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataPlace:
    """Instruction data in a storage."""

    folder: str
    rows: int
