"""Where training data lies."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataFolder:
    """Instruction data in a storage."""

    path: str
    rows: int
