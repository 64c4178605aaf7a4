"""Registries that raise on duplicates, answer an unknown name with its near matches, and are open to other packages.

A package adds to a registry by an entry point in its group: a function that is called with the registry's ``register``.

    [project.entry-points."rllava.metrics"]
    mine = "my_package.metrics:register"

    def register(register):
        register("exact_match", Metric(...))

``examples/plugin`` is such a package. It is looked for when a name is asked for that is not here, or all names are, in
Ray's workers as on a command line.
"""

import difflib
import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from rllava.errors import UserError

T = TypeVar("T")


_SHOWN = 40
"""Names listed where none is near."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Answers an unknown name.

    Args:
        kind: what an entry is called.

    Returns:
        A phrase with the near matches, or with all names if none is near.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:_SHOWN])}{more}"
    return f"unknown {kind} '{name}'; {hint}"


_LOOKING = threading.RLock()
"""One for all registries: a package that is loaded by one may ask another."""


def load_entry_points(group: str, register: Callable[..., object]) -> None:
    """Lets installed packages register what they have.

    Args:
        register: what each is called with.

    Raises:
        UserError: naming the package, if it cannot be loaded or registers what may not be.
    """
    for entry_point in entry_points(group=group):
        try:
            entry_point.load()(register)
        except Exception as error:  # another's code
            package = "a package" if entry_point.dist is None else f"package {entry_point.dist.name}"
            raise UserError(
                f"{package}: its entry point '{entry_point.name}' in {group} fails ({type(error).__name__}: {error}); "
                "mend or uninstall it"
            ) from error


class Registry(Generic[T]):
    """Named entries of one kind.

    Args:
        kind: what an entry is called in messages, e.g. ``"encoder"``.
        group: of entry points of packages that add to it; None: none do.
        folder: package every file of which is imported, to register what it has, before entry points are; None: whoever
            imports the registry has them already.
    """

    def __init__(self, kind: str, group: str | None = None, folder: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self.folder = folder
        self._looked = False
        self._entries: dict[str, T] = {}

    def _look_further(self) -> None:
        """Asks the files of its folder and installed packages, once."""
        with _LOOKING:
            if self._looked:
                return
            self._looked = True  # what is loaded now may ask again
            try:
                if self.folder is not None:
                    for module in pkgutil.iter_modules(importlib.import_module(self.folder).__path__):
                        importlib.import_module(f"{self.folder}.{module.name}")
                if self.group is not None:
                    load_entry_points(self.group, self.register)
            except BaseException:
                self._looked = False
                raise

    def register(self, name: str, entry: T) -> T:
        """Adds an entry.

        Raises:
            ValueError: if the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice; give one of the two another name")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """Looks an entry up.

        Raises:
            UserError: if there is none (the message names the near matches, or all entries), or a package fails that
                might have it.
        """
        if name not in self:
            raise UserError(unknown(self.kind, name, self._entries))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._look_further()
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            self._look_further()
        return name in self._entries
