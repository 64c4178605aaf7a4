"""What lies in a results folder at one moment: which artifacts are complete, their shards, and their facts.

One listing per kind of artifact answers for all of them. What the markers say (:meth:`Snapshot.facts`) is gathered in
``<storage>/facts/<kind>.json``, so that it need not be read marker by marker; an entry counts as long as its marker is
the one it was read from. That file may be lost, torn or old at any moment: what it lacks is read from the markers.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rllava.data.shards import shard_number
from rllava.filesystem import is_local, read_files, write_whole

MARKER = "COMPLETE"
"""File that is written last into an artifact's folder; a folder without it is in flight."""

SHARDS, PARTS, OF = "shards", "parts", "of"
"""Facts that say how many shards data has; how many of its first parts records have, and of how many (without: all).
"""


@dataclass(frozen=True)
class Snapshot:
    """A listing.

    Attributes:
        root: path of the results folder in it.
        kinds: of artifacts that were listed.
        files: names of markers and shards with what changes whenever their content does, by the artifact's path below
            the root.
    """

    filesystem: Any
    root: str
    kinds: tuple[str, ...]
    files: Mapping[str, Mapping[str, str]]
    _facts: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def is_complete(self, relative: str, first: int | None = None) -> bool:
        """Whether nothing is left to do for an artifact.

        Args:
            relative: its path below the root.
            first: how many of its first parts are asked for; None: all.

        Returns:
            True if its marker is there, all files that the marker names, and as many as are asked for.
        """
        if not self.is_finished(relative) or self.lost(relative) != 0:
            return False
        facts = self.facts(relative)
        return PARTS not in facts or int(facts[PARTS]) >= int(first or facts.get(OF) or 0)

    def is_finished(self, relative: str) -> bool:
        """Whether an artifact's marker is there; shards may have been removed since.

        Args:
            relative: its path below the root.

        Returns:
            True if it was complete once.
        """
        return MARKER in self.files.get(relative, ())

    def lost(self, relative: str) -> int:
        """How many shards a finished artifact lacks.

        Args:
            relative: its path below the root.

        Returns:
            The number that its marker says less those that are there; below 0 if there are more than there can be.
            Parts beyond those of the marker, where it says that there will be some, are of a run in flight.
        """
        facts, there = self.facts(relative), self.shards(relative)
        if SHARDS not in facts and PARTS not in facts:
            return 0
        expected = int(facts.get(SHARDS) or facts.get(PARTS) or 0)
        if len(there) > int(facts.get(OF) or expected):
            return expected - len(there)
        return expected - sum((shard_number(name) or 0) < expected for name in there)

    def shards(self, relative: str, first: int | None = None) -> list[str]:
        """An artifact's shards.

        Args:
            relative: its path below the root.
            first: how many of them; None: all.
        """
        return sorted(name for name in self.files.get(relative, ()) if name != MARKER)[:first]

    def facts(self, relative: str) -> dict[str, Any]:
        """What the marker of an artifact says.

        Args:
            relative: path below the root of one whose marker is there.
        """
        if relative not in self._facts:
            content = self.filesystem.cat_file(f"{self.root}/{relative}/{MARKER}")
            self._facts[relative] = _parsed(content)
        return self._facts[relative]

    def gather(self, wanted: Iterable[str], *, write: bool = False) -> None:
        """Reads the facts of many artifacts at once.

        Args:
            wanted: paths below the root; those that are not finished are passed over.
            write: whether what had to be read from markers is kept for the next one who asks.
        """
        finished = [relative for relative in dict.fromkeys(wanted) if self.is_finished(relative)]
        for kind in self.kinds:
            own = [relative for relative in finished if relative.startswith(f"{kind}/")]
            if not own:
                continue
            known = self._known(kind)
            self._facts.update({relative: known[relative] for relative in own if relative in known})
            missing = {f"{self.root}/{relative}/{MARKER}": relative for relative in own if relative not in known}
            if not missing:
                continue
            # A marker that has gone since is asked for again when it is needed.
            read = read_files(self.filesystem, list(missing))
            self._facts.update({missing[path]: _parsed(content) for path, content in read.items()})
            if write:
                kept = {**known, **{relative: self._facts[relative] for relative in own if relative in self._facts}}
                entries = {name: {"of": self.files[name][MARKER], "facts": facts} for name, facts in kept.items()}
                write_whole(self.filesystem, self._path(kind), json.dumps(entries).encode())

    def _known(self, kind: str) -> dict[str, dict[str, Any]]:
        """Facts that were gathered before, of markers that are still the same."""
        try:
            entries = json.loads(self.filesystem.cat_file(self._path(kind)))
            return {
                relative: entry["facts"]
                for relative, entry in entries.items()
                if self.files.get(relative, {}).get(MARKER) == entry["of"]
            }
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _path(self, kind: str) -> str:
        return f"{self.root}/facts/{kind}.json"


def take_snapshot(filesystem: Any, root: str, kinds: Iterable[str]) -> Snapshot:
    """Lists artifacts.

    Args:
        root: path of the results folder in it.
    """
    kinds = tuple(kinds)
    files: dict[str, dict[str, str]] = {}
    for kind in kinds:
        listed = _on_disk if is_local(filesystem) else _by_prefix
        for relative, tag in listed(filesystem, root, kind):
            folder, _, name = relative.rpartition("/")
            files.setdefault(folder, {})[name] = tag
    return Snapshot(filesystem, root, kinds, files)


def _parsed(content: bytes) -> dict[str, Any]:
    """What a marker says: nothing, if it is no JSON."""
    try:
        facts = json.loads(content)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _counts(name: str) -> bool:
    return name == MARKER or shard_number(name) is not None


def _on_disk(_: Any, root: str, kind: str) -> Iterable[tuple[str, str]]:
    """Folders of folders; others write beside us, so that any file may vanish under our eyes."""
    for artifact in _names(f"{root}/{kind}"):
        for name in filter(_counts, _names(f"{root}/{kind}/{artifact}")):
            try:
                found = os.stat(f"{root}/{kind}/{artifact}/{name}")
            except FileNotFoundError:
                continue
            yield f"{kind}/{artifact}/{name}", f"{found.st_size} {found.st_mtime_ns}"


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _by_prefix(filesystem: Any, root: str, kind: str) -> Iterable[tuple[str, str]]:
    """Object stores list all that a prefix has below it, a thousand names a request."""
    try:
        listed = filesystem.find(f"{root}/{kind}", detail=True)
    except FileNotFoundError:  # there is not even a bucket
        return
    for path, found in listed.items():
        relative = path.removeprefix(f"{root}/")
        if relative.count("/") == 2 and _counts(relative.rpartition("/")[2]):
            changed = found.get("ETag") or found.get("LastModified") or found.get("updated") or ""
            yield relative, f"{found.get('size')} {changed}"
