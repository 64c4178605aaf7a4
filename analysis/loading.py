"""Opens a results folder, local or on S3: the sweep's manifest, its records, and images on demand."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.manifest import Manifest, parse_manifest
from rllava.errors import UserError
from rllava.faults import known_fault
from rllava.filesystem import check_answers, open_filesystem
from rllava.records import KEY, RECORD_SCHEMA

MARKER = "COMPLETE"
"""File that is written last into an artifact's folder; a folder without it is in flight and holds no results yet."""

IMAGE_COLUMNS = ("clean_png", "adversarial_png", "adversarial_rest")
"""Columns that are left in storage until :func:`fetch_images` asks for them."""

RecordKey = tuple[str, str, str, str, float]
"""The values of ``rllava.records.KEY``: candidate, benchmark, sample_id, protocol, epsilon."""


@dataclass(frozen=True)
class SweepResults:
    """A sweep's manifest and records.

    Attributes:
        storage: path or URL the results were loaded from.
        manifest: what was run.
        records: one row per record: the columns of RECORD_SCHEMA (images left out unless asked for) and ``part``, the
            Parquet file that holds the row, relative to the storage.
    """

    storage: str
    manifest: Manifest
    records: pd.DataFrame


@dataclass(frozen=True)
class RecordImages:
    """PNG bytes of a record; None where the record holds none (clean: epsilon 0 only; adversarial: attacked only).

    ``rest`` is what the 8-bit adversarial image lacks of the scored one; see ``rllava.records``.
    """

    clean: bytes | None
    adversarial: bytes | None
    rest: bytes | None = None


def load_sweep(storage: str, sweep: str = "encoder_ablation", images: bool = False) -> SweepResults:
    """Loads a sweep: its manifest and the records artifacts that the manifest names, no others.

    Args:
        storage: path or ``s3://`` URL of the results folder.
        sweep: name of the sweep, i.e. of its folder under ``reports/``.
        images: whether to load the PNG columns too (see :func:`fetch_images` for a few of them).

    Returns:
        The manifest and one row per record.

    Raises:
        UserError: if the folder is no results folder, the sweep or one of its artifacts is missing or in flight, a file
            is damaged, or two records have the same key.
    """
    filesystem, root = open_filesystem(storage)
    manifest = _load_manifest(filesystem, storage, root, sweep)
    folders = tuple(dict.fromkeys(entry.path for entry in manifest.records))
    for folder in folders:
        _require_complete(filesystem, storage, root, folder)
    return SweepResults(storage, manifest, _load_folders(filesystem, storage, root, folders, images))


def load_records(storage: str, images: bool = False) -> pd.DataFrame:
    """Loads the records of all complete artifacts in a storage, whichever sweep wrote them.

    Args:
        storage: path or ``s3://`` URL of the results folder.
        images: whether to load the PNG columns too.

    Returns:
        One row per record, as ``SweepResults.records``.

    Raises:
        UserError: if the folder is no results folder, a file is damaged, or two records have the same key.
    """
    filesystem, root = open_filesystem(storage)
    _require_results(filesystem, storage, root)
    folders = [f"records/{name}" for name in _list(filesystem, storage, f"{root}/records")]
    complete = [folder for folder in folders if MARKER in _list(filesystem, storage, f"{root}/{folder}")]
    return _load_folders(filesystem, storage, root, complete, images)


def fetch_images(storage: str, rows: pd.DataFrame) -> dict[RecordKey, RecordImages]:
    """Fetches the images of a few records.

    Args:
        storage: path or URL that the records were loaded from.
        rows: rows of ``SweepResults.records``; their key columns and ``part`` are used.

    Returns:
        The images by key (see ``RecordKey``).

    Raises:
        UserError: if a file is missing or damaged.
    """
    filesystem, root = open_filesystem(storage)
    found: dict[RecordKey, RecordImages] = {}
    for part in dict.fromkeys(rows["part"]):
        wanted = set(record_keys(rows[rows["part"] == part]))
        for row in _read_part(filesystem, storage, root, part, (*KEY, *IMAGE_COLUMNS)).to_pylist():
            key: RecordKey = tuple(row[name] for name in KEY)
            if key in wanted:
                found[key] = RecordImages(*(row[name] for name in IMAGE_COLUMNS))
    return found


def record_keys(rows: pd.DataFrame) -> list[RecordKey]:
    """Lists the keys of some records, in their order."""
    return list(rows[list(KEY)].itertuples(index=False, name=None))


