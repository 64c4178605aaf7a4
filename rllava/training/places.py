"""Where training data lies."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataPlace:
    """Instruction data in a storage.

    Attributes:
        folder: path in the storage.
        rows: in it.
    """

    folder: str
    rows: int
