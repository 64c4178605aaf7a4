"""Shards: whole, deterministic, never doubled; on a local disk and on S3."""

import dataclasses
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rllava.data.shards import LISTING, Listing, build_shards, list_shards, read_shard
from rllava.errors import UserError
from rllava.filesystem import open_filesystem, write_whole

SCHEMA = pa.schema([("row", pa.int64()), ("image", pa.binary()), ("references", pa.list_(pa.string()))])


def rows(count: int) -> list[dict[str, Any]]:
    return [{"row": row, "image": bytes([row % 256]) * 50, "references": ["a", str(row)]} for row in range(count)]


def take(row: int, entry: dict[str, Any]) -> dict[str, Any]:
    assert entry.get("row", row) == row
    return entry


def write_shards(
    rows: Iterable[dict[str, Any]], filesystem: Any, folder: str, rows_per_shard: int, schema: pa.Schema
) -> list[str]:
    return build_shards(Listing(list(rows), take, str, schema, rows_per_shard), filesystem, folder)


def all_rows(filesystem: Any, folder: str) -> list[dict[str, Any]]:
    return [row for path in list_shards(filesystem, folder) for row in read_shard(filesystem, path).to_pylist()]


def test_rows_come_back_in_order_in_shards_of_the_size(local: Any, folder: str) -> None:
    paths = write_shards(iter(rows(25)), local, folder, 10, SCHEMA)
    assert [path.rsplit("/", 1)[1] for path in paths] == [f"part-0000{index}.parquet" for index in range(3)]
    assert [read_shard(local, path).num_rows for path in paths] == [10, 10, 5]
    assert list_shards(local, folder) == paths
    assert all_rows(local, folder) == rows(25)
    assert read_shard(local, paths[0]).schema == SCHEMA


def test_a_rebuild_gives_the_same_bytes_and_doubles_nothing(local: Any, folder: str) -> None:
    first = {path: Path(path).read_bytes() for path in write_shards(rows(25), local, folder, 10, SCHEMA)}
    second = {path: Path(path).read_bytes() for path in write_shards(rows(25), local, folder, 10, SCHEMA)}
    assert first == second
    assert sorted(os.listdir(folder)) == [LISTING, *(f"part-0000{index}.parquet" for index in range(3))]


def test_a_shorter_rebuild_leaves_no_old_part(local: Any, folder: str) -> None:
    write_shards(rows(25), local, folder, 5, SCHEMA)
    write_shards(rows(12), local, folder, 5, SCHEMA)
    assert all_rows(local, folder) == rows(12)
    assert write_shards([], local, folder, 5, SCHEMA) == []
    assert list_shards(local, folder) == []


def test_other_files_are_no_shards(local: Any, folder: str) -> None:
    paths = write_shards(rows(3), local, folder, 2, SCHEMA)
    for name in (".part-00000.parquet.ab.tmp", "part-00000.parquet.bak", "metric.json", "xpart-00001.parquet"):
        write_whole(local, f"{folder}/{name}", b"{}")
    assert list_shards(local, folder) == paths
    assert list_shards(local, folder + "-missing") == []


def test_shards_sort_by_number_past_99999(local: Any, folder: str) -> None:
    for number in (100000, 99999, 2):
        write_whole(local, f"{folder}/part-{number:05d}.parquet", b"")
    assert [path[-13:-8] for path in list_shards(local, folder)] == ["00002", "99999", "00000"]


