"""Parquet shards on any file system: written whole under fixed names, so that a re-run never appends or doubles.

What a data set consists of is listed first, without images (:class:`Listing`); shards are then written one by one,
in this process or in tasks, in any order, to the same bytes. A build that was cut off goes on: a shard that is whole is
kept, if the listing is still the same.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rllava.errors import UserError
from rllava.filesystem import is_local, write_whole

_SHARD_NAME = re.compile(r"part-(\d{5,})\.parquet")

FEW_ROWS = 256
"""So many rows are written sooner by one process than tasks start."""

LISTING = "listing.json"
"""File beside the shards: of what they are made."""

_TORN_S = 60.0
"""A file that nobody wrote on for so long will not be finished."""

_LAYOUT = 2
"""Of the files. 2: training data in groups of :data:`rllava.data.instructions.ROWS_PER_GROUP` rows; 1: in one."""


@dataclass(frozen=True)
class Listing:
    """What a data set consists of, without its images.

    Attributes:
        entries: one per row, in order; each can be pickled.
        make_row: from the number of a row and its entry to the row; reads the image. A function that can be pickled.
        identity: from an entry to a text of all that is known of it without its image.
        rows_per_shard: rows of every shard but the last.
        rows_per_group: rows of a row group, the least that a reader fetches; None: a shard is always read whole.
        witness: an image file that is there where the listing was made, so it must be on every machine that reads
            images; None: there are no files.
    """

    entries: Sequence[Any]
    make_row: Callable[[int, Any], Mapping[str, Any]]
    identity: Callable[[Any], str]
    schema: pa.Schema
    rows_per_shard: int
    rows_per_group: int | None = None
    witness: str | None = None

    def shards(self) -> int:
        """How many there are.

        Raises:
            UserError: if ``rows_per_shard`` is not positive.
        """
        if self.rows_per_shard < 1:
            raise UserError(f"rows_per_shard is {self.rows_per_shard}; give at least 1")
        return -(-len(self.entries) // self.rows_per_shard)

    def digest(self) -> str:
        """Of all rows without their images: whether a source still says what it said.

        Returns:
            sha256, hexadecimal.
        """
        found = hashlib.sha256()
        for entry in self.entries:
            found.update(self.identity(entry).encode(errors="surrogatepass") + b"\n")
        return found.hexdigest()

    def work(self, filesystem: Any, folder: str, *, keep: bool) -> Iterator["ShardWork"]:
        """What there is to do, shard by shard.

        Args:
            keep: whether shards that are whole stay.

        Yields:
            One piece per shard, in order.
        """
        bare = dataclasses.replace(self, entries=())
        for number in range(self.shards()):
            first = number * self.rows_per_shard
            entries = list(self.entries[first : first + self.rows_per_shard])
            yield ShardWork(filesystem, shard_path(folder, number), first, entries, bare, keep)


@dataclass(frozen=True)
class ShardWork:
    """One shard to write.

    Attributes:
        first: number of its first row.
        entries: its part of the listing.
        listing: the rest of the listing, without entries.
        keep: whether it stays if it is there and whole.
    """

    filesystem: Any
    path: str
    first: int
    entries: Sequence[Any]
    listing: Listing
    keep: bool

    def run(self) -> None:
        """Writes the shard: whole or not at all, and the same bytes for the same rows and version of pyarrow.

        Raises:
            UserError: if the images are not on this machine.
        """
        if self.keep and _is_whole(self.filesystem, self.path, len(self.entries)):
            return
        witness = self.listing.witness
        if witness is not None and not os.path.isfile(witness):
            raise UserError(
                f"{witness} is not on {socket.gethostname()}: images are read there; keep the data sets in a folder "
                "that all machines share"
            )
        rows = [self.listing.make_row(row, entry) for row, entry in enumerate(self.entries, start=self.first)]
        table = pa.Table.from_pylist(rows, schema=self.listing.schema)
        write_whole(self.filesystem, self.path, parquet_bytes(table, self.listing.rows_per_group))


Tasks = Callable[[Iterator[ShardWork], int], Iterable[object]]
"""Runs that many pieces of work, in any order; yields something after each."""


def in_this_process(work: Iterator[ShardWork], count: int) -> Iterator[object]:
    """Writes shards one after the other; one is in memory at a time.

    Yields:
        None, after each.
    """
    for piece in work:
        piece.run()
        yield None


def build_shards(
    listing: Listing,
    filesystem: Any,
    folder: str,
    tasks: Tasks = in_this_process,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Writes a listing as ``part-00000.parquet``, ``part-00001.parquet``, ...

    A shard that an earlier call with the same listing has left whole stays. Parts beyond the last one are removed, and
    what a killed process had not finished.

    Args:
        folder: path in it; made if need be.
        tasks: how the shards are written, if there are more than a few rows.
        progress: told how many shards are done, of how many.

    Raises:
        UserError: if ``rows_per_shard`` is not positive, or images cannot be read where shards are written.
    """
    count = listing.shards()
    description = {"digest": listing.digest(), "layout": _LAYOUT, "rows": len(listing.entries)}
    keep = read_description(filesystem, folder) == description
    if not keep:
        # Before the listing says otherwise: were this build cut off too, the next one would take them for its own.
        for path in list_shards(filesystem, folder):
            filesystem.rm_file(path)
        write_whole(filesystem, f"{folder}/{LISTING}", json.dumps(description).encode())
    run = in_this_process if len(listing.entries) <= FEW_ROWS else tasks
    for done, _ in enumerate(run(listing.work(filesystem, folder, keep=keep), count), start=1):
        progress(done, count)
    paths = list_shards(filesystem, folder)
    for path in paths[count:]:
        filesystem.rm_file(path)
    _remove_torn(filesystem, folder)
    assert paths[:count] == [shard_path(folder, number) for number in range(count)], f"{folder}: shards are missing"
    return paths[:count]


