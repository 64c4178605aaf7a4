"""Which rows of instruction data a training worker gets, in what order and in what portions."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rllava.data.images import DamagedImage, Fit, preprocess


@dataclass(frozen=True)
class Stream:
    """Which rows a worker gets, and in which portions.

    Attributes:
        folder: path of the instruction data in it.
        rows_per_shard: of every shard but the last.
        image_size: side of the square that images become, in pixels.
        global_batch: rows per optimiser step, over all workers.
    """

    storage: str
    folder: str
    rows: int
    rows_per_shard: int
    image_size: int
    global_batch: int
    micro_batch: int
    worker: int
    workers: int
    fit: Fit = "pad"

    def owns(self, position: int) -> bool:
        """Whether a position of the endless stream belongs to this worker.

        Args:
            position: rows before it, all epochs counted.

        Returns:
            True if this worker trains on it.
        """
        return (position % self.global_batch) // self.micro_batch % self.workers == self.worker

    def owns_any(self, rows: range, offset: int) -> bool:
        """Whether any of some rows of an epoch belongs to this worker.

        Returns:
            True if this worker trains on one of them.
        """
        return any(self.owns(offset + row) for row in rows)


@dataclass(frozen=True)
class MicroBatch:
    """One portion.

    Attributes:
        pixels_BHWC: uint8; black for a conversation without image, which has no marker to put it at.
        conversations: JSON texts in LLaVA's format.
        damaged: per sample, why its image could not be read (None where it could); its pixels are black then.
        positions: of each in the endless stream: rows before it, all epochs counted.
    """

    pixels_BHWC: np.ndarray
    conversations: list[str]
    damaged: list[str | None]
    positions: list[int]


def keep_and_decode(table: pa.Table, stream: Stream, offset: int, first_row: int, stop_row: int) -> pa.Table:
    """Keeps a worker's rows of a block and decodes their images.

    Args:
        stream: says whose rows to keep.
        first_row: first row of the epoch that is wanted.
        stop_row: row before which to stop.

    Returns:
        Rows with columns row, pixels (raw RGB bytes), conversations, damaged.
    """
    rows = table.column("row").to_pylist()
    keep = [first_row <= row < stop_row and stream.owns(offset + row) for row in rows]
    kept = table.filter(pa.array(keep, pa.bool_()))
    pixels: list[bytes] = []
    damaged: list[str | None] = []
    for image in kept.column("image").to_pylist():
        if image is None:  # text alone
            pixels.append(bytes(3 * stream.image_size**2))
            damaged.append(None)
            continue
        try:
            pixels.append(preprocess(image, stream.image_size, stream.fit).tobytes())
            damaged.append(None)
        except DamagedImage as error:
            pixels.append(bytes(3 * stream.image_size**2))
            damaged.append(str(error))
    return pa.table(
        {
            "row": kept.column("row"),
            "pixels": pa.array(pixels, pa.binary()),
            "conversations": kept.column("conversations"),
            "damaged": pa.array(damaged, pa.string()),
        }
    )