def test_rows_are_pulled_one_shard_at_a_time(local: Any, folder: str) -> None:
    def watched(row: int, entry: dict[str, Any]) -> dict[str, Any]:
        if row == 8:
            assert len(list_shards(local, folder)) >= 2
        return entry

    assert len(build_shards(Listing(rows(9), watched, str, SCHEMA, 3), local, folder)) == 3


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(
    local: Any, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(local, f"{folder}/file", b"old")

    def fail(source: str, target: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(local, f"{folder}/file", b"new")
    assert os.listdir(folder) == ["file"]
    assert Path(folder, "file").read_bytes() == b"old"


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_a_damaged_shard_is_named_with_the_remedy(damage: str, local: Any, folder: str) -> None:
    noise = random.Random(0).randbytes(5000)  # is stored as it is, so that one flipped bit decodes to another image
    path = write_shards([{"row": 0, "image": noise, "references": []}], local, folder, 30, SCHEMA)[0]
    content = Path(path).read_bytes()
    middle = content.index(noise[2500:2600])
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    damaged = {"truncated": content[:-20], "empty": b"", "text": b"hello" * 9, "flipped": flipped}[damage]
    Path(path).write_bytes(damaged)
    with pytest.raises(UserError, match=r"part-00000\.parquet' is damaged .*; delete it and build the data again"):
        read_shard(local, path)


def test_a_missing_shard_is_named(local: Any, folder: str) -> None:
    with pytest.raises(UserError, match=r"part-00007\.parquet' does not exist; build the data again"):
        read_shard(local, f"{folder}/part-00007.parquet")


def test_columns_can_be_chosen(local: Any, folder: str) -> None:
    path = write_shards(rows(3), local, folder, 3, SCHEMA)[0]
    assert read_shard(local, path, ["row"]).to_pydict() == {"row": [0, 1, 2]}


@pytest.mark.parametrize("size", [0, -1])
def test_shard_size_must_be_positive(size: int, local: Any, folder: str) -> None:
    with pytest.raises(UserError, match="give at least 1"):
        write_shards(rows(3), local, folder, size, SCHEMA)


def test_s3_holds_the_same_bytes(s3_storage: str, local: Any, folder: str) -> None:
    remote, prefix = open_filesystem(f"{s3_storage}/test-shards")
    write_shards(rows(30), remote, prefix, 5, SCHEMA)
    paths = write_shards(rows(12), remote, prefix, 5, SCHEMA)
    assert list_shards(remote, prefix) == paths
    assert all_rows(remote, prefix) == rows(12)
    for ours, theirs in zip(write_shards(rows(12), local, folder, 5, SCHEMA), paths, strict=True):
        assert Path(ours).read_bytes() == remote.cat_file(theirs)
    assert list_shards(remote, f"{prefix}/nothing") == []
    with pytest.raises(UserError, match="does not exist"):
        read_shard(remote, f"{prefix}/part-00009.parquet")


def listing(count: int, **changes: Any) -> Listing:
    return dataclasses.replace(Listing(rows(count), take, str, SCHEMA, 5), **changes)


def test_a_build_that_was_cut_off_keeps_what_is_whole(local: Any, folder: str) -> None:
    made: list[int] = []

    def watched(row: int, entry: dict[str, Any]) -> dict[str, Any]:
        made.append(row)
        return entry

    paths = [Path(path) for path in build_shards(listing(23), local, folder)]
    expected = [path.read_bytes() for path in paths]
    paths[1].write_bytes(expected[1][:-9])  # torn
    paths[2].unlink()
    paths[4].write_bytes(expected[0])  # whole, but of another shard: it has 5 rows, not 3
    build_shards(listing(23, make_row=watched), local, folder)
    assert made == [*range(5, 15), *range(20, 23)]
    assert [path.read_bytes() for path in paths] == expected


def test_shards_of_another_listing_are_not_kept(local: Any, folder: str) -> None:
    build_shards(listing(23), local, folder)
    changed = [{**row, "references": ["b"]} for row in rows(23)]
    build_shards(listing(23, entries=changed), local, folder)
    assert all_rows(local, folder) == changed
    Path(folder, LISTING).unlink()  # as earlier versions left it
    build_shards(listing(23), local, folder)
    assert all_rows(local, folder) == rows(23)


def test_shards_of_another_listing_are_not_kept_by_the_build_after_one_that_was_cut_off(
    local: Any, folder: str
) -> None:
    def cut_off(row: int, entry: dict[str, Any]) -> dict[str, Any]:
        if row == 10:
            raise KeyboardInterrupt
        return entry

    build_shards(listing(23), local, folder)
    changed = [{**row, "references": ["b"]} for row in rows(23)]
    with pytest.raises(KeyboardInterrupt):
        build_shards(listing(23, entries=changed, make_row=cut_off), local, folder)
    build_shards(listing(23, entries=changed), local, folder)
    assert all_rows(local, folder) == changed


def test_what_a_killed_process_had_begun_is_removed_when_nobody_writes_on(local: Any, folder: str) -> None:
    old, fresh = Path(folder, ".part-00000.parquet.aa.tmp"), Path(folder, ".part-00001.parquet.bb.tmp")
    old.parent.mkdir(parents=True)
    for file in (old, fresh):
        file.write_bytes(b"PAR1")
    os.utime(old, (0, 0))
    build_shards(listing(5), local, folder)
    assert not old.exists()
    assert fresh.exists(), "somebody may still be writing it"


def test_images_must_be_on_the_machine_that_reads_them(local: Any, folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/1.jpg is not on .*a folder that all machines share"):
        build_shards(listing(5, witness=f"{tmp_path}/1.jpg"), local, folder)


def test_only_row_groups_that_are_wanted_are_read(local: Any, folder: str) -> None:
    noise = [{**row, "image": random.Random(row["row"]).randbytes(5000)} for row in rows(20)]
    (path,) = build_shards(listing(20, entries=noise, rows_per_shard=20, rows_per_group=4), local, folder)
    asked: list[tuple[int, int]] = []

    def wanted(first: int, stop: int) -> bool:
        asked.append((first, stop))
        return first in (4, 16)

    assert read_shard(local, path, None, wanted).to_pylist() == [*noise[4:8], *noise[16:]]
    assert asked == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20)]
    content = Path(path).read_bytes()
    middle = content.index(noise[5]["image"][:100])
    Path(path).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(UserError, match=r"part-00000\.parquet' is damaged .*; delete it and build the data again"):
        read_shard(local, path, None, wanted)
    assert read_shard(local, path, ["row", "image"], lambda first, _: first == 0).num_rows == 4
