"""Opens a results folder, local or on S3: the sweep's manifest, its records, and images on demand."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.cells import require_one_evaluation
from analysis.manifest import Manifest
from rllava.errors import UserError
from rllava.faults import known_fault
from rllava.filesystem import check_answers, open_filesystem, write_whole
from rllava.fingerprint import FORMAT
from rllava.records import KEY, RECORD_SCHEMA, RECORD_VERSION
from rllava.snapshot import PARTS, Snapshot, take_snapshot

GATHERED = "records.parquet"
"""File in a sweep's report folder: its records without images, for whoever loads them next."""

_SIGNATURE = b"rllava.gathered"
"""Metadata of that file: which parts, in which state, it was gathered from."""

_STORAGE_MARKER = "rllava-storage.json"

_READERS = 16
"""Parts that are read at a time."""

IMAGE_COLUMNS = ("clean_png", "adversarial_png", "adversarial_rest", "shown_png")
"""Columns that are left in storage until :func:`fetch_images` asks for them."""

RecordKey = tuple[str, str, str, str, float | None, int | None, int | None, int, str]
"""The values of ``rllava.records.KEY``: candidate, benchmark, sample_id, condition, epsilon, severity, seed, draw,
evaluation."""


@dataclass(frozen=True)
class SweepResults:
    """A sweep's manifest and records.

    Attributes:
        storage: path or URL the results were loaded from.
        manifest: what was run.
        records: one row per record: the columns of RECORD_SCHEMA (images left out unless asked for) and ``part``, the
            Parquet file that holds the row, relative to the storage. A seed is an integer or ``pandas.NA``.
        signature: of the parts that the records come from; another one means other records.
    """

    storage: str
    manifest: Manifest
    records: pd.DataFrame
    signature: str = ""


@dataclass(frozen=True)
class RecordImages:
    """PNG bytes of a record; None where the record holds none (clean: epsilon 0 only; adversarial: attacked only).

    ``shown`` is what was shown where it is neither, of a few samples. ``rest`` is what the 8-bit adversarial image
    lacks of the scored one; see ``rllava.records``.
    """

    clean: bytes | None
    adversarial: bytes | None
    rest: bytes | None = None
    shown: bytes | None = None


def load_sweep(
    storage: str, sweep: str = "encoder_ablation", images: bool = False, *, gather: bool = False
) -> SweepResults:
    """Loads a sweep: its manifest and the records artifacts that the manifest names, no others.

    Args:
        storage: path or ``s3://`` URL of the results folder.
        sweep: name of the sweep, i.e. of its folder under ``reports/``.
        images: whether to load the PNG columns too (see :func:`fetch_images` for a few of them).
        gather: whether to leave the records, without images, in one file of the sweep's report: the next one who loads
            them need not read them part by part.

    Returns:
        The manifest and one row per record.

    Raises:
        UserError: if the folder is no results folder or of another format, the sweep or one of its artifacts is missing
            or in flight, a file is damaged, or two records have the same key or are of two evaluations of one cell.
    """
    filesystem, root = open_filesystem(storage)
    manifest = _load_manifest(filesystem, storage, root, sweep)
    folders = {entry.path: entry.parts for entry in manifest.records}
    found = _listed(filesystem, storage, root, folders)
    for folder, parts in folders.items():
        _require_complete(found, storage, folder, parts)
    signature = _signature(found, folders)
    table = None if images else _gathered(filesystem, root, sweep, signature)
    read = table is None
    if table is None:
        table = _load_folders(filesystem, storage, root, found, folders, images)
    records = _to_pandas(table)
    _require_unique(storage, records)
    require_one_evaluation(records, f"run the sweep again, which writes reports/{sweep}/sweep.json anew")
    if gather and read and not images:
        _gather(filesystem, root, sweep, table, signature)
    return SweepResults(storage, manifest, records, signature)


