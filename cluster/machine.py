"""What this machine lets a process do: cores, folders, sockets, limits; and a line for each that Ray cannot do with.

Ray's own errors for these come late, are long, and name neither the cause nor the remedy.
"""

import contextlib
import math
import os
import resource
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from rllava.errors import UserError
from rllava.faults import explain

_SOCKET_PATH = 107
"""Bytes of the longest path of a UNIX socket."""

_SESSION = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest that Ray puts below the temporary folder."""

_GIB = 2**30
_LEAST_DISK = 0.25 * _GIB
_LEAST_MEMORY = 2 * _GIB
_LEAST_ADDRESS_SPACE = 16 * _GIB  # Ray's and torch's processes reserve much more than they use
_LEAST_FILES, _GOOD_FILES = 1024, 65536
_LEAST_PROCESSES = 1024  # threads count, and each of Ray's processes has dozens


def usable_cores() -> int:
    """Cores that this process may use: less than the machine has under SLURM, taskset, or a container's quota.

    Returns:
        At least 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota(Path("/sys/fs/cgroup")))))


def cpu_quota(cgroup: Path) -> float:
    """Cores that a container's quota allows.

    Args:
        cgroup: where the control group is mounted, of version 1 or 2.

    Returns:
        Cores; infinity where there is no quota.
    """
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf


def memory_limit(cgroup: Path) -> float:
    """Bytes of memory that a container may use.

    Args:
        cgroup: where the control group is mounted, of version 1 or 2.

    Returns:
        Bytes; infinity where there is no limit.
    """
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            return float(file.read_text())
    return math.inf


def check_machine() -> None:
    """Looks whether a local Ray can run here, and raises what limits may be raised.

    Raises:
        UserError: naming the first thing that is in the way, and the remedy.
    """
    _check_temporary_folder(Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"))
    _check_home()
    _check_loopback()
    _check_limits()


def check_compiler() -> None:
    """Looks for the compiler with which DeepSpeed builds its operator for CPUs.

    Raises:
        UserError: if there is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"no C++ compiler ({', '.join(names)}): DeepSpeed compiles an operator to train on CPUs; install one "
            "(apt-get install g++), or load its module"
        )


def _check_temporary_folder(folder: Path) -> None:
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    longest = len(os.fsencode(folder / _SESSION.format(pid=os.getpid())))
    if longest > _SOCKET_PATH:
        raise UserError(
            f"{variable} {folder}: too long by {longest - _SOCKET_PATH} characters for Ray's sockets in it; "
            "set RAY_TMPDIR to a short path, e.g. RAY_TMPDIR=/tmp"
        )
    for name, where in ((variable, folder), ("TMPDIR", Path(tempfile.gettempdir()))):
        _check_writable(where, f"temporary folder {where}", f"set {name} to a folder that can be written")
    free = shutil.disk_usage(folder).free
    if free < _LEAST_DISK:
        raise UserError(
            f"temporary folder {folder}: {free / _GIB:.2f} GiB are free, Ray needs {_LEAST_DISK / _GIB:g} at least; "
            f"free some, or set {variable} to another disk"
        )


def _check_home() -> None:
    """DeepSpeed's operators and Ray's token lie below the home folder, unless variables say otherwise."""
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():
        raise UserError(
            "no home folder: HOME is not set and this user has none; set HOME to a folder that can be written"
        )
    if not os.environ.get("TORCH_EXTENSIONS_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
        _check_writable(
            cache, f"cache folder {cache}", "set TORCH_EXTENSIONS_DIR and HOME to folders that can be written"
        )
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"} & os.environ.keys()
    if not given and not (home / ".ray" / "auth_token").exists():
        _check_writable(home / ".ray", f"{home / '.ray'}, where Ray keeps its token", "set HOME to another folder")


def _check_writable(folder: Path, what: str, remedy: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 65536)
            file.flush()
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error.strerror}); {remedy}") from error


def _check_loopback() -> None:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"this machine does not reach itself at 127.0.0.1 ({error.strerror or error}), by which Ray's processes "
            "talk; bring the loopback interface up: ip link set lo up"
        ) from error


def _check_limits() -> None:
    for limit, least, good, unit, option in (
        (resource.RLIMIT_NOFILE, _LEAST_FILES, _GOOD_FILES, 1, "open files; raise it: ulimit -n 65536"),
        (
            resource.RLIMIT_NPROC,
            _LEAST_PROCESSES,
            _GOOD_FILES,
            1,
            "processes, threads; raise it: ulimit -u unlimited",
        ),
        (resource.RLIMIT_AS, _LEAST_ADDRESS_SPACE, None, _GIB, "GiB of address space; raise it: ulimit -v unlimited"),
    ):
        soft = _raised(limit, good)
        if soft < least and not (limit == resource.RLIMIT_NPROC and os.geteuid() == 0):  # which does not bind root
            too_low = f"{soft / unit:.3g}, not {least / unit:.6g} {option}"
            raise UserError(f"a limit of this shell is too low for Ray: {too_low}")
    memory = memory_limit(Path("/sys/fs/cgroup"))
    if memory < _LEAST_MEMORY:
        raise UserError(
            f"this container may use {memory / _GIB:.2f} GiB of memory, a sweep needs {_LEAST_MEMORY / _GIB:g}; "
            "give it more (docker run --memory, SLURM's --mem)"
        )


def ray_refused(error: BaseException) -> UserError:
    """What to tell when a local Ray did not start all the same.

    Args:
        error: of ``ray.init``.

    Returns:
        The error with one line.
    """
    reason = explain(error)
    return UserError(
        f"Ray does not start on this machine: {' '.join(reason.split())[:300]}; its logs lie in "
        f"{os.environ.get('RAY_TMPDIR') or os.environ.get('TMPDIR') or '/tmp'}/ray/session_latest/logs"
    )


def plain_output() -> None:
    """Lets text with characters that a terminal's encoding lacks (ε in ASCII) be printed, with ? in their stead."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # replaced or closed
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def _raised(limit: int, good: int | None) -> float:
    """Raises a soft limit as far as it is of use and allowed; returns what it is then."""
    soft, hard = resource.getrlimit(limit)
    if soft != resource.RLIM_INFINITY and (good is None or soft < good):
        wanted = hard if good is None else good if hard == resource.RLIM_INFINITY else min(good, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (wanted, hard))
        soft, _ = resource.getrlimit(limit)
    return math.inf if soft == resource.RLIM_INFINITY else float(soft)
