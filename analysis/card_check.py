"""Checks a robustness card that somebody submits: CSV or Parquet with the columns of ``card_schema.CARD_SCHEMA``.

Run as ``python -m analysis.card_check FILE``.
"""

import hashlib
import io
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tyro

from analysis.card_schema import CARD, CARD_KEY, CARD_SCHEMA, MEASURES, OURS, measure_of
from rllava.errors import UserError
from rllava.filesystem import open_filesystem, write_whole

SUBMITTED = f"reports/{CARD}/submitted"
"""Folder of a storage where the cards of others are kept."""

_LABEL = re.compile(r"clean|mean of \S+|[^\s\[\]]+-v\d+(\[.*\])?")
_SLACK = 1e-6
"""A mean may leave its interval by so much, in its own unit: files are rounded to six digits."""


@dataclass(frozen=True)
class CheckOptions:
    """Checks a submitted card.

    Attributes:
        file: a .csv or .parquet file.
        against: our own card.csv; conditions that it does not know are then refused.
    """

    file: tyro.conf.Positional[Path]
    against: Path | None = None


def read_card(content: bytes, name: str) -> pd.DataFrame:
    """Reads a card.

    Args:
        name: of the file; its ending says what it is.

    Returns:
        Its columns as they are.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        if name.endswith(".parquet"):
            return pd.read_parquet(io.BytesIO(content))
        if name.endswith(".csv"):
            return pd.read_csv(io.BytesIO(content))
    except (ValueError, OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: cannot be read ({reason}); write it as card.csv is") from error
    raise UserError(f"{name}: expected a .csv or .parquet file")


def problems(table: pd.DataFrame, conditions: Iterable[str] = ()) -> list[str]:
    """What is wrong with a card, a line each.

    Args:
        table: from :func:`read_card`.
        conditions: labels that are known; none: all that look like one.
    """
    missing = [name for name in CARD_SCHEMA.names if name not in table]
    unknown = [str(name) for name in table.columns if name not in CARD_SCHEMA.names]
    found = []
    if missing:
        found.append(f"columns are missing: {', '.join(missing)}")
    if unknown:
        found.append(f"unknown columns: {', '.join(unknown)}; a card has {', '.join(CARD_SCHEMA.names)}")
    if found:
        return found
    if table.empty:
        return ["no rows"]
    wrong = list(_wrong_types(table))
    return wrong or [*_wrong_rows(table, set(conditions)), *_repeated(table)]


def _wrong_types(table: pd.DataFrame) -> Iterator[str]:
    for field in CARD_SCHEMA:
        values = table[field.name]
        known = values.dropna()
        if not field.nullable and len(known) < len(values):
            yield f"column {field.name}: row {_first(values.isna())} has none"
        elif pa.types.is_string(field.type):
            if not all(isinstance(value, str) for value in known):
                yield f"column {field.name}: expected text"
        elif pa.types.is_boolean(field.type):
            if not all(isinstance(value, bool | np.bool_) for value in known):
                yield f"column {field.name}: expected True or False"
        else:
            numbers = pd.to_numeric(known, errors="coerce")
            whole = not pa.types.is_integer(field.type) or bool((numbers == numbers.round()).all())
            if not np.isfinite(numbers.to_numpy(dtype=np.float64)).all() or not whole:
                kind = "whole numbers" if pa.types.is_integer(field.type) else "finite numbers"
                yield f"column {field.name}: expected {kind}"


def _wrong_rows(table: pd.DataFrame, conditions: set[str]) -> Iterator[str]:
    for number, row in enumerate(table.to_dict("records"), start=1):
        at = f"row {number} ({row['candidate']}, {row['benchmark']}, {row['condition']})"
        yield from (f"{at}: {text}" for text in _wrong(row, conditions))


def _wrong(row: dict[Any, Any], conditions: set[str]) -> Iterator[str]:
    if row["source"] == OURS:
        yield f"source '{OURS}' is that of a sweep's own rows; name yourself"
    measure = measure_of(row["measure"])
    if measure is None:
        yield f"unknown measure '{row['measure']}'; known: {', '.join(MEASURES)}"
    elif not (pd.isna(row["mean"]) or 0 <= row["mean"] <= measure.highest):
        yield f"mean {row['mean']:g} is not in 0 to {measure.highest:g} ({measure.text})"
    if not _LABEL.fullmatch(row["condition"]) or (conditions and row["condition"] not in conditions):
        known = f"known: {', '.join(sorted(conditions))}" if conditions else "expected NAME-vNUMBER, e.g. fog-v1"
        yield f"unknown condition '{row['condition']}'; {known}"
    if not 0 < row["level"] < 1:
        yield f"level {row['level']:g}: expected a share, e.g. 0.95"
    if not (pd.isna(row["epsilon"]) or 0 <= row["epsilon"] <= 255):
        yield f"epsilon {row['epsilon']:g}: expected 0 to 255, units of 1/255"
    if min(row["n"], row["errors"]) < 0 or row["seeds"] < 1:
        yield "n, errors and seeds are counts"
    if row["n"] > 0 and pd.isna(row["mean"]):
        yield f"{row['n']:g} scores and no mean"
    for name, low, high in (("mean", "low", "high"), ("relative", "relative_low", "relative_high")):
        yield from _interval(name, row[name], row[low], row[high])


def _interval(name: str, value: float, low: float, high: float) -> Iterator[str]:
    if pd.isna(low) != pd.isna(high):
        yield f"the interval of {name} has one end"
    elif not pd.isna(low) and not (pd.isna(value) or low - _SLACK <= value <= high + _SLACK):
        yield f"{name} {value:g} is not in its interval, {low:g} to {high:g}"


def _repeated(table: pd.DataFrame) -> Iterator[str]:
    keys = table[list(CARD_KEY)].astype(object).where(table[list(CARD_KEY)].notna(), "")
    for position in np.flatnonzero(keys.duplicated(keep="first").to_numpy()):
        same = (keys == keys.iloc[position]).all(axis=1).to_numpy()
        yield f"rows {int(np.flatnonzero(same)[0]) + 1} and {position + 1} have one key ({', '.join(CARD_KEY)})"


def _first(flags: "pd.Series[bool]") -> int:
    return int(np.flatnonzero(flags.to_numpy())[0]) + 1


def checked_card(content: bytes, name: str, conditions: Iterable[str] = ()) -> pd.DataFrame:
    """Reads a card and refuses one that does not fit.

    Raises:
        UserError: in one line that says how many things are wrong, and the first of them.
    """
    table = read_card(content, name)
    found = problems(table, conditions)
    if found:
        more = f" (and {len(found) - 1} more; python -m analysis.card_check {name})" if len(found) > 1 else ""
        raise UserError(f"{name}: {found[0]}{more}")
    card: pd.DataFrame = table[CARD_SCHEMA.names]
    return card


def submit(storage: str, file: Path) -> None:
    """Keeps a checked card in a storage, where its report finds it; one of the same file name is replaced.

    Raises:
        UserError: if the file is no card.
    """
    content = file_content(file)
    checked_card(content, str(file))
    filesystem, root = open_filesystem(storage)
    write_whole(filesystem, f"{root}/{SUBMITTED}/{file.name}", content)


def file_content(file: Path) -> bytes:
    """Reads a file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); name a .csv or .parquet file") from error


