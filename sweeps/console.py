"""How scripts meet people: options from a dataclass, one line for a mistake, Ctrl-C without a traceback."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from cluster.machine import plain_output
from rllava.errors import SweepError, UserError
from rllava.faults import known_fault

Options = TypeVar("Options")


def run_script(main: Callable[[Options], None], options: type[Options], description: str | None) -> None:
    """Parses the command line, runs, and ends the process.

    Exit status: 0 done, 1 something failed, 2 a mistake in the arguments or in what they point to, 130 interrupted.

    Args:
        main: the script.
        options: dataclass of its options; its docstring is their help.
        description: of the script.
    """
    plain_output()
    parsed = tyro.cli(options, description=description)
    try:
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
