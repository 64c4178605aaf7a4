"""Artifacts by fingerprint on any file system: what a step leaves, when it is complete, and who is working on it.

    <storage>/rllava-storage.json            says that this folder is ours
    <storage>/data/<name>-<fp>/              shards of a benchmark or of instruction data
    <storage>/encoders/<name>-<fp>/          an encoder that a step trained
    <storage>/models/<name>-<fp>/            a trained LLaVA
    <storage>/images/<name>-<fp>/            images that are made once and shown to many, e.g. universal ones
    <storage>/records/<name>-<fp>/           one part per shard
    <storage>/judgements/<name>-<fp>/        what a judge says of records, one part per part of theirs
    <storage>/reports/<sweep>/
    <storage>/facts/<kind>.json              what the markers say, gathered (rllava.snapshot)
    <storage>/leases/<kind>-<name>-<fp>.json who works on an artifact

The file ``COMPLETE`` is written last; an artifact without it is resumed or redone. Everything else may be lost at any
moment. A lease keeps two drivers from doing the same work; it is an economy, not a lock: outputs are deterministic and
written whole, so that even two drivers at the same step leave the same bytes.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import pyarrow.fs

from rllava.errors import UserError
from rllava.faults import explain
from rllava.filesystem import (
    arrow_filesystem,
    check_answers,
    is_local,
    open_filesystem,
    put_whole,
    readable_name,
    write_whole,
)
from rllava.fingerprint import FORMAT, fingerprint, to_json
from rllava.snapshot import MARKER, Snapshot, take_snapshot

Kind = Literal["data", "encoders", "models", "images", "records", "judgements"]

_ROOT_MARKER = "rllava-storage.json"
_SETTLE_S = 1.0
"""Longer than a small object takes to be written."""

HEARTBEAT_S = 10.0
LEASE_TTL_S = 60.0
"""A lease whose holder was not heard of for so long is void; a dead holder on the same machine is noticed at once."""


@dataclass(frozen=True)
class Artifact:
    """A place in storage for the result of one step."""

    kind: Kind
    name: str
    fingerprint: str
    path: str

    @property
    def relative(self) -> str:
        """Path below the storage's root."""
        return f"{self.kind}/{self.name}-{self.fingerprint}"