def read_description(filesystem: Any, folder: str) -> dict[str, Any] | None:
    """What the shards of a folder are made of.

    Returns:
        Digest of the listing, layout, rows; None if it does not say.
    """
    try:
        found = json.loads(filesystem.cat_file(f"{folder}/{LISTING}"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_whole(filesystem: Any, path: str, rows: int) -> bool:
    try:
        with filesystem.open(path, "rb", cache_type="none") as file:
            return bool(pq.ParquetFile(file).metadata.num_rows == rows)
    except (pa.ArrowException, OSError):  # not there, or its end is not that of a Parquet file
        return False


def _remove_torn(filesystem: Any, folder: str) -> None:
    """Removes files that a killed process had begun to write beside their names; an object store has no such files."""
    if is_local(filesystem) and os.path.isdir(folder):
        for name in os.listdir(folder):
            if name.startswith(".part-") and name.endswith(".tmp"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - os.stat(f"{folder}/{name}").st_mtime > _TORN_S:
                        os.remove(f"{folder}/{name}")


def shard_path(folder: str, number: int) -> str:
    """Where a shard lies.

    Args:
        folder: of the data set or the records.
    """
    return f"{folder}/part-{number:05d}.parquet"


def shard_number(path: str) -> int | None:
    """The number in a shard's name.

    Returns:
        The number; None if the file is no shard.
    """
    match = _SHARD_NAME.fullmatch(path.rsplit("/", 1)[-1])
    return int(match.group(1)) if match else None


def list_shards(filesystem: Any, folder: str) -> list[str]:
    """Lists the shards of a folder.

    Returns:
        Paths of the shards by number, other files left out; none if there is no such folder.
    """
    try:
        names = filesystem.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    numbers = [(shard_number(name), name) for name in names]
    return [name for _, name in sorted((number, name) for number, name in numbers if number is not None)]


def read_shard(
    filesystem: Any,
    path: str,
    columns: Sequence[str] | None = None,
    wanted: Callable[[int, int], bool] | None = None,
) -> pa.Table:
    """Reads a shard, with its page checksums verified. What is not asked for is not fetched.

    Args:
        path: the shard's path in it.
        columns: the columns to read; all if None.
        wanted: from the first row of a row group and the row after its last, counted in the shard, to whether it is
            read; all are if None.

    Returns:
        The rows of all row groups that are wanted.

    Raises:
        UserError: if the shard is missing or damaged; the message names it and the remedy.
    """
    remedy = "build the data again: the same command writes the shards that are missing, none is doubled"
    try:
        if columns is None and wanted is None:
            content = filesystem.cat_file(path)
            return pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        # Unbuffered: every read that Parquet asks for is one request of just these bytes; it joins close ones itself.
        with filesystem.open(path, "rb", cache_type="none") as file:
            shard = pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
            groups = [
                number for number, (first, stop) in enumerate(_groups(shard)) if not wanted or wanted(first, stop)
            ]
            return shard.read_row_groups(groups, columns=None if columns is None else list(columns))
    except FileNotFoundError as error:
        raise UserError(f"shard '{path}' does not exist; {remedy}") from error
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"shard '{path}' is damaged ({reason}); delete it and {remedy}") from error


def _groups(shard: pq.ParquetFile) -> Iterator[tuple[int, int]]:
    first = 0
    for number in range(shard.num_row_groups):
        stop = first + shard.metadata.row_group(number).num_rows
        yield first, stop
        first = stop


def parquet_bytes(table: pa.Table, rows_per_group: int | None = None) -> bytes:
    """A Parquet file in memory, with page checksums; the same bytes for the same rows and version of pyarrow.

    Args:
        rows_per_group: rows of a row group; None: one group holds all.
    """
    sink = pa.BufferOutputStream()
    if rows_per_group is None:
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    else:
        # Dictionaries and statistics would be larger than so few rows' gain by them, and every reader reads them.
        pq.write_table(
            table,
            sink,
            row_group_size=rows_per_group,
            compression="zstd",
            write_page_checksum=True,
            use_dictionary=False,
            write_statistics=False,
        )
    return bytes(sink.getvalue().to_pybytes())
