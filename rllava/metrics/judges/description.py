"""Judges that a TOML file describes."""

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rllava.errors import UserError


def read_description(path: Path) -> dict[str, Any]:
    """What a judge's file says.

    Raises:
        UserError: naming the file, if it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"judge {path} cannot be read: {error.strerror}; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"judge {path} is no TOML file ({error}); mend it") from error


def check_known(path: Path, found: Collection[str], known: Collection[str]) -> None:
    """Refuses settings that a judge has not.

    Raises:
        UserError: naming the file and them.
    """
    if unknown := sorted(set(found) - set(known)):
        raise UserError(f"judge {path}: unknown {', '.join(unknown)}; known: {', '.join(known)}")


def check_kind(path: Path, name: str, value: Any, kind: Any) -> None:
    """Refuses a setting whose value is of another kind; truths are no numbers.

    Args:
        kind: a type, or several.

    Raises:
        UserError: naming the file and the setting.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"judge {path}: {name} = {value!r} is of another kind than expected")


def check_shows_answer(path: Path, what: str, text: str) -> None:
    """Refuses a text into which no answer is put.

    Raises:
        UserError: naming the file.
    """
    if "{answer}" not in text:
        raise UserError(f"judge {path}: the {what} does not show the answer; write {{answer}} where it stands")
