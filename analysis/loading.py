"""Opens a results folder, local or on S3: the sweep's manifest, its records, and images on demand."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.cells import require_one_evaluation
from analysis.manifest import JudgementsEntry, Manifest, RecordsEntry
from rllava.errors import UserError
from rllava.faults import known_fault
from rllava.filesystem import check_answers, open_filesystem, read_files, write_whole
from rllava.fingerprint import FORMAT
from rllava.judgements import JUDGEMENT_KEY, JUDGEMENT_SCHEMA, JUDGEMENT_VERSION
from rllava.records import KEY, RECORD_SCHEMA, RECORD_VERSION
from rllava.snapshot import PARTS, Snapshot, take_snapshot

GATHERED = "records.parquet"
"""File in a sweep's report folder: its records without images, for whoever loads them next."""

GATHERED_JUDGEMENTS = "judgements.parquet"
"""The same, of its judgements."""

_SIGNATURE = b"rllava.gathered"
"""Metadata of that file: which parts, in which state, it was gathered from."""

_STORAGE_MARKER = "rllava-storage.json"

_READERS = 16
"""Parts that are read at a time."""

IMAGE_COLUMNS = ("clean_png", "adversarial_png", "adversarial_rest", "shown_png")
"""Columns that are left in storage until :func:`fetch_images` asks for them."""


@dataclass(frozen=True)
class _Kind:
    """A kind of artifact that is read: its folder, what a row is called, its schema with its version, and its key."""

    folder: str
    row: str
    schema: pa.Schema
    version: int
    key: tuple[str, ...]
    gathered: str
    keeps: str
    heavy: tuple[str, ...] = ()

    def columns(self, heavy: bool) -> list[str]:
        """Names of the columns, those that are heavy only if asked for."""
        return [name for name in self.schema.names if heavy or name not in self.heavy]


RECORDS = _Kind("records", "record", RECORD_SCHEMA, RECORD_VERSION, KEY, GATHERED, "data and models", IMAGE_COLUMNS)
JUDGEMENTS = _Kind(
    "judgements", "judgement", JUDGEMENT_SCHEMA, JUDGEMENT_VERSION, JUDGEMENT_KEY, GATHERED_JUDGEMENTS,
    "data, models and records",
)  # fmt: skip

RecordKey = tuple[str, str, str, str, float | None, int | None, int | None, int | None, int, str]
"""The values of ``rllava.records.KEY``: candidate, benchmark, sample_id, condition, epsilon, severity, restart, seed,
draw, evaluation."""


@dataclass(frozen=True)
class SweepResults:
    """A sweep's manifest and records.

    Attributes:
        storage: path or URL the results were loaded from.
        records: one row per record: the columns of RECORD_SCHEMA (images left out unless asked for) and ``part``, the
            Parquet file that holds the row, relative to the storage. A seed is an integer or ``pandas.NA``.
        judgements: one row per verdict of a judge on an answer: the columns of JUDGEMENT_SCHEMA and ``part``.
        signature: of the parts that both come from; another one means other records or judgements.
    """

    storage: str
    manifest: Manifest
    records: pd.DataFrame
    judgements: pd.DataFrame = field(default_factory=lambda: _no_rows(JUDGEMENTS).to_pandas())
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
    """Loads a sweep: its manifest, and the records and judgements artifacts that the manifest names, no others.

    Args:
        storage: path or ``s3://`` URL of the results folder.
        sweep: name of the sweep, i.e. of its folder under ``reports/``.
        images: whether to load the PNG columns too (see :func:`fetch_images` for a few of them).
        gather: whether to leave the records, without images, in one file of the sweep's report, and the judgements in
            another: the next one who loads them need not read them part by part.

    Returns:
        The manifest, one row per record, and one per judgement.

    Raises:
        UserError: if the folder is no results folder or of another format, the sweep or one of its artifacts is missing
            or in flight, a file is damaged, or two records have the same key or are of two evaluations of one cell.
    """
    filesystem, root = open_filesystem(storage)
    manifest = _load_manifest(filesystem, storage, root, sweep)
    rows: dict[str, pd.DataFrame] = {}
    signatures = []
    entries: dict[_Kind, Sequence[RecordsEntry | JudgementsEntry]] = {RECORDS: manifest.records}
    if manifest.judgements:
        entries[JUDGEMENTS] = manifest.judgements
    for kind, own in entries.items():
        folders = {entry.path: entry.parts for entry in own}
        found = _listed(filesystem, storage, root, kind, folders)
        for folder, parts in folders.items():
            _require_complete(found, storage, kind, folder, parts)
        signature = _signature(found, kind, folders)
        signatures.append(signature)
        # Records are gathered without images.
        file = f"{root}/reports/{sweep}/{kind.gathered}"
        table = None if images and kind is RECORDS else _gathered(filesystem, file, signature)
        if table is None:
            table = _load_folders(filesystem, storage, root, found, kind, folders, kind.columns(images))
            if gather and not (images and kind is RECORDS):
                _gather(filesystem, file, table, signature)
        rows[kind.folder] = _to_pandas(table)
        _require_unique(storage, kind, rows[kind.folder])
    records = rows[RECORDS.folder]
    require_one_evaluation(records, f"run the sweep again, which writes reports/{sweep}/sweep.json anew")
    judgements = rows.get(JUDGEMENTS.folder, _no_rows(JUDGEMENTS).to_pandas())
    return SweepResults(storage, manifest, records, judgements, " ".join(signatures))