def _load_manifest(filesystem: Any, storage: str, root: str, sweep: str) -> Manifest:
    _require_results(filesystem, storage, root)
    if "sweep.json" not in _list(filesystem, storage, f"{root}/reports/{sweep}"):
        sweeps = ", ".join(_list(filesystem, storage, f"{root}/reports")) or "none"
        raise UserError(
            f"{storage}: no sweep '{sweep}' (reports/{sweep}/sweep.json is missing; reports here: {sweeps}); "
            "name another sweep or run this one"
        )
    text = filesystem.cat_file(f"{root}/reports/{sweep}/sweep.json").decode("utf-8", errors="replace")
    return parse_manifest(text, f"{storage}/reports/{sweep}/sweep.json")


def _require_results(filesystem: Any, storage: str, root: str) -> None:
    try:
        check_answers(storage)
    except Exception as error:  # each file system has its own
        _explain(error, storage)
        raise
    if not {"records", "reports"} & set(_list(filesystem, storage, root)):
        raise UserError(
            f"{storage}: no results folder, it holds neither records/ nor reports/; "
            "name the storage that a sweep wrote to"
        )


def _require_complete(filesystem: Any, storage: str, root: str, folder: str) -> None:
    names = _list(filesystem, storage, f"{root}/{folder}")
    if MARKER not in names:
        state = "not complete" if names else "missing"
        raise UserError(
            f"{storage}/{folder}: this records artifact of the sweep is {state}; "
            "run the sweep again, only what is missing is computed"
        )


def _load_folders(filesystem: Any, storage: str, root: str, folders: Iterable[str], images: bool) -> pd.DataFrame:
    columns = [name for name in RECORD_SCHEMA.names if images or name not in IMAGE_COLUMNS]
    frames = []
    for folder in folders:
        parts = [name for name in _list(filesystem, storage, f"{root}/{folder}") if _is_part(name)]
        if not parts:
            raise UserError(
                f"{storage}/{folder}: complete but without part-*.parquet; delete the folder and run the sweep again"
            )
        for name in parts:
            table = _read_part(filesystem, storage, root, f"{folder}/{name}", columns)
            frames.append(table.to_pandas().assign(part=f"{folder}/{name}"))
    filled = [frame for frame in frames if len(frame)]
    empty = RECORD_SCHEMA.empty_table().select(columns).to_pandas().assign(part="")
    records: pd.DataFrame = pd.concat(filled, ignore_index=True) if filled else empty
    _require_unique(storage, records)
    return records


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def _read_part(filesystem: Any, storage: str, root: str, part: str, columns: Sequence[str]) -> Any:
    """Reads some columns of one Parquet file, cast to the types of RECORD_SCHEMA."""
    where = f"{storage}/{part}"
    schema = pa.schema([RECORD_SCHEMA.field(name) for name in columns])
    try:
        with filesystem.open(f"{root}/{part}", "rb") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise UserError(
                    f"{where}: no records, column '{missing[0]}' is missing; evaluate again with this version of rllava"
                )
            return parquet.read(columns=list(columns)).select(list(columns)).cast(schema)
    except FileNotFoundError as error:
        raise UserError(f"{where}: file not found; run the sweep again to compute it") from error
    except PermissionError as error:
        raise UserError(f"{where}: no permission to read it ({error}); check rights or credentials") from error
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{where}: damaged Parquet file ({reason}); delete its folder and run the sweep again, "
            "only that artifact is computed anew"
        ) from error


def _require_unique(storage: str, records: pd.DataFrame) -> None:
    repeated = records.duplicated(subset=list(KEY), keep=False)
    if repeated.any():
        first = records[repeated].iloc[0]
        same = records[(records[list(KEY)] == first[list(KEY)]).all(axis=1)]
        key = ", ".join(f"{name}={first[name]}" for name in KEY)
        raise UserError(
            f"{storage}: {len(same)} records have the same key ({key}) in {', '.join(dict.fromkeys(same['part']))}; "
            "delete one of the artifacts"
        )


def _list(filesystem: Any, storage: str, path: str) -> list[str]:
    """Lists the names in a folder, sorted; none if there is no such folder."""
    try:
        entries = filesystem.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except Exception as error:  # each file system has its own
        _explain(error, storage)
        raise
    names = {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries if str(entry).rstrip("/") != path}
    return sorted(names)


def _explain(error: Exception, storage: str) -> None:
    """Raises what an error means to a user, if that is known."""
    meaning = known_fault(error, storage)
    if meaning is not None:
        raise UserError(f"{storage}: cannot be listed: {meaning}") from error