class Store:
    """A results folder, local or on S3.

    Args:
        url: a path, ``file://`` or ``s3://bucket/prefix``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.filesystem, self.root = open_filesystem(url)

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return (Store, (self.url,))

    @property
    def is_local(self) -> bool:
        """Whether the storage is a folder of this machine (or a shared mount)."""
        return is_local(self.filesystem)

    def prepare(self) -> None:
        """Makes sure that this is a results folder of ours and can be written, before anything expensive starts.

        Raises:
            UserError: if it cannot be reached or written (saying why), or holds something else or results of another
                format.
        """
        marker = f"{self.root}/{_ROOT_MARKER}"
        try:
            check_answers(self.url)
            if not self.filesystem.exists(marker):
                entries = []
                with contextlib.suppress(FileNotFoundError):
                    entries = self.filesystem.ls(self.root, detail=False)
                if [entry for entry in entries if not os.path.basename(entry.rstrip("/")).startswith(".")]:
                    raise UserError(
                        f"storage {self.url}: the folder holds something else than rllava's results; "
                        "choose an empty or new folder with --storage"
                    )
            else:
                self._check_format(self.filesystem.cat_file(marker))
            self.write(marker, json.dumps({"format": FORMAT}).encode())
        except UserError:
            raise
        except Exception as error:  # botocore, OSError, permission errors: each file system has its own
            raise UserError(f"storage {self.url} cannot be written: {explain(error, self.url)}") from error

    def _check_format(self, marker: bytes) -> None:
        """Results of another format have other names: nothing would be found, and everything computed beside it."""
        try:
            found = int(json.loads(marker)["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"storage {self.url}: {_ROOT_MARKER} cannot be read; choose another folder with --storage"
            ) from error
        if found < FORMAT:
            raise UserError(
                f"storage {self.url} holds results of format {found}, and this version of rllava, which names them by "
                f"format {FORMAT}, would find none of them; choose another folder with --storage and keep this one for "
                "the version that wrote it, or delete it"
            )
        if found > FORMAT:
            raise UserError(
                f"storage {self.url} holds results of format {found}, which a later version of rllava wrote; update "
                "rllava, or choose another folder with --storage"
            )

    def holds_anything(self) -> bool:
        """Whether this is a results folder already."""
        return bool(self.filesystem.exists(f"{self.root}/{_ROOT_MARKER}"))

    def artifact(self, kind: Kind, name: str, spec: Any) -> Artifact:
        """Where the result of a spec lies.

        Args:
            name: readable part; characters with a meaning to a shell, a pattern or a URL are replaced.
        """
        readable, digest = readable_name(name), fingerprint(spec)
        return Artifact(kind, readable, digest, f"{self.root}/{kind}/{readable}-{digest}")

    def snapshot(self, artifacts: Iterable[Artifact], *, keep: bool = False) -> Snapshot:
        """What is there of many artifacts, by one listing per kind of them, with their facts.

        Others may be at work: whoever holds a lease takes another one.

        Args:
            artifacts: that will be asked about.
            keep: whether facts that had to be read from markers are gathered for the next one who asks.
        """
        asked = list(artifacts)
        found = take_snapshot(self.filesystem, self.root, dict.fromkeys(artifact.kind for artifact in asked))
        found.gather((artifact.relative for artifact in asked), write=keep)
        return found

    def is_complete(self, artifact: Artifact) -> bool:
        """Whether its marker is there.

        Returns:
            True if nothing is left to do.
        """
        return bool(self.filesystem.exists(f"{artifact.path}/{MARKER}"))

    def finish(self, artifact: Artifact, spec: Any, facts: dict[str, Any]) -> None:
        """Writes the spec, then the marker.

        Args:
            spec: what it was made from.
            facts: what is worth knowing about its making, e.g. seconds.
        """
        self.write(f"{artifact.path}/spec.json", json.dumps(to_json(spec), indent=1, sort_keys=True).encode())
        self.write(f"{artifact.path}/{MARKER}", json.dumps(facts, indent=1, sort_keys=True).encode())

    def facts(self, artifact: Artifact) -> dict[str, Any]:
        """What :meth:`finish` noted."""
        facts: dict[str, Any] = json.loads(self.filesystem.cat_file(f"{artifact.path}/{MARKER}"))
        return facts

    def write(self, path: str, content: bytes) -> None:
        """Writes a file such that readers see all of it or the old one.

        Args:
            content: its bytes.
        """
        write_whole(self.filesystem, path, content)

    def put(self, path: str, file: Path) -> None:
        """As :meth:`write`, from a local file of any size: it is never in memory as a whole."""
        put_whole(self.filesystem, path, file)

    def fetch(self, path: str, file: Path) -> None:
        """Copies a file of any size from the storage.

        Args:
            file: local one; its folder is made if need be.

        Raises:
            FileNotFoundError: if it is not there.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        self.filesystem.get_file(path, str(file))

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        return bool(self.filesystem.exists(path))

    def arrow_filesystem(self) -> pyarrow.fs.FileSystem:
        """The same file system for pyarrow and Ray.

        Returns:
            A pyarrow file system; paths are those of the artifacts.
        """
        return arrow_filesystem(self.filesystem)

    @contextlib.contextmanager
    def lease(self, artifact: Artifact, waiting: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Waits until nobody else works on an artifact, then holds its lease.

        Args:
            artifact: to work on. Look again whether it is complete once the lease is held.
            waiting: called once with the holder's name when there is one.

        Yields:
            None, with the lease held.
        """
        path = f"{self.root}/leases/{artifact.kind}-{artifact.name}-{artifact.fingerprint}.json"
        holder = _Holder.here()
        told = False
        while not self._take(path, holder):
            if not told:
                current = self._holder(path)
                waiting(f"process {current.pid} on {current.machine}" if current else "another driver")
                told = True
            time.sleep(0.5 if self.is_local else 2.0)
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(path, holder, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            with contextlib.suppress(Exception):  # the work is done: a lease that stays is void in a minute
                current = self._holder(path)
                if current is not None and current.token == holder.token:
                    self.filesystem.rm_file(path)

    def _take(self, path: str, holder: "_Holder") -> bool:
        current = self._holder(path)
        if current is not None and current.is_alive():
            return current.token == holder.token
        if current is not None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.rm_file(path)
        if not self._create(path, holder.to_json()):
            return False
        # Another waiter may have taken the old lease for void a moment later and removed ours, or have written over it
        # where a store knows no conditional puts: the last one stays.
        if not getattr(self.filesystem, "conditional", True):
            time.sleep(_SETTLE_S)
        elif current is not None:
            time.sleep(0.2)
        settled = self._holder(path)
        return settled is not None and settled.token == holder.token

    def _create(self, path: str, content: bytes) -> bool:
        """Creates a file unless it exists; atomic on local disks and where S3 knows conditional puts."""
        if self.is_local:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            return True
        try:
            self.filesystem.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        return True

    def _holder(self, path: str) -> "_Holder | None":
        try:
            return _Holder.of_json(self.filesystem.cat_file(path))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            # Being written at this moment, torn by a crash, or of other fields: void once it is old.
            age = time.time() - self.filesystem.modified(path).timestamp() if self.exists(path) else 0.0
            return _Holder("unknown", 0, 0.0, "", time.time() - age)

    def _beat(self, path: str, holder: "_Holder", stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception):  # a missed beat is no reason to lose the work, nor to beat no more
                current = self._holder(path)
                if current is None or current.token != holder.token:
                    return
                self.write(path, holder.to_json())


@dataclass(frozen=True)
class _Holder:
    """Who holds a lease, and when it was last heard of."""

    host: str
    pid: int
    started: float
    token: str
    heard: float

    @property
    def machine(self) -> str:
        """The part of ``host`` that people know."""
        return self.host.split("/")[0]

    @classmethod
    def here(cls) -> "_Holder":
        process = psutil.Process()
        return cls(_host(), process.pid, process.create_time(), uuid.uuid4().hex, time.time())

    @classmethod
    def of_json(cls, content: bytes) -> "_Holder":
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise ValueError("no lease")
        return cls(**fields)

    def to_json(self) -> bytes:
        return json.dumps(
            {"host": self.host, "pid": self.pid, "started": self.started, "token": self.token, "heard": time.time()}
        ).encode()

    def is_alive(self) -> bool:
        if time.time() - self.heard > LEASE_TTL_S:
            return False
        if self.host != _host():
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:  # it is there, and somebody else's
            return True


def _host() -> str:
    """This machine, boot and container: process ids mean nothing beyond them."""
    boot, container = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    started = boot.read_text().strip() if boot.exists() else int(psutil.boot_time() / 60)
    return f"{socket.gethostname()}/{started}{f'/{os.readlink(container)}' if container.exists() else ''}"
