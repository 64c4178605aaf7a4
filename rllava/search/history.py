"""What a search has done so far, as events in storage; and what it does next.

    <storage>/searches/<name>/study.json               space, objectives, rungs, recipe: what makes two searches one
    <storage>/searches/<name>/seed-<n>/000012.json     one event

An event is written before what it tells of begins. State is nothing but these files in their order: whoever reads them
knows what the process that wrote them knew.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from rllava.errors import UserError
from rllava.fronts import non_dominated
from rllava.search.rungs import Rung, leaders, to_promote
from rllava.search.sampling import STARTUP, Choosable, Observed, propose
from rllava.search.space import Configuration
from rllava.store import Store

FOUND = "storage"
"""Where a configuration comes from that was not proposed by a sampler, but complete in storage already."""


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        what: ``proposed``: a configuration is new; ``begun``: a trial of it starts; ``finished``; ``failed``: the same
            command tries it again; ``refused``: a mistake was found in it, and trying again would not help.
        number: of the configuration, from 0.
        rung: index; -1 where it was proposed.
        configuration: where it was proposed.
        source: sampler that proposed it, or :data:`FOUND`.
        notes: the sampler's own.
        values: of the objectives in their order and own direction, where it finished.
        hours: of one worker: where a trial is begun, what was spent on its artifacts before; where it ended, well or
            not, what was spent on them in all.
        reason: why it failed.
    """

    what: Literal["proposed", "begun", "finished", "failed", "refused"]
    number: int
    rung: int = -1
    configuration: Configuration = field(default_factory=dict)
    source: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    hours: float = 0.0
    reason: str = ""


class Log:
    """Events of a search in storage, in their order."""

    def __init__(self, store: Store, name: str, seed: int) -> None:
        self.store = store
        self.study = f"{store.root}/searches/{name}/study.json"
        self.folder = f"{store.root}/searches/{name}/seed-{seed}"
        self.seed = seed
        self.count = 0

    def read(self) -> list[Event]:
        """Everything that was written so far.

        Raises:
            UserError: if a file is damaged.
        """
        try:
            found = self.store.filesystem.ls(self.folder, detail=False)
        except FileNotFoundError:
            return []
        events = []
        for path in sorted(path for path in found if path.endswith(".json")):
            try:
                raw = json.loads(self.store.filesystem.cat_file(path))
                events.append(Event(**{**raw, "values": tuple(raw["values"])}))
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{path}: no event of a search ({error}); give the search another --name") from error
        self.count = len(events)
        return events

    def write(self, event: Event) -> None:
        """Adds one; it is there whole, or not at all."""
        content = json.dumps(asdict(event), indent=1, sort_keys=True).encode()
        self.store.write(f"{self.folder}/{self.count:06}.json", content)
        self.count += 1

    def claim(self, described: Mapping[str, Any], sampler: str) -> None:
        """Makes sure that the events under this name are of one study, and those of its seed of one sampler.

        Raises:
            UserError: if there are such of another, saying what differs.
        """
        self._claim_study(described)
        path = f"{self.folder}.sampler"
        if not self.store.exists(path):
            self.store.write(path, sampler.encode())
            return
        before = self.store.filesystem.cat_file(path).decode()
        if before != sampler:
            raise UserError(
                f"--sampler {sampler}: {self.store.url} holds this search with seed {self.seed} by {before}; give it "
                f"another --sampler-seed, or go on with --sampler {before}"
            )

    def _claim_study(self, described: Mapping[str, Any]) -> None:
        if self.store.exists(self.study):
            try:
                before = json.loads(self.store.filesystem.cat_file(self.study))
            except ValueError:
                before = {}
            # As JSON has it: a tuple is a list.
            now = json.loads(json.dumps(described))
            if differing := sorted(key for key in {*before, *now} if before.get(key) != now.get(key)):
                raise UserError(
                    f"{self.store.url} holds a search of this name that differs in {', '.join(differing)}; "
                    "give this one another --name"
                )
            return
        self.store.write(self.study, json.dumps(described, indent=1, sort_keys=True).encode())


