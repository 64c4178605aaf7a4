"""What is missing is made once, in order, and by one driver."""

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from rllava.steps import Facts, Step, WorkItem, Workshop, ensure, item_of, lacking, levels
from rllava.store import Kind, Store


@dataclass(frozen=True)
class Data:
    """A toy input."""

    name: str


@dataclass(frozen=True)
class Result:
    """A toy result."""

    name: str
    of: Data
    smaller: "Result | None" = None


class Notes:
    """Runners that note what they make."""

    def __init__(self, store: Store, fails_at: str = "") -> None:
        self.store, self.fails_at = store, fails_at
        self.made: list[list[str]] = []
        self.kinds: list[Kind] = []
        self.waited: list[tuple[str, str]] = []

    def run(self, missing: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Facts]]:
        self.made.append([task.spec.name for task in missing])
        for task in missing:
            if task.spec.name == self.fails_at:
                raise OSError(task.spec.name)
            self.store.write(f"{task.artifact.path}/part-00000.parquet", b"rows")
            yield task, {"parts": 1, "name": task.spec.name}
            assert self.store.is_complete(task.artifact), "cleaning up before the marker was written"

    @property
    def workshop(self) -> Workshop:
        return Workshop(
            self.store,
            {Data: self.run, Result: self.run},
            self.kinds.append,
            lambda task, holder: self.waited.append((task.spec.name, holder)),
        )


def data(name: str) -> Step:
    return Step("data", Data(name))


def result(name: str, of: str = "d", batch: str | None = "batch", smaller: Step | None = None) -> Step:
    spec = Result(name, Data(of), None if smaller is None else smaller.spec)
    return Step("records", spec, needs=(data(of),), alongside=() if smaller is None else (smaller,), batch=batch)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(str(tmp_path / "results"))
    found.prepare()
    return found


def test_needs_come_first_a_batch_is_made_together_and_nothing_twice(store: Store) -> None:
    steps = [result("a"), result("b"), result("c", of="e", batch="another"), result("alone", batch=None)]
    notes = Notes(store)
    ensure(steps, notes.workshop)
    assert sorted(notes.made[:2]) == [["d"], ["e"]]
    assert sorted(notes.made[2:]) == [["a", "b"], ["alone"], ["c"]]
    assert store.facts(item_of(steps[0], store).artifact) == {"parts": 1, "name": "a"}
    assert notes.kinds == []
    again = Notes(store)
    ensure(steps, again.workshop)
    assert (again.made, set(again.kinds)) == ([], {"data", "records"})
    assert not store.exists(f"{store.root}/leases") or list(Path(store.root, "leases").iterdir()) == []


def test_what_was_made_before_a_fault_is_kept(store: Store) -> None:
    steps = [result("a"), result("b"), result("c")]
    with pytest.raises(OSError, match="b"):
        ensure(steps, Notes(store, fails_at="b").workshop)
    notes = Notes(store)
    ensure(steps, notes.workshop)
    assert notes.made == [["b", "c"]]


def test_an_artifact_that_is_complete_for_its_first_parts_serves_who_asks_for_no_more(store: Store) -> None:
    made: list[tuple[int | None, list[str]]] = []
    parts = [f"part-{number:05d}.parquet" for number in range(4)]

    def run(missing: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Facts]]:
        (task,) = missing
        new = [name for name in parts[: task.step.first] if not store.exists(f"{task.artifact.path}/{name}")]
        made.append((task.step.first, new))
        for name in new:
            store.write(f"{task.artifact.path}/{name}", b"rows")
        yield task, {"parts": len(parts[: task.step.first]), "of": len(parts)}

    workshop = Workshop(store, {Data: run})
    of = {first: Step("records", Data("d"), first=first) for first in (1, 2, None)}
    for first in (2, 1, 2, None, 2, None):
        ensure([of[first]], workshop)
    assert made == [(2, parts[:2]), (None, parts[2:])]

    artifact = item_of(of[2], store).artifact
    store.finish(artifact, Data("d"), {"parts": 2, "of": 4})  # as a run leaves it that was cut off after the third part
    store.filesystem.rm_file(f"{artifact.path}/{parts[3]}")
    ensure([of[2]], workshop)
    assert len(made) == 2
    store.filesystem.rm_file(f"{artifact.path}/{parts[1]}")
    ensure([of[2]], workshop)
    assert made[2:] == [(2, parts[1:2])]
    store.write(f"{artifact.path}/part-00004.parquet", b"a part too many")
    store.write(f"{artifact.path}/{parts[3]}", b"rows")
    assert store.snapshot([artifact]).lost(artifact.relative) == -3


