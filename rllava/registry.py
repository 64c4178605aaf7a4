"""Registries that raise on duplicates and answer an unknown name with its near matches."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from rllava.errors import UserError

T = TypeVar("T")


_SHOWN = 40
"""Names listed where none is near."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Answers an unknown name.

    Args:
        kind: what an entry is called.
        name: that was asked for.
        known: names there are.

    Returns:
        A phrase with the near matches, or with all names if none is near.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:_SHOWN])}{more}"
    return f"unknown {kind} '{name}'; {hint}"


class Registry(Generic[T]):
    """Named entries of one kind.

    Args:
        kind: what an entry is called in messages, e.g. ``"encoder"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Adds an entry.

        Args:
            name: must be new.
            entry: to add.

        Returns:
            The entry.

        Raises:
            ValueError: if the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice; give one of the two another name")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """Looks an entry up.

        Args:
            name: as registered.

        Returns:
            The entry.

        Raises:
            UserError: if there is none; the message names the near matches, or all entries.
        """
        if name not in self._entries:
            raise UserError(unknown(self.kind, name, self._entries))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries
