"""What a failing machine or storage means to a user: one line with the remedy."""

import errno
import sys

_REMEDIES = {
    errno.ENOSPC: "no space is left there; free some, or name another disk (--storage, TMPDIR)",
    errno.EDQUOT: "your quota there is used up; free some, or name another disk (--storage, TMPDIR)",
    errno.EROFS: "it is mounted read-only; name another folder (--storage, TMPDIR, HOME)",
    errno.EACCES: "permission denied; mend its rights, or name another folder (--storage, TMPDIR, HOME)",
    errno.EPERM: "operation not permitted; mend its rights, or name another folder (--storage, TMPDIR, HOME)",
    errno.ENOTDIR: "a part of the path is a file; name another folder",
    errno.ENAMETOOLONG: "the path is too long for this file system; name a shorter folder",
    errno.EMFILE: "too many files are open at once; raise the limit: ulimit -n 65536",
    errno.ENFILE: "too many files are open on this machine; close other programs, or ask its administrator",
    errno.EAGAIN: "no more processes or threads may be started; raise the limit (ulimit -u), or end others",
    errno.ENOMEM: "the memory that may be used is full; raise the limit (ulimit -v, the container's, SLURM's --mem)",
    errno.EIO: "the disk reports an error; see dmesg, and name another folder",
    errno.ESTALE: "the network file system lost it; mount it again",
}


def explain(error: BaseException, url: str = "") -> str:
    """What is the case, and the remedy.

    Args:
        error: of a disk, of the machine or of S3.
        url: of the storage, if one was used.

    Returns:
        One line; the error's own words where nothing better is known.
    """
    known = known_fault(error, url)
    return known if known is not None else f"{type(error).__name__}: {first_line(error)}"


def known_fault(error: BaseException, url: str = "") -> str | None:
    """As :func:`explain`, but None where nothing better is known than the error's own words.

    Args:
        error: of a disk, of the machine or of S3.
        url: of the storage, if one was used.

    Returns:
        One line or None.
    """
    s3 = sys.modules.get("rllava.s3")  # imported by then if the error is one of S3
    meaning: str | None = s3.explain(error, url) if s3 is not None else None
    if meaning is not None:
        return meaning
    if isinstance(error, MemoryError):
        return _REMEDIES[errno.ENOMEM]
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return _REMEDIES[errno.EAGAIN]
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{error.filename}: {_REMEDIES[error.errno]}" if error.filename else _REMEDIES[error.errno]
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return str(error).strip().split("\n", 1)[0]