def test_a_lost_part_is_made_again(store: Store) -> None:
    ensure([result("a")], Notes(store).workshop)
    store.filesystem.rm_file(f"{item_of(result('a'), store).artifact.path}/part-00000.parquet")
    notes = Notes(store)
    ensure([result("a")], notes.workshop)
    assert notes.made == [["a"]]


def test_who_waits_for_a_need_holds_nothing_and_what_another_driver_made_is_taken(store: Store) -> None:
    """The other driver is another lease in this process; it makes both the need and the result."""
    need, wanted = item_of(data("d"), store), item_of(result("a"), store)
    waits = threading.Event()
    held: list[str] = []
    notes = Notes(store)

    def waiting(task: WorkItem, holder: str) -> None:
        held.extend(path.name for path in Path(store.root, "leases").iterdir())
        waits.set()

    def other_driver(has: threading.Event) -> None:
        with store.lease(need.artifact):
            has.set()
            assert waits.wait(60)
            for task in (need, wanted):
                store.finish(task.artifact, task.spec, {})

    has = threading.Event()
    other = threading.Thread(target=other_driver, args=(has,))
    other.start()
    assert has.wait(60)
    ensure([wanted.step], Workshop(store, notes.workshop.runners, notes.kinds.append, waiting))
    other.join()
    assert held == [f"data-d-{need.artifact.fingerprint}.json"]
    assert (notes.made, notes.kinds) == ([], ["data", "records"])


def test_a_smaller_budget_is_of_the_same_batch_where_it_is_asked_for(store: Store) -> None:
    small = result("small")
    large = result("large", smaller=small)
    notes = Notes(store)
    ensure([large], notes.workshop)
    assert notes.made == [["d"], ["large"]], "what was not asked for was made"
    ensure([result("huge", smaller=large), small], notes.workshop)
    assert notes.made[2:] == [["huge", "small"]]


def test_levels_hold_what_everybody_must_have_made_before() -> None:
    first = [result(name) for name in ("a", "b")]
    second = Step("records", Result("c", Data("d")), needs=(data("d"),), after=tuple(first))
    third = Step("records", Result("e", Data("d")), needs=(second,))
    assert levels([second, data("d")]) == [[*first, data("d")], [second]]
    assert levels([third, second]) == [first, [third, second]]
    assert levels([]) == []


def test_a_step_out_of_its_level_is_a_mistake_of_the_program(store: Store) -> None:
    early = Step("records", Result("c", Data("d")), needs=(data("d"),), after=(result("a"),))
    with pytest.raises(RuntimeError, match=r"records/c-.* comes after records/a-.*, which is missing"):
        ensure([early], Notes(store).workshop)
    ensure([result("a")], Notes(store).workshop)
    ensure([early], Notes(store).workshop)
    assert lacking([item_of(early, store)], store) == []


def test_a_kind_of_spec_without_a_runner_is_named(store: Store) -> None:
    with pytest.raises(KeyError, match="Data"):
        ensure([data("d")], Workshop(store, {}))


def test_a_batch_waits_for_what_any_of_it_needs_and_kinds_do_not_mix(store: Store) -> None:
    image = Step("images", Result("image", Data("d"), None), needs=(data("d"),), batch="batch")
    plain, shown = result("plain"), result("shown")
    shown = dataclasses.replace(shown, needs=(*shown.needs, image))
    judged = Step("judgements", Result("judged", Data("d"), None), needs=(plain,), batch="judge")
    notes = Notes(store)
    ensure([judged, plain, shown, image], notes.workshop)
    assert notes.made == [["d"], ["image"], ["plain", "shown"], ["judged"]]


def test_batches_that_need_each_other_are_not_held_together(store: Store) -> None:
    first = result("a", batch="x")
    second = dataclasses.replace(result("b", batch="y"), needs=(first,))
    third = dataclasses.replace(result("c", batch="x"), needs=(second,))
    notes = Notes(store)
    ensure([third], notes.workshop)
    assert notes.made == [["d"], ["a"], ["b"], ["c"]]
