"""Ends what a local Ray left behind once its driver is gone, however the driver went.

Ray's own processes mostly notice a killed driver within seconds, but its agents wait a minute for a server that is
gone, and programs started by workers never notice. Everything a local Ray starts inherits a mark in its environment;
this process waits for its parent to end and then kills what still carries the mark. Run as a script by
:func:`start_reaper`.
"""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

MARK = "RLLAVA_LOCAL_RAY"
"""Environment variable that the processes of one local Ray share."""

_POLL_S = 0.5
_GIVE_UP_S = 20.0


@contextlib.contextmanager
def marked_processes() -> Iterator[str]:
    """Marks the processes started within the block, and those that they start; yields the mark's value."""
    value = uuid.uuid4().hex
    # Ray gives its processes titles; without SPT_NOENV the title is written over the environment, and with it the mark.
    inherited = {MARK: value, "SPT_NOENV": "1"}
    before = {name: os.environ.get(name) for name in inherited}
    os.environ.update(inherited)
    try:
        yield value
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old


def start_reaper(value: str) -> None:
    """Starts the process that kills what carries the mark ``value`` after this process has ended."""
    subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), str(os.getpid()), value],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that Ctrl-C in the terminal leaves it to its work
    )


def find_marked(value: str) -> list[psutil.Process]:
    """Returns the running processes that carry the mark ``value``, but for this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARK) == value:
                found.append(process)
    return found


def reap(parent: int, value: str) -> None:
    """Waits for the process ``parent``, this one's parent, to end and kills what carries the mark ``value``."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    deadline = time.monotonic() + _GIVE_UP_S
    # More than one pass: a process may have been starting another while we looked.
    while (left := find_marked(value)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(_POLL_S / 5)


if __name__ == "__main__":
    reap(int(sys.argv[1]), sys.argv[2])
