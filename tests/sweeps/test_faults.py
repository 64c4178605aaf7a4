"""Faults of the machine that show in the middle of a run: one line and exit status 2."""

import errno
import os
from dataclasses import dataclass

import pytest

from sweeps.console import run_script


@dataclass(frozen=True)
class Options:
    """No options."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "error: /data/x: no space is left there"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "error: your quota there is used up"),
        (PermissionError(errno.EACCES, "Permission denied", "/home/x"), "error: /home/x: permission denied"),
        (OSError(errno.EMFILE, "Too many open files"), "error: too many files are open at once; raise the limit"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "error: no more processes or threads may be"),
        (RuntimeError("can't start new thread"), "error: no more processes or threads may be started"),
        (MemoryError(), "error: the memory that may be used is full"),
    ],
)
def test_a_fault_of_the_machine_is_one_line(
    error: BaseException, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(_: Options) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(SystemExit) as ended:
        run_script(main, Options, "A script.")
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(says)
    assert shown.count("\n") == 1


def test_what_nobody_can_mend_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(_: Options) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(RuntimeError, match="of ours"):
        run_script(main, Options, "A script.")
