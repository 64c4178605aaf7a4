"""Parquet shards on any file system: written whole under fixed names, so that a re-run never appends or doubles."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rllava.errors import UserError
from rllava.filesystem import write_whole

_SHARD_NAME = re.compile(r"part-(\d{5,})\.parquet")


def write_shards(
    rows: Iterable[Mapping[str, Any]], filesystem: Any, folder: str, rows_per_shard: int, schema: pa.Schema
) -> list[str]:
    """Writes rows as ``part-00000.parquet``, ``part-00001.parquet``, ...

    One shard is in memory at a time. Each file appears whole or not at all, replaces an older one of its name, and
    has the same bytes for the same rows (and version of pyarrow). Parts beyond the last one, left by an earlier
    and longer run, are removed.

    Args:
        rows: one mapping per row; may be a generator.
        filesystem: fsspec file system.
        folder: path in it; made if need be.
        rows_per_shard: rows of every shard but the last.
        schema: columns of the shards.

    Returns:
        The paths, in order.

    Raises:
        UserError: if ``rows_per_shard`` is not positive.
    """
    if rows_per_shard < 1:
        raise UserError(f"rows_per_shard is {rows_per_shard}; give at least 1")
    paths = []
    for index, chunk in enumerate(_chunks(rows, rows_per_shard)):
        table = pa.Table.from_pylist(chunk, schema=schema)
        paths.append(f"{folder}/part-{index:05d}.parquet")
        write_whole(filesystem, paths[-1], parquet_bytes(table))
    for path in list_shards(filesystem, folder)[len(paths) :]:
        filesystem.rm_file(path)
    return paths


def list_shards(filesystem: Any, folder: str) -> list[str]:
    """Lists the shards of a folder.

    Args:
        filesystem: fsspec file system.
        folder: path in it.

    Returns:
        Paths of the shards by number, other files left out; none if there is no such folder.
    """
    try:
        names = filesystem.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    matches = [(_SHARD_NAME.fullmatch(name.rsplit("/", 1)[-1]), name) for name in names]
    return [name for _, name in sorted((int(match.group(1)), name) for match, name in matches if match)]


def read_shard(filesystem: Any, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads one shard whole, with its page checksums verified.

    Args:
        filesystem: fsspec file system.
        path: the shard's path in it.
        columns: the columns to decode; all if None.

    Returns:
        The shard's rows.

    Raises:
        UserError: if the shard is missing or damaged; the message names it and the remedy.
    """
    remedy = "build the data again: the shards that are there are replaced, none is doubled"
    try:
        content = filesystem.cat_file(path)
    except FileNotFoundError as error:
        raise UserError(f"shard '{path}' does not exist; {remedy}") from error
    try:
        wanted = None if columns is None else list(columns)
        return pq.read_table(pa.BufferReader(content), columns=wanted, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"shard '{path}' is damaged ({reason}); delete it and {remedy}") from error


def _chunks(rows: Iterable[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file in memory, with page checksums; the same bytes for the same rows and version of pyarrow.

    Args:
        table: rows.

    Returns:
        The file.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())