@dataclass(frozen=True)
class Limits:
    """When a search ends.

    Attributes:
        trials: (configuration, rung), those found in storage left out; None: until nothing is left to try.
        hours: of one worker, spent by this search; None: without a limit.
        one_in: of the configurations that finished a rung, one in so many goes on to the next.
    """

    trials: int | None = None
    hours: float | None = None
    one_in: int = 3


@dataclass
class History:
    """What is known of a search.

    Attributes:
        signs: of the objectives; values times these are larger where they are better.
        finished: per rung, values by configuration.
        hours: per trial, what was spent on its artifacts in all.
        spent: hours of one worker that this search has spent itself.
        timeline: (configuration, rung, hours spent by then) in the order in which trials finished.
    """

    rungs: int
    signs: tuple[float, ...]
    proposed: list[Event] = field(default_factory=list)
    finished: list[dict[int, tuple[float, ...]]] = field(default_factory=list)
    hours: dict[tuple[int, int], float] = field(default_factory=dict)
    begun: dict[tuple[int, int], float] = field(default_factory=dict)
    failed: dict[tuple[int, int], str] = field(default_factory=dict)
    refused: set[tuple[int, int]] = field(default_factory=set)
    spent: float = 0.0
    timeline: list[tuple[int, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.finished = self.finished or [{} for _ in range(self.rungs)]

    def add(self, event: Event) -> None:
        """Takes in what happened."""
        trial = event.number, event.rung
        match event.what:
            case "proposed":
                assert event.number == len(self.proposed)
                self.proposed.append(event)
            case "begun":
                # Of one that is begun again after a kill, what was there at first counts.
                self.begun.setdefault(trial, event.hours)
            case "finished":
                self.finished[event.rung][event.number] = event.values
                self.hours[trial] = event.hours
                self.failed.pop(trial, None)
                if trial in self.begun:
                    self.spent += max(0.0, event.hours - self.begun[trial])
                self.timeline.append((*trial, self.spent))
            case "failed" | "refused":
                # What was made before the end is there, and is not counted again by whoever tries again.
                if event.hours > self.begun.get(trial, math.inf):
                    self.spent += event.hours - self.begun[trial]
                    self.begun[trial] = event.hours
                self.failed[trial] = event.reason
                if event.what == "refused":
                    self.refused.add(trial)

    @property
    def trials(self) -> int:
        """How many were begun."""
        return len(self.begun)

    @property
    def open(self) -> list[tuple[int, int]]:
        """Trials that were begun and have not ended."""
        return [trial for trial in self.begun if trial not in self.failed and trial[0] not in self.finished[trial[1]]]

    def point(self, number: int, rung: int) -> tuple[float, ...]:
        """Values of a configuration, larger is better."""
        return tuple(sign * value for sign, value in zip(self.signs, self.finished[rung][number], strict=True))

    def points(self, rung: int) -> dict[int, tuple[float, ...]]:
        """Of all that have finished a rung; what has no value (NaN) is left out."""
        found = {number: self.point(number, rung) for number in self.finished[rung]}
        return {number: point for number, point in found.items() if all(map(math.isfinite, point))}

    @property
    def top(self) -> int:
        """The largest rung at which anybody has a value of every objective; 0 if nobody has any."""
        return max((rung for rung in range(self.rungs) if self.points(rung)), default=0)

    def front(self) -> list[int]:
        """Configurations that no other one dominates, of those that have come farthest."""
        points = self.points(self.top)
        if not points:
            return []
        on_front = non_dominated(np.array(list(points.values())))
        return [number for number, on in zip(points, on_front, strict=True) if on]

    def fate(self, number: int, one_in: int) -> str:
        """Why nothing more was spent on a configuration."""
        reached = max((rung for rung in range(self.rungs) if number in self.finished[rung]), default=-1)
        if (number, reached + 1) in self.failed:
            how = "refused" if (number, reached + 1) in self.refused else "failed"
            return f"{how}: {self.failed[number, reached + 1]}"
        if (number, reached + 1) in self.begun:
            return "under way"
        if reached == self.rungs - 1:
            return "the last rung"
        if reached < 0:
            return "not begun"
        points = self.points(reached)
        if number not in points:
            return f"an objective has no value at rung {reached}"
        best = len(points) // one_in
        if number in leaders(points)[:best]:
            return f"among the best {best} of {len(points)} at rung {reached}; the search ended first"
        return f"not among the best {best} of {len(points)} at rung {reached}"


@dataclass
class Study:
    """A search that goes on: its history, and what comes next.

    Attributes:
        log: where events are written before they take effect; None: nowhere (a replay).
    """

    space: Choosable
    history: History
    rungs: tuple[Rung, ...]
    limits: Limits
    sampler: str
    seed: int
    log: Log | None = None
    waiting: list[tuple[int, int]] = field(default_factory=list)

    def happened(self, event: Event) -> None:
        """Writes an event and takes it in."""
        if self.log is not None:
            self.log.write(event)
        self.history.add(event)

    def resume(self) -> None:
        """Takes in what an earlier process wrote; what it left unfinished comes first."""
        assert self.log is not None
        for event in self.log.read():
            self.history.add(event)
        history = self.history
        started = {number for number, _ in history.begun} | {n for points in history.finished for n in points}
        proposed = [(event.number, 0) for event in history.proposed if event.number not in started]
        failed = [trial for trial in history.failed if trial not in history.refused]
        self.waiting = [*history.open, *proposed, *failed]

    @property
    def over_budget(self) -> bool:
        """Whether nothing more is to be begun."""
        limits, history = self.limits, self.history
        return (limits.trials is not None and history.trials >= limits.trials) or (
            limits.hours is not None and history.spent >= limits.hours
        )

    def next(self) -> tuple[int, int] | None:
        """What is to be done next.

        Returns:
            A configuration's number and a rung; None: nothing now. If nothing is running either, the search is over.
        """
        if self.waiting:
            return self.waiting.pop(0)
        if self.over_budget:
            return None
        history = self.history
        taken = {*history.begun, *history.failed}
        taken |= {(number, rung) for rung, points in enumerate(history.finished) for number in points}
        finished = [history.points(rung) for rung in range(history.rungs)]
        promoted = to_promote(finished, taken, self.limits.one_in)
        return promoted or self._propose()

    def _propose(self) -> tuple[int, int] | None:
        history = self.history
        number = len(history.proposed)
        # Two searches of other seeds have nothing in common; neither have two proposals of one.
        found = propose(
            self.space,
            len(history.signs),
            self.observed(),
            [event.configuration for event in history.proposed],
            self.sampler,
            (self.seed * 1_000_003 + number) % 2**31,
        )
        if found is None:
            return None
        self.happened(
            Event("proposed", number, configuration=found.configuration, source=self.sampler, notes=found.notes)
        )
        return number, 0

    def observed(self) -> list[Observed]:
        """What the sampler learns from: configurations at one rung, the largest that :data:`STARTUP` have finished.

        Rungs are never mixed: what was trained for fewer steps is worse for that alone, and of fewer samples noisier.
        Those that are under way, at whatever rung, are told as such; those that went out earlier are not told.
        """
        history = self.history
        counts = [len(history.points(rung)) for rung in range(history.rungs)]
        rung = max((rung for rung, count in enumerate(counts) if count >= STARTUP), default=counts.index(max(counts)))
        points = history.points(rung)
        open_ones = {number for number, _ in history.open}
        return [
            Observed(event.configuration, points.get(event.number), event.notes)
            for event in history.proposed
            if event.number in points or event.number in open_ones
        ]
