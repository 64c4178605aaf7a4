"""How scripts meet people: options from a dataclass, one line for a mistake, Ctrl-C without a traceback.

While :func:`log_of` is active, the terminal (or what stands in for it: a file, a job's output) shows what :func:`say`,
:func:`note` and :func:`warn` are given and what this project's own loggers warn of, and nothing else. Whatever a
library, Ray's workers or a child process write to standard output and standard error goes to a log file.
"""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

import tyro

from cluster.machine import plain_output
from rllava.errors import SweepError, UserError
from rllava.faults import explain, first_line, known_fault

Options = TypeVar("Options")

_PACKAGES = ("rllava", "cluster", "analysis", "sweeps")
"""Whose warnings are meant for whoever runs a sweep."""


class Log:
    """The file that takes what need not be read. It stays open: libraries may write until the process ends.

    Attributes:
        in_use: whether anything has begun that it would tell of.

    Raises:
        UserError: if there is no folder for temporary files.
    """

    def __init__(self, name: str) -> None:
        self.in_use = False
        started = time.strftime("%Y%m%d-%H%M%S")
        try:
            self.path = Path(tempfile.mkdtemp(prefix="rllava-log-")) / f"{name}-{started}-{os.getpid()}.log"
            self.file = self.path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"temporary files cannot be written: {explain(error)}") from error

    def take_descriptors(self) -> None:
        """Makes standard output and standard error of this process, and of those it starts, end here."""
        for descriptor in (1, 2):
            os.dup2(self.file.fileno(), descriptor)

    def move(self, folder: Path) -> None:
        """Goes on in another folder, with what was written so far.

        Args:
            folder: made if need be.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.in_use = True
        self.file.flush()
        before, self.path = self.path, folder / self.path.name
        shutil.copyfile(before, self.path)
        with self.path.open("ab") as file:
            os.dup2(file.fileno(), self.file.fileno())
        self.take_descriptors()
        shutil.rmtree(before.parent, ignore_errors=True)

    def finish(self) -> None:
        """Removes a log in which nothing stands."""
        self.file.flush()
        if self.path.stat().st_size == 0:
            self.path.unlink()
            with contextlib.suppress(OSError):  # what else lies in the folder stays
                self.path.parent.rmdir()


@dataclass
class _Shown:
    """Where a person reads while a log takes the rest; None: the process's own streams."""

    out: TextIO | None = None
    err: TextIO | None = None
    log: Log | None = None


_SHOWN = _Shown()


def shown_errors() -> TextIO:
    """The stream for notes, errors and a live table.

    Returns:
        A terminal, a file or a pipe.
    """
    return _SHOWN.err or sys.stderr


def say(text: str) -> None:
    """Shows a result or a step of progress.

    Args:
        text: one line, or a table.
    """
    print(text, file=_SHOWN.out or sys.stdout, flush=True)


def note(text: str) -> None:
    """Shows what a person should know, but need not act on."""
    print(f"note: {text}", file=shown_errors(), flush=True)


def warn(text: str) -> None:
    """Shows what a person should act on, though the work goes on."""
    print(f"warning: {text}", file=shown_errors(), flush=True)


def current_log() -> Log | None:
    """The log that takes the rest, if there is one.

    Returns:
        The log of :func:`log_of`.
    """
    return _SHOWN.log


class _Warnings(logging.Handler):
    """Shows a person what this project's modules warn of, each thing once: what they look at is looked at again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.told:
            self.told.add(text)
            warn(text)


@contextlib.contextmanager
def log_of(name: str) -> Iterator[Log]:
    """Sends all but :func:`say`, :func:`note`, :func:`warn` and this project's own warnings to a log file meanwhile.

    An error of the program is written there with its traceback, and raised again as one line.

    Yields:
        The log.

    Raises:
        SweepError: for an error that is none of a user's; it names the log.
    """
    log = Log(name)
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    kept = os.dup(1), os.dup(2)
    shown = [_copy(stream, descriptor) for stream, descriptor in zip(streams, kept, strict=True)]
    _SHOWN.out, _SHOWN.err, _SHOWN.log = *shown, log
    log.take_descriptors()
    sys.stdout = sys.stderr = log.file
    warnings = _Warnings()
    for package in _PACKAGES:
        logging.getLogger(package).addHandler(warnings)
    try:
        yield log
    except (UserError, SweepError, KeyboardInterrupt):
        # A mistake that is told before the work begins has no more to say, and leaves no file.
        if log.in_use:
            with contextlib.suppress(OSError):
                log.file.write(traceback.format_exc())
        raise
    except Exception as error:
        with contextlib.suppress(OSError):  # the fault may be that nothing can be written
            log.file.write(traceback.format_exc())
        if (meaning := known_fault(error)) is not None:
            raise UserError(meaning) from error
        raise SweepError(f"{type(error).__name__}: {first_line(error)}; the traceback is in {log.path}") from error
    finally:
        for package in _PACKAGES:
            logging.getLogger(package).removeHandler(warnings)
        _SHOWN.out = _SHOWN.err = _SHOWN.log = None
        sys.stdout, sys.stderr = streams
        for stream in shown:
            stream.flush()
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        log.finish()


def _copy(stream: TextIO, descriptor: int) -> TextIO:
    """A stream on a descriptor, written like one of the process's own; that one itself if it is somebody's stand-in."""
    try:
        stream.fileno()
    except (OSError, ValueError):
        return stream
    return open(descriptor, "w", buffering=1, encoding=stream.encoding, errors=stream.errors, closefd=False)


def run_script(
    main: Callable[[Options], None], options: type[Options], description: str | None, *, log: bool = False
) -> None:
    """Parses the command line, runs, and ends the process.

    Exit status: 0 done, 1 something failed, 2 a mistake in the arguments or in what they point to, 130 interrupted.

    Args:
        options: dataclass of its options; its docstring is their help.
        log: whether all that libraries write goes to a log file; the script shows its own by :func:`say`.
    """
    plain_output()
    parsed = tyro.cli(options, description=description)
    try:
        with log_of(Path(sys.argv[0]).stem) if log else contextlib.nullcontext():
            main(parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SweepError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (OSError, MemoryError, RuntimeError) as error:
        meaning = known_fault(error)
        if meaning is None:
            raise
        print(f"error: {meaning}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