def load_records(storage: str, images: bool = False) -> pd.DataFrame:
    """Loads the records of all complete artifacts in a storage, whichever sweep wrote them.

    They may be of several trainings of one candidate's name, or of several evaluations of one cell: the columns
    ``model`` and ``evaluation`` tell them apart. What groups or pairs records refuses both at once.

    Args:
        storage: path or ``s3://`` URL of the results folder.
        images: whether to load the PNG columns too.

    Returns:
        One row per record, as ``SweepResults.records``.

    Raises:
        UserError: if the folder is no results folder or of another format, a file is damaged, or two records have the
            same key.
    """
    filesystem, root = open_filesystem(storage)
    _require_results(filesystem, storage, root)
    found = _listed(filesystem, storage, root, None)
    complete = {
        folder: found.facts(folder).get(PARTS) for folder in sorted(found.files) if found.is_complete(folder, first=1)
    }
    records = _to_pandas(_load_folders(filesystem, storage, root, found, complete, images))
    _require_unique(storage, records)
    return records


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
    values = [[None if value is pd.NA or value != value else value for value in rows[name]] for name in KEY]
    return list(zip(*values, strict=True))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """As data frame, in which an integer that may be missing (a seed) stays an integer."""
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame


def _load_manifest(filesystem: Any, storage: str, root: str, sweep: str) -> Manifest:
    _require_results(filesystem, storage, root)
    if "sweep.json" not in _list(filesystem, storage, f"{root}/reports/{sweep}"):
        sweeps = ", ".join(_list(filesystem, storage, f"{root}/reports")) or "none"
        raise UserError(
            f"{storage}: no sweep '{sweep}' (reports/{sweep}/sweep.json is missing; reports here: {sweeps}); "
            "name another sweep or run this one"
        )
    text = filesystem.cat_file(f"{root}/reports/{sweep}/sweep.json").decode("utf-8", errors="replace")
    return Manifest.from_json(text, f"{storage}/reports/{sweep}/sweep.json")


def _require_results(filesystem: Any, storage: str, root: str) -> None:
    with _reachable(storage):
        check_answers(storage)
    names = set(_list(filesystem, storage, root))
    if not {"records", "reports"} & names:
        raise UserError(
            f"{storage}: no results folder, it holds neither records/ nor reports/; "
            "name the storage that a sweep wrote to"
        )
    if _STORAGE_MARKER in names:
        with _reachable(storage):
            marker = filesystem.cat_file(f"{root}/{_STORAGE_MARKER}")
        _require_format(storage, marker)


def _require_format(storage: str, marker: bytes) -> None:
    try:
        found = int(json.loads(marker)["format"])
    except (ValueError, KeyError, TypeError):
        return  # torn: the files themselves say what they are
    if found < FORMAT:
        raise UserError(
            f"{storage}: holds results of format {found}, and this version of rllava reads format {FORMAT}; analyse "
            "them with the version that wrote them, or run the sweep again with another --storage"
        )
    if found > FORMAT:
        raise UserError(
            f"{storage}: holds results of format {found}, which a later version of rllava wrote; update rllava"
        )


def _listed(filesystem: Any, storage: str, root: str, folders: Iterable[str] | None) -> Snapshot:
    """Lists the records artifacts, and reads what the markers of some of them (None: all) say."""
    with _reachable(storage):
        found = take_snapshot(filesystem, root, ["records"])
        found.gather(found.files if folders is None else folders)
    return found


def _require_complete(found: Snapshot, storage: str, folder: str, first: int | None) -> None:
    if not found.is_finished(folder):
        state = "not complete" if found.shards(folder) else "missing"
        raise UserError(
            f"{storage}/{folder}: this records artifact of the sweep is {state}; "
            "run the sweep again, only what is missing is computed"
        )
    if lost := found.lost(folder):
        there = len(found.shards(folder))
        remedy = "run the sweep again, only what is missing is computed"
        if lost < 0:
            remedy = "delete the folder and run the sweep again"
        raise UserError(f"{storage}/{folder}: {there} parts where {there + lost} were written; {remedy}")
    if not found.is_complete(folder, first):
        raise UserError(
            f"{storage}/{folder}: {found.facts(folder)[PARTS]} parts, where the sweep asked for {first or 'all'}; run "
            "the sweep again, only what is missing is computed"
        )


def _signature(found: Snapshot, folders: Mapping[str, int | None]) -> str:
    state = [[folder, parts, sorted(found.files[folder].items())] for folder, parts in folders.items()]
    return hashlib.sha256(json.dumps([str(RECORD_SCHEMA), state]).encode()).hexdigest()


def _gather(filesystem: Any, root: str, sweep: str, table: pa.Table, signature: str) -> None:
    sink = pa.BufferOutputStream()
    marked = table.replace_schema_metadata({_SIGNATURE: signature.encode()})
    pq.write_table(marked, sink, compression="zstd", write_page_checksum=True)
    write_whole(filesystem, f"{root}/reports/{sweep}/{GATHERED}", bytes(sink.getvalue().to_pybytes()))