def read_submitted(storage: str) -> tuple[pd.DataFrame, str]:
    """The cards of others that a storage keeps.

    Returns:
        Their rows, and a signature of them.

    Raises:
        UserError: if one is no card.
    """
    filesystem, root = open_filesystem(storage)
    files = filesystem.find(f"{root}/{SUBMITTED}", maxdepth=1)
    there = [path for path in files if path.endswith((".csv", ".parquet"))]
    contents = {str(path): filesystem.cat_file(path) for path in sorted(there)}
    tables = [checked_card(content, path) for path, content in contents.items()]
    signature = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents.values())).hexdigest()
    if not tables:
        return pd.DataFrame(columns=CARD_SCHEMA.names), signature
    table = pd.concat(tables, ignore_index=True)
    if twice := list(_repeated(table)):
        raise UserError(f"{storage}/{SUBMITTED}: two files say something of one thing: {twice[0]}; remove one of them")
    return table, signature


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the arguments; those of the process if None.

    Returns:
        The exit status: 0 for a card that fits, 1 for one that does not, 2 for a file that cannot be read.
    """
    options = tyro.cli(CheckOptions, args=arguments, prog="python -m analysis.card_check")
    try:
        table = read_card(file_content(options.file), str(options.file))
        known: Iterable[str] = ()
        if options.against is not None:
            known = set(read_card(file_content(options.against), str(options.against))["condition"])
        found = problems(table, known)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in found:
        print(f"{options.file}: {line}")
    if not found:
        print(f"{options.file}: {len(table)} rows, all fit")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
