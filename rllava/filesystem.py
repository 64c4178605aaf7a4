"""Local paths and s3:// URLs behind one file-system object (fsspec)."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec

from rllava.errors import UserError


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
        # Listings are never cached: other processes write beside us.
        filesystem = fsspec.filesystem(scheme, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(f"storage '{url}': no file system for '{scheme}://' ({error}); use a path or s3://") from error
    return filesystem, url.split("://", 1)[1].rstrip("/")


def write_whole(filesystem: Any, path: str, content: bytes) -> None:
    """Writes a file such that readers see the old content or the new one, never a part.

    On a local disk the file is written beside its name and renamed; an object store puts an object whole anyway.

    Args:
        filesystem: fsspec file system.
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
        filesystem: fsspec file system.
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


def is_local(filesystem: Any) -> bool:
    """Whether a file system is this machine's (or a shared mount).

    Args:
        filesystem: fsspec file system.

    Returns:
        True for a local disk.
    """
    protocols = filesystem.protocol
    return "file" in ((protocols,) if isinstance(protocols, str) else protocols)