def _gathered(filesystem: Any, root: str, sweep: str, signature: str) -> pa.Table | None:
    """What :func:`_gather` left, if it is of these very parts. It may be lost or torn: the parts are the truth."""
    try:
        content = pa.BufferReader(filesystem.cat_file(f"{root}/reports/{sweep}/{GATHERED}"))
        table = pq.read_table(content, page_checksum_verification=True)
    except (pa.ArrowException, OSError):
        return None
    metadata = table.schema.metadata or {}
    return table.replace_schema_metadata(None) if metadata.get(_SIGNATURE) == signature.encode() else None


def _load_folders(
    filesystem: Any, storage: str, root: str, found: Snapshot, folders: Mapping[str, int | None], images: bool
) -> pa.Table:
    columns = [name for name in RECORD_SCHEMA.names if images or name not in IMAGE_COLUMNS]
    parts = []
    for folder, first in folders.items():
        own = found.shards(folder, first)
        if not own:
            raise UserError(
                f"{storage}/{folder}: complete but without part-*.parquet; delete the folder and run the sweep again"
            )
        parts += [f"{folder}/{name}" for name in own]

    def read(part: str) -> pa.Table:
        table = _read_part(filesystem, storage, root, part, columns)
        return table.append_column("part", pa.array([part] * len(table), pa.string()))

    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(read, parts))
    empty = RECORD_SCHEMA.empty_table().select(columns).append_column("part", pa.array([], pa.string()))
    return pa.concat_tables([empty.replace_schema_metadata(None), *(t.replace_schema_metadata(None) for t in tables)])


def _read_part(filesystem: Any, storage: str, root: str, part: str, columns: Sequence[str]) -> Any:
    """Reads some columns of one Parquet file, cast to the types of RECORD_SCHEMA."""
    where = f"{storage}/{part}"
    schema = pa.schema([RECORD_SCHEMA.field(name) for name in columns])
    try:
        # Unbuffered: only what the columns take is fetched; Parquet itself joins reads that are close.
        with filesystem.open(f"{root}/{part}", "rb", cache_type="none") as file:
            parquet = pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise UserError(f"{where}: {_why_missing(missing[0], parquet.schema_arrow)}")
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


def _why_missing(column: str, schema: pa.Schema) -> str:
    written = (schema.metadata or {}).get(b"rllava.schema", b"").decode().removeprefix("record-v")
    if written.isdecimal() and int(written) < RECORD_VERSION:
        return (
            f"records of schema record-v{written}, and this version of rllava reads record-v{RECORD_VERSION} (column "
            f"'{column}' is missing); read them with the version that wrote them, or delete the storage's records/ and "
            "run the sweep again, which keeps data and models"
        )
    if written.isdecimal() and int(written) > RECORD_VERSION:
        return f"records of schema record-v{written}, which a later version of rllava wrote; update rllava"
    return f"no records, column '{column}' is missing; evaluate again with this version of rllava"


def _require_unique(storage: str, records: pd.DataFrame) -> None:
    repeated = records.duplicated(subset=list(KEY), keep=False)
    if repeated.any():
        first = records[repeated].iloc[0]
        same = records[[key == record_keys(first.to_frame().T)[0] for key in record_keys(records)]]
        key = ", ".join(f"{name}={first[name]}" for name in KEY)
        raise UserError(
            f"{storage}: {len(same)} records have the same key ({key}) in {', '.join(dict.fromkeys(same['part']))}; "
            "delete one of the artifacts"
        )


def _list(filesystem: Any, storage: str, path: str) -> list[str]:
    """Lists the names in a folder, sorted; none if there is no such folder."""
    with _reachable(storage):
        try:
            entries = filesystem.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
    names = {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries if str(entry).rstrip("/") != path}
    return sorted(names)


@contextlib.contextmanager
def _reachable(storage: str) -> Iterator[None]:
    """Says in one line what is wrong with a storage that cannot be listed."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, UserError):
        raise
    except Exception as error:  # each file system has its own
        meaning = known_fault(error, storage)
        if meaning is None:
            raise
        raise UserError(f"{storage}: cannot be listed: {meaning}") from error
