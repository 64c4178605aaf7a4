"""Local paths and s3:// URLs behind one file-system object (fsspec)."""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow.fs

from rllava.errors import UserError

_S3 = ("s3://", "s3a://")
_LONGEST_NAME = 160


def readable_name(name: str) -> str:
    """A name of letters, digits, ``.``, ``_`` and ``-``, short enough for every file system; the fingerprint beside it
    tells apart what it makes alike.
    """
    spelled = name.replace("+", "_and_").replace("@", "_in_").replace("]", "")
    return re.sub(r"[^A-Za-z0-9._-]|^[-.]", "_", spelled)[:_LONGEST_NAME]


def open_filesystem(url: str) -> tuple[Any, str]:
    """Resolves a storage URL.

    Credentials and the endpoint of S3 come from the usual AWS variables (``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``, ...).

    Args:
        url: a local path, ``file://...`` or ``s3://bucket/prefix``.

    Returns:
        The fsspec file system and the absolute path within it, without trailing slash.

    Raises:
        UserError: if the URL's scheme is unknown or its file system is not installed.
    """
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    if scheme == "file":
        path = url.split("://", 1)[-1]
        return fsspec.filesystem("file", auto_mkdir=True), os.path.abspath(os.path.expanduser(path))
    try:
        if url.startswith(_S3):
            from rllava.s3 import open_s3  # imports Amazon's client

            filesystem = open_s3()
        else:
            # Listings are never cached: other processes write beside us.
            filesystem = fsspec.filesystem(scheme, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(f"storage '{url}': no file system for '{scheme}://' ({error}); use a path or s3://") from error
    return filesystem, url.split("://", 1)[1].rstrip("/")


def check_answers(url: str) -> None:
    """Asks a storage on S3 whether it is there and may be listed, with few attempts; any other has nothing to answer.

    Args:
        url: as for :func:`open_filesystem`.

    Raises:
        OSError: or an error of Amazon's client; see :func:`rllava.faults.explain`.
    """
    if url.startswith(_S3):
        from rllava.s3 import check_s3  # imports Amazon's client

        check_s3(open_filesystem(url)[1])


def write_whole(filesystem: Any, path: str, content: bytes) -> None:
    """Writes a file such that readers see the old content or the new one, never a part.

    On a local disk the file is written beside its name and renamed; an object store puts an object whole anyway.

    Args:
        path: the file's path in it.
        content: all its bytes.
    """
    if not is_local(filesystem):
        filesystem.pipe_file(path, content)
        return
    with _replacing(path) as file:
        file.write(content)


def put_whole(filesystem: Any, path: str, file: Path) -> None:
    """As :func:`write_whole`, with the content of a local file, of which only pieces are in memory at a time.

    Args:
        path: the file's path in it.
        file: to copy; a large one goes to S3 in several parts, and appears when the last one is there.
    """
    if not is_local(filesystem):
        filesystem.put_file(str(file), path)
        return
    with _replacing(path) as target, file.open("rb") as source:
        shutil.copyfileobj(source, target, 1 << 20)


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """A file beside its name, which takes the name when all is written."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def read_files(filesystem: Any, paths: Sequence[str]) -> dict[str, bytes]:
    """Reads small files, at once where the file system can. fsspec's own ``cat`` takes ``[ ] * ?`` for patterns.

    Returns:
        Contents by path, without the files that cannot be read.
    """
    read = filesystem.cat_ranges(list(paths), None, None, on_error="return")
    return {path: content for path, content in zip(paths, read, strict=True) if isinstance(content, bytes)}


def copy_folder(filesystem: Any, path: str, folder: Path) -> None:
    """Copies all files below a path to this machine. fsspec's own ``get`` takes ``[ ] * ?`` in paths for patterns.

    Args:
        folder: made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in filesystem.find(path):
        target = folder / file[len(path.rstrip("/")) + 1 :]
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(file, str(target))


def remove_folder(filesystem: Any, path: str) -> None:
    """Removes all files below a path, each by name: ``rm`` takes ``[ ] * ?`` for patterns, and not every store that
    speaks S3 removes many objects at once.

    Args:
        path: in it; nothing happens if there is no such folder.
    """
    if is_local(filesystem):
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)  # of a local disk, and that without patterns
        return
    for file in filesystem.find(path):
        filesystem.rm_file(file)


def arrow_filesystem(filesystem: Any) -> pyarrow.fs.FileSystem:
    """The same file system for pyarrow and Ray.

    Returns:
        A pyarrow file system with the same paths.
    """
    if is_local(filesystem):
        return pyarrow.fs.LocalFileSystem()
    return pyarrow.fs.PyFileSystem(_ExactPaths(filesystem))


class _ExactPaths(pyarrow.fs.FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """pyarrow's adapter, but that a path is a path: fsspec takes ``[ ] * ?`` in some of its methods for patterns."""

    def delete_dir(self, path: str) -> None:
        remove_folder(self.fs, path)

    def _delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        if not missing_dir_ok and not self.fs.exists(path):
            raise FileNotFoundError(path)
        remove_folder(self.fs, path)

    def delete_file(self, path: str) -> None:
        if not self.fs.exists(path):
            raise FileNotFoundError(path)
        self.fs.rm_file(path)

    def copy_file(self, src: str, dest: str) -> None:
        self.fs.cp_file(src, dest)

    def move(self, src: str, dest: str) -> None:
        for file in self.fs.find(src):
            target = f"{dest}{file[len(src) :]}"
            self.fs.cp_file(file, target)
            self.fs.rm_file(file)


def is_local(filesystem: Any) -> bool:
    """Whether a file system is this machine's (or a shared mount).

    Returns:
        True for a local disk.
    """
    protocols = filesystem.protocol
    return "file" in ((protocols,) if isinstance(protocols, str) else protocols)
