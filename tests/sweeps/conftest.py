"""One unbroken run that the tests of this folder compare with, or start from copies of."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.processes import track
from tests.sweeps.driver import finish, start


@dataclass(frozen=True)
class Run:
    """A finished smoke ablation, which nobody writes to: the processes of ``pytest -n`` share it."""

    storage: str
    output: str


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Made by the first process of ``pytest -n`` that needs it, while another that does waits."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own, side by side
        folder = folder.parent
    with (folder / "unbroken.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given up with the file, also by a process that dies
        return _run_once(folder / "unbroken")


def _run_once(folder: Path) -> Run:
    storage, printed = str(folder / "results"), folder / "printed.txt"
    if not printed.exists():
        mark = track()
        output = finish(start(storage, mark))
        mark.assert_gone()
        printed.write_text(output)  # last: it says that the run is whole
    return Run(storage, printed.read_text())
