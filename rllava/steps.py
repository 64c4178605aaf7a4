"""Steps: what a sweep makes, out of what, and the one way in which it is made.

A step is a spec, the folder its result belongs to, and the steps whose results it reads. How it is run is found by the
type of its spec. :func:`ensure` makes what is missing: complete? - lease - complete? - run - finish.

**What a step needs comes first**, before it takes its own lease: whoever waits for another driver holds nothing that
others want. What other trials have to make before it, the images that attacks on all candidates found for example, is
no wait inside it but a level of the whole sweep (:func:`levels`).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rllava.fingerprint import fingerprint
from rllava.store import Artifact, Kind, Store


@dataclass(frozen=True, eq=False)
class Step:
    """Something to make; the same one if kind and fingerprint are the same.

    Attributes:
        kind: folder of the storage that it goes to.
        spec: a named spec; with its inputs' specs in it, it decides the result and its place.
        needs: steps that are ensured before it.
        alongside: steps of the same batch that are made before it, where they are asked for too.
        after: steps that a level before it has made.
        batch: steps of one batch, whose needs are there, are made together; None: it is made alone.
        first: how many of the result's first parts are asked for; None: all. The rest may be made later.
    """

    kind: Kind
    spec: Any
    needs: tuple["Step", ...] = ()
    alongside: tuple["Step", ...] = ()
    after: tuple["Step", ...] = ()
    batch: str | None = None
    first: int | None = None

    @cached_property
    def key(self) -> tuple[str, str]:
        """What is the same for two descriptions of one step."""
        return self.kind, fingerprint(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True)
class WorkItem:
    """A step with its artifact."""

    step: Step
    artifact: Artifact

    @property
    def spec(self) -> Any:
        """What is described."""
        return self.step.spec


Facts = Mapping[str, Any]

Runner = Callable[[Sequence[WorkItem]], Iterator[tuple[WorkItem, Facts]]]
"""Makes tasks of one type of specs, whose leases are held. Yields each when all its files are there, with the facts of
its marker, which is written before the runner goes on: what it does then is cleaning up."""


@dataclass(frozen=True)
class Workshop:
    """Where steps are made.

    Attributes:
        runners: by the type of specs.
        found: told of the kind of what was complete already.
        waiting: told what somebody else is making, and who.
    """

    store: Store
    runners: Mapping[type, Runner]
    found: Callable[[Kind], None] = lambda kind: None
    waiting: Callable[[WorkItem, str], None] = lambda task, holder: None


def ensure(steps: Iterable[Step], workshop: Workshop) -> None:
    """Makes what is missing of some steps, after all that they need.

    Raises:
        KeyError: if a type of specs that is missing has no runner.
        RuntimeError: if a step comes after one that is not complete: levels were not kept.
    """
    for together in _in_order(steps):
        _ensure_together(together, workshop)


def _ensure_together(steps: Sequence[Step], workshop: Workshop) -> None:
    kind, store = steps[0].kind, workshop.store
    pending = lacking([item_of(step, store) for step in steps], store)
    if not pending:
        workshop.found(kind)
        return
    if late := lacking([item_of(step, store) for task in pending for step in task.step.after], store):
        raise RuntimeError(f"{pending[0].artifact.relative} comes after {late[0].artifact.relative}, which is missing")
    with contextlib.ExitStack() as leases:
        # Always in the same order, so that two drivers cannot hold what the other waits for.
        for task in sorted(pending, key=lambda task: task.artifact.path):
            leases.enter_context(store.lease(task.artifact, lambda holder, task=task: workshop.waiting(task, holder)))  # type: ignore[misc]
        pending = lacking(pending, store)
        if not pending:
            workshop.found(kind)
            return
        for task, facts in workshop.runners[type(pending[0].spec)](pending):
            store.finish(task.artifact, task.spec, dict(facts))


def item_of(step: Step, store: Store) -> WorkItem:
    """A step with its artifact."""
    return WorkItem(step, store.artifact(step.kind, step.spec.name, step.spec))


def lacking(tasks: Sequence[WorkItem], store: Store) -> list[WorkItem]:
    """Those that are not complete now, by one listing per kind.

    Returns:
        Some of them, in their order, each once.
    """
    if not tasks:
        return []
    found = store.snapshot(task.artifact for task in tasks)
    return [task for task in dict.fromkeys(tasks) if not found.is_complete(task.artifact.relative, task.step.first)]


def levels(steps: Iterable[Step]) -> list[list[Step]]:
    """What has to be complete, everywhere, before the next may begin.

    Returns:
        The steps and all that they come after, directly or not, each once; those that come after nothing first.
    """
    depths: dict[Step, int] = {}

    def depth(step: Step) -> int:
        if step not in depths:
            before = (*step.after, *(other for need in step.needs for other in _all_after(need)))
            depths[step] = 1 + max(map(depth, before), default=-1)
        return depths[step]

    for step in steps:
        depth(step)
    found: list[list[Step]] = [[] for _ in range(1 + max(depths.values(), default=-1))]
    for step, number in depths.items():
        found[number].append(step)
    return found


def _all_after(step: Step) -> Iterator[Step]:
    yield from step.after
    for need in step.needs:
        yield from _all_after(need)


def _in_order(steps: Iterable[Step]) -> list[list[Step]]:
    """Steps and their needs in groups that are made together, a group after those that it needs.

    Steps of one batch wait for each other, so that what they share is loaded once: clean answers, too, are made when
    the images are there that others of their batch need. Where two batches need each other's steps, they do not.
    """
    asked = dict.fromkeys(steps)
    floors: dict[object, int] = {}
    heights: dict[Step, int] = {}
    for _ in range(1 + len(asked)):
        heights = _heights(asked, floors)
        found: dict[object, int] = {}
        for step, number in heights.items():
            found[_group(step)] = max(number, found.get(_group(step), 0))
        if found == floors:
            break
        floors = found
    else:
        heights = _heights(asked, {})
    groups: dict[tuple[int, object], list[Step]] = {}
    for step, number in heights.items():
        groups.setdefault((number, _group(step)), []).append(step)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


def _group(step: Step) -> object:
    return step if step.batch is None else (step.kind, step.batch)


def _heights(asked: Mapping[Step, None], floors: Mapping[object, int]) -> dict[Step, int]:
    """Per step, how many groups come before its own.

    Args:
        floors: the least of a group.
    """
    heights: dict[Step, int] = {}

    def height(step: Step) -> int:
        if step not in heights:
            needed = 1 + max(map(height, step.needs), default=-1)
            beside = max((height(other) for other in step.alongside if other in asked), default=0)
            heights[step] = max(needed, beside, floors.get(_group(step), 0))
        return heights[step]

    for step in asked:
        height(step)
    return heights
