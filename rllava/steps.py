"""Steps: what a sweep makes, out of what, and the one way in which it is made.

A step is a spec, the folder its result belongs to, and the steps whose results it reads. How it is run is found by the
type of its spec. :func:`ensure` makes what is missing: complete? - lease - complete? - run - finish.

**What a step needs comes first**, before it takes its own lease: whoever waits for another driver holds nothing that
others want. What it starts from of *other* steps of its kind (:attr:`Step.after`), the images that attacks on all
candidates found for example, is no wait inside it but a level of the whole sweep (:func:`levels`).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rllava.store import Artifact, Kind, Store


@dataclass(frozen=True)
class Step:
    """Something to make.

    Attributes:
        kind: folder of the storage that it goes to.
        spec: a named spec; with its inputs' specs in it, it decides the result and its place.
        needs: steps that are ensured before it.
        after: steps that a level before it has made.
    """

    kind: Kind
    spec: Any
    needs: tuple["Step", ...] = ()
    after: tuple["Step", ...] = ()


@dataclass(frozen=True)
class Task:
    """A step with the place of its result.

    Attributes:
        step: what to make.
        artifact: where it belongs.
    """

    step: Step
    artifact: Artifact

    @property
    def spec(self) -> Any:
        """What is described."""
        return self.step.spec


Facts = Mapping[str, Any]

Runner = Callable[[Sequence[Task]], Iterator[tuple[Task, Facts]]]
"""Makes tasks of one type of specs, whose leases are held: yields each when all its files are there, with the facts of its
marker, which is written before the next one is asked for; whatever it does after the last is cleaning up."""


@dataclass(frozen=True)
class Workshop:
    """Where steps are made.

    Attributes:
        store: results folder.
        runners: by the type of specs.
        found: told of the kind of what was complete already.
        waiting: told who works on the same.
    """

    store: Store
    runners: Mapping[type, Runner]
    found: Callable[[Kind], None] = lambda kind: None
    waiting: Callable[[str], None] = lambda holder: None


def ensure(steps: Iterable[Step], workshop: Workshop) -> None:
    """Makes what is missing of some steps, after all that they need.

    Steps of one type of specs that need nothing of one another are made together, by one call of their runner.

    Args:
        steps: any.
        workshop: where they are made.

    Raises:
        KeyError: if a type of specs has no runner.
        RuntimeError: if a step comes after one that is not complete: levels were not kept.
    """
    for together in _in_order(steps):
        _ensure_together(together, workshop)


def _ensure_together(steps: Sequence[Step], workshop: Workshop) -> None:
    kind, store = steps[0].kind, workshop.store
    tasks = [task_of(step, store) for step in steps]
    pending = lacking(tasks, store)
    if not pending:
        workshop.found(kind)
        return
    before = [task_of(step, store) for task in pending for step in task.step.after]
    if late := lacking(before, store):
        raise RuntimeError(
            f"{pending[0].artifact.relative} comes after {late[0].artifact.relative}, which is not there"
        )
    with contextlib.ExitStack() as leases:
        # Always in the same order, so that two drivers cannot hold what the other waits for.
        for task in sorted(pending, key=lambda task: task.artifact.path):
            leases.enter_context(store.lease(task.artifact, workshop.waiting))
        pending = lacking(pending, store)
        if not pending:
            workshop.found(kind)
            return
        for task, facts in workshop.runners[type(pending[0].spec)](pending):
            store.finish(task.artifact, task.spec, dict(facts))


def task_of(step: Step, store: Store) -> Task:
    """A step with the place of its result.

    Args:
        step: what to make.
        store: results folder.

    Returns:
        The task.
    """
    return Task(step, store.artifact(step.kind, step.spec.name, step.spec))


def lacking(tasks: Sequence[Task], store: Store) -> list[Task]:
    """Those that are not complete now, by one listing per kind.

    Args:
        tasks: any.
        store: results folder.

    Returns:
        Some of them, in their order, each once.
    """
    if not tasks:
        return []
    found = store.snapshot(task.artifact for task in tasks)
    return [task for task in dict.fromkeys(tasks) if not found.is_complete(task.artifact.relative)]


def levels(steps: Iterable[Step]) -> list[list[Step]]:
    """What has to be complete, everywhere, before the next may begin.

    Args:
        steps: of a whole sweep.

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
    """Steps and their needs in groups that are made together, a group after those that it needs."""
    heights: dict[Step, int] = {}

    def height(step: Step) -> int:
        if step not in heights:
            heights[step] = 1 + max(map(height, step.needs), default=-1)
        return heights[step]

    for step in steps:
        height(step)
    groups: dict[tuple[int, type], list[Step]] = {}
    for step, number in heights.items():
        groups.setdefault((number, type(step.spec)), []).append(step)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]
