"""The corpus of an attack: sentences that a model shall be made to say, from a user's file."""

import csv
from pathlib import Path

from rllava.errors import UserError


def read_corpus(path: str | Path) -> tuple[str, ...]:
    """Target sentences from a local file: a text file with one per line, or the first column of a CSV file.

    Args:
        path: UTF-8; a name ending in ``.csv`` is a CSV file without header, as VisualAdv's corpus is.

    Returns:
        The targets in order, stripped; blank lines are skipped.

    Raises:
        UserError: if the file cannot be read or holds no target.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv_file = path.suffix.lower() == ".csv"
            lines = [row[0] for row in csv.reader(file) if row] if csv_file else file.read().splitlines()
    except OSError as error:
        raise UserError(f"corpus '{path}' cannot be read ({error.strerror}); give a file of targets") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"corpus '{path}' is no UTF-8 text ({error}); save it as UTF-8, one target per line") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UserError(f"corpus '{path}' holds no target; write one per line, or in the first column of a .csv file")
    return found