def records_specs(storage: str, chosen: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """Reads what complete records artifacts are of, whichever sweep wrote them.

    Args:
        storage: path or ``s3://`` URL of the results folder.
        chosen: takes an artifact's folder below the storage; no others are read.

    Returns:
        Every field of their specs, as JSON values, by folder below the storage.

    Raises:
        UserError: if the folder is no results folder or of another format.
    """
    filesystem, root = open_filesystem(storage)
    _require_results(filesystem, storage, root)
    found = _listed(filesystem, storage, root, RECORDS, ())
    wanted = [folder for folder in sorted(found.files) if found.is_finished(folder) and chosen(folder)]
    files = {f"{root}/{folder}/spec.json": folder for folder in wanted}
    return {files[path]: json.loads(content) for path, content in read_files(filesystem, list(files)).items()}


def load_records(
    storage: str, images: bool = False, *, chosen: Callable[[str], bool] = lambda folder: True
) -> pd.DataFrame:
    """Loads the records of all complete artifacts in a storage, whichever sweep wrote them.

    They may be of several trainings of one candidate's name, or of several evaluations of one cell: the columns
    ``model`` and ``evaluation`` tell them apart. What groups or pairs records refuses both at once.

    Args:
        storage: path or ``s3://`` URL of the results folder.
        images: whether to load the PNG columns too.
        chosen: takes an artifact's folder below the storage; no others are read.

    Returns:
        One row per record, as ``SweepResults.records``.

    Raises:
        UserError: if the folder is no results folder or of another format, a file is damaged, or two records have the
            same key.
    """
    filesystem, root = open_filesystem(storage)
    _require_results(filesystem, storage, root)
    found = _listed(filesystem, storage, root, RECORDS, ())
    wanted = [folder for folder in sorted(found.files) if chosen(folder)]
    found.gather(wanted)
    complete = {folder: found.facts(folder).get(PARTS) for folder in wanted if found.is_complete(folder, first=1)}
    columns = RECORDS.columns(images)
    records = _to_pandas(_load_folders(filesystem, storage, root, found, RECORDS, complete, columns))
    _require_unique(storage, RECORDS, records)
    return records


def load_artifacts(storage: str, folders: Mapping[str, int | None]) -> pd.DataFrame:
    """Loads some records artifacts, or judgements artifacts, whichever sweep they are of.

    Args:
        folders: relative to the storage, all below ``records/`` or all below ``judgements/``; with how many of their
            first parts, None: all.

    Returns:
        One row per record, without images, or per judgement.

    Raises:
        UserError: if one is not complete so far, or a file is damaged.
    """
    filesystem, root = open_filesystem(storage)
    kind = JUDGEMENTS if any(folder.startswith(f"{JUDGEMENTS.folder}/") for folder in folders) else RECORDS
    found = _listed(filesystem, storage, root, kind, folders)
    for folder, first in folders.items():
        _require_complete(found, storage, kind, folder, first)
    return _to_pandas(_load_folders(filesystem, storage, root, found, kind, folders, kind.columns(False)))


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
        for row in _read_part(filesystem, storage, root, RECORDS, part, (*KEY, *IMAGE_COLUMNS)).to_pylist():
            key: RecordKey = tuple(row[name] for name in KEY)
            if key in wanted:
                found[key] = RecordImages(*(row[name] for name in IMAGE_COLUMNS))
    return found


def record_keys(rows: pd.DataFrame) -> list[RecordKey]:
    """Lists the keys of some records, in their order."""
    return _keys(rows, KEY)


def _keys(rows: pd.DataFrame, names: Sequence[str]) -> list[Any]:
    values = [[None if value is pd.NA or value != value else value for value in rows[name]] for name in names]
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


def _listed(filesystem: Any, storage: str, root: str, kind: _Kind, folders: Iterable[str] | None) -> Snapshot:
    """Lists the artifacts of a kind, and reads what the markers of some of them (None: all) say."""
    with _reachable(storage):
        found = take_snapshot(filesystem, root, [kind.folder])
        found.gather(found.files if folders is None else folders)
    return found


def _require_complete(found: Snapshot, storage: str, kind: _Kind, folder: str, first: int | None) -> None:
    if not found.is_finished(folder):
        state = "not complete" if found.shards(folder) else "missing"
        raise UserError(
            f"{storage}/{folder}: this {kind.folder} artifact of the sweep is {state}; "
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


def _signature(found: Snapshot, kind: _Kind, folders: Mapping[str, int | None]) -> str:
    state = [[folder, parts, sorted(found.files[folder].items())] for folder, parts in folders.items()]
    return hashlib.sha256(json.dumps([str(kind.schema), state]).encode()).hexdigest()


def _gather(filesystem: Any, file: str, table: pa.Table, signature: str) -> None:
    sink = pa.BufferOutputStream()
    marked = table.replace_schema_metadata({_SIGNATURE: signature.encode()})
    pq.write_table(marked, sink, compression="zstd", write_page_checksum=True)
    write_whole(filesystem, file, bytes(sink.getvalue().to_pybytes()))


def _gathered(filesystem: Any, file: str, signature: str) -> pa.Table | None:
    """What :func:`_gather` left, if it is of these very parts. It may be lost or torn: the parts are the truth."""
    try:
        content = pa.BufferReader(filesystem.cat_file(file))
        table = pq.read_table(content, page_checksum_verification=True)
    except (pa.ArrowException, OSError):
        return None
    metadata = table.schema.metadata or {}
    return table.replace_schema_metadata(None) if metadata.get(_SIGNATURE) == signature.encode() else None


def _load_folders(
    filesystem: Any, storage: str, root: str, found: Snapshot, kind: _Kind, folders: Mapping[str, int | None],
    columns: Sequence[str],
) -> pa.Table:  # fmt: skip
    parts = []
    for folder, first in folders.items():
        own = found.shards(folder, first)
        if not own:
            raise UserError(
                f"{storage}/{folder}: complete but without part-*.parquet; delete the folder and run the sweep again"
            )
        parts += [f"{folder}/{name}" for name in own]

    def read(part: str) -> pa.Table:
        table = _read_part(filesystem, storage, root, kind, part, columns)
        return table.append_column("part", pa.array([part] * len(table), pa.string()))

    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(read, parts))
    empty = _no_rows(kind).select([*columns, "part"])
    return pa.concat_tables([empty, *(table.replace_schema_metadata(None) for table in tables)])


def _no_rows(kind: _Kind) -> pa.Table:
    return kind.schema.empty_table().append_column("part", pa.array([], pa.string())).replace_schema_metadata(None)


def _read_part(filesystem: Any, storage: str, root: str, kind: _Kind, part: str, columns: Sequence[str]) -> Any:
    """Reads some columns of one Parquet file, cast to the types of its schema."""
    where = f"{storage}/{part}"
    schema = pa.schema([kind.schema.field(name) for name in columns])
    try:
        # Unbuffered: only what the columns take is fetched; Parquet itself joins reads that are close.
        with filesystem.open(f"{root}/{part}", "rb", cache_type="none") as file:
            parquet = pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise UserError(f"{where}: {_why_missing(kind, missing[0], parquet.schema_arrow)}")
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


def _why_missing(kind: _Kind, column: str, schema: pa.Schema) -> str:
    prefix = f"{kind.row}-v"
    written = (schema.metadata or {}).get(b"rllava.schema", b"").decode().removeprefix(prefix)
    if written.isdecimal() and int(written) < kind.version:
        return (
            f"{kind.folder} of schema {prefix}{written}, and this version of rllava reads {prefix}{kind.version} "
            f"(column '{column}' is missing); read them with the version that wrote them, or delete the storage's "
            f"{kind.folder}/ and run the sweep again, which keeps {kind.keeps}"
        )
    if written.isdecimal() and int(written) > kind.version:
        return f"{kind.folder} of schema {prefix}{written}, which a later version of rllava wrote; update rllava"
    return f"no {kind.folder}, column '{column}' is missing; run the sweep again with this version of rllava"


def _require_unique(storage: str, kind: _Kind, rows: pd.DataFrame) -> None:
    repeated = rows.duplicated(subset=list(kind.key), keep=False)
    if repeated.any():
        keys = _keys(rows[repeated], kind.key)
        same = rows[repeated][[key == keys[0] for key in keys]]
        key = ", ".join(f"{name}={value}" for name, value in zip(kind.key, keys[0], strict=True))
        raise UserError(
            f"{storage}: {len(same)} {kind.folder} have the same key ({key}) in "
            f"{', '.join(dict.fromkeys(same['part']))}; delete one of the artifacts"
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
