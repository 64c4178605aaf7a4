"""When a sweep's work would run: list scheduling over levels, trials, pools, and nodes that have to come first.

As on Ray: trials of a level run so many at a time, in their order. A trial does one thing after the other; a training
waits until all its workers have room at once, a pool starts with the workers that have, and takes more as nodes come.
What finds no room asks for nodes of a type that has. No torch, no Ray.
"""

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.node_types import Machinery, NodeType

Request = Mapping[str, float]


@dataclass(frozen=True)
class Phase:
    """One thing that a trial does.

    Attributes:
        name: for people.
        request: resources of a worker.
        workers: of a training, exactly so many; of a pool, at most.
        units: seconds of each unit of work. A training has one, which takes all its workers.
        together: whether the workers start and end at once.
        start_s: seconds until a worker takes its first unit: its process, and the model it loads.
    """

    name: str
    request: Request
    workers: int
    units: tuple[float, ...]
    together: bool = False
    start_s: float = 0.0

    @property
    def worker_seconds(self) -> float:
        """Seconds of all workers together, without their start."""
        return sum(self.units) * (self.workers if self.together else 1)


@dataclass(frozen=True)
class Trial:
    """One candidate's work in a level."""

    name: str
    phases: tuple[Phase, ...]


@dataclass(frozen=True)
class Timetable:
    """What comes of it.

    Attributes:
        wall_s: from the first trial's start to the last one's end.
        node_hours: by node type, from asking for a node to giving it back.
        most_nodes: of a type at the same time.
        spans: start and end in seconds of every phase, by (trial, phase).
    """

    wall_s: float
    node_hours: Mapping[str, float]
    most_nodes: Mapping[str, int]
    spans: Mapping[tuple[str, str], tuple[float, float]]


@dataclass
class _Node:
    kind: NodeType
    asked: float
    up: bool
    free: dict[str, float]
    idle_since: float | None = None


@dataclass
class _Job:
    """A phase that runs: whose, what is left, how many workers it has."""

    trial: "_Running"
    phase: Phase
    left: list[float]
    has: int = 0
    started: float | None = None

    @property
    def wants(self) -> int:
        """Workers that it would take now."""
        if self.phase.together:
            return 0 if self.has else self.phase.workers
        return max(0, min(self.phase.workers - self.has, len(self.left)))


@dataclass
class _Running:
    trial: Trial
    waiting: list[Phase] = field(default_factory=list)
    node: _Node | None = None


class NoRoomError(ValueError):
    """A request fits on no node of any type."""


def schedule(
    levels: Sequence[Sequence[Trial]], machinery: Machinery, trial_request: Request, at_a_time: int
) -> Timetable:
    """Runs a plan on a clock.

    Args:
        levels: trials of each, all of which end before the next level begins.
        trial_request: what every trial holds while it runs.
        at_a_time: trials that run at once.

    Raises:
        NoRoomError: if something fits nowhere.
    """
    simulation = _Simulation(machinery, trial_request)
    for level in levels:
        simulation.run(level, max(1, at_a_time))
    return simulation.timetable()


class _Simulation:
    def __init__(self, machinery: Machinery, trial_request: Request) -> None:
        self.machinery, self.trial_request = machinery, trial_request
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.nodes: list[_Node] = []
        self.billed: dict[str, float] = {}
        self.most: dict[str, int] = {}
        self.spans: dict[tuple[str, str], tuple[float, float]] = {}
        self.jobs: list[_Job] = []
        self.entering: list[_Running] = []
        for kind in machinery.kinds:
            for _ in range(kind.there):
                self._add(kind, up=True)

    def run(self, level: Sequence[Trial], at_a_time: int) -> None:
        self.queue, self.running, self.at_a_time = list(level), 0, at_a_time
        self._enter()
        while self.running or self.queue:
            if not self.events:
                raise NoRoomError("nothing is left that could make room")
            self.now, _, act = heapq.heappop(self.events)
            act()

    def timetable(self) -> Timetable:
        for node in self.nodes:
            self._bill(node, self.now)
        hours = {name: seconds / 3600 for name, seconds in self.billed.items()}
        return Timetable(self.now, hours, self.most, self.spans)

    def _at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), act))

    def _enter(self) -> None:
        while self.queue and self.running < self.at_a_time:
            trial = self.queue.pop(0)
            self.running += 1
            self.entering.append(_Running(trial, list(trial.phases)))
        self._place()

    def _place(self) -> None:
        """Gives room to whoever waits, in order, and asks for nodes for the rest."""
        for running in list(self.entering):
            running.node = self._take(self.trial_request)
            if running.node is not None:
                self.entering.remove(running)
                self._next(running)
        self._ask(self.trial_request, len(self.entering))
        for job in list(self.jobs):
            self._staff(job)
        for request, count in self._unmet():
            self._ask(request, count)

    def _unmet(self) -> list[tuple[Request, int]]:
        counts: dict[tuple[tuple[str, float], ...], int] = {}
        for job in self.jobs:
            key = tuple(sorted(job.phase.request.items()))
            counts[key] = counts.get(key, 0) + job.wants
        return [(dict(key), count) for key, count in counts.items() if count]

    def _next(self, running: _Running) -> None:
        if running.waiting:
            phase = running.waiting.pop(0)
            if not phase.units:
                self._next(running)
                return
            self._check_room(phase)
            job = _Job(running, phase, list(phase.units))
            self.jobs.append(job)
            self._staff(job)
            if job.wants:
                self._ask(phase.request, job.wants)
            return
        assert running.node is not None
        self._give(running.node, self.trial_request)
        self.running -= 1
        self._enter()

    def _check_room(self, phase: Phase) -> None:
        """Refuses what would wait for ever."""
        counts = [(kind, min(kind.most, self.machinery.most)) for kind in self.machinery.kinds]
        room = sum(count * kind.room(phase.request) for kind, count in counts)
        needed = phase.workers if phase.together else 1
        if room < needed:
            raise NoRoomError(
                f"{phase.name} needs {needed} workers of {dict(phase.request)} at once, and all node types together "
                f"have room for {room}"
            )

    def _staff(self, job: _Job) -> None:
        if job not in self.jobs:
            return
        if job.phase.together:
            nodes = self._take_all(job.phase.request, job.phase.workers) if not job.has else None
            if nodes:
                job.has, job.started = job.phase.workers, self.now
                unit = job.left.pop(0)
                self._at(self.now + job.phase.start_s + unit, lambda: self._end_together(job, nodes))
            return
        while job.wants:
            node = self._take(job.phase.request)
            if node is None:
                return
            job.has += 1
            job.started = self.now if job.started is None else job.started
            unit = job.left.pop(0)
            self._at(self.now + job.phase.start_s + unit, lambda node=node: self._end_unit(job, node))  # type: ignore[misc]

    def _end_together(self, job: _Job, nodes: list[_Node]) -> None:
        for node in nodes:
            self._give(node, job.phase.request)
        self._done(job)

    def _end_unit(self, job: _Job, node: _Node) -> None:
        if job.left:
            unit = job.left.pop(0)
            self._at(self.now + unit, lambda: self._end_unit(job, node))
            return
        self._give(node, job.phase.request)
        job.has -= 1
        if job.has == 0:
            self._done(job)
        else:
            self._place()

    def _done(self, job: _Job) -> None:
        self.jobs.remove(job)
        self.spans[job.trial.trial.name, job.phase.name] = (job.started or 0.0, self.now)
        self._next(job.trial)
        self._place()

    def _take_all(self, request: Request, count: int) -> list[_Node]:
        """Room for so many at once, or none."""
        room = sum(_times(node.free, request) for node in self.nodes if node.up)
        if room < count:
            return []
        taken = [self._take(request) for _ in range(count)]
        return [node for node in taken if node is not None]

    def _take(self, request: Request) -> _Node | None:
        """A node with room: of those that are busy already, the fullest, so that others can go."""
        fits = [node for node in self.nodes if node.up and _fits(node.free, request)]
        if not fits:
            return None
        node = min(fits, key=lambda node: (sum(node.free.values()), node.asked))
        for name, amount in request.items():
            node.free[name] = node.free.get(name, 0.0) - amount
        node.idle_since = None
        return node

    def _give(self, node: _Node, request: Request) -> None:
        for name, amount in request.items():
            node.free[name] += amount
        if all(node.free[name] >= amount - 1e-6 for name, amount in node.kind.resources.items()):
            node.idle_since = self.now
            if node.kind.idle_s is not None:
                self._at(self.now + node.kind.idle_s, lambda: self._retire(node))

    def _retire(self, node: _Node) -> None:
        idle, limit = node.idle_since, node.kind.idle_s
        if node not in self.nodes or idle is None or limit is None or node.kind.name == self.machinery.head:
            return
        if self.now - idle < limit - 1e-6:
            return  # it has worked since
        if sum(other.kind is node.kind for other in self.nodes) <= node.kind.kept:
            return
        if any(node.kind.room(request) for request, _ in self._unmet()):
            self._at(self.now + limit, lambda: self._retire(node))  # somebody waits for it, and for others beside
            return
        self._bill(node, self.now)
        self.nodes.remove(node)

    def _ask(self, request: Request, count: int) -> None:
        """Starts nodes until those that are on their way have room for so many."""
        if count <= 0:
            return
        kinds = [kind for kind in self.machinery.kinds if kind.room(request)]
        if not kinds and request:
            raise NoRoomError(f"no node type has room for {dict(request)}")
        coming = sum(node.kind.room(request) for node in self.nodes if not node.up)
        for kind in kinds:
            while coming < count and self._may(kind):
                self._add(kind, up=False)
                coming += kind.room(request)

    def _may(self, kind: NodeType) -> bool:
        of = sum(node.kind is kind for node in self.nodes)
        beside = sum(node.kind.name != self.machinery.head for node in self.nodes)
        return of < kind.most and beside < self.machinery.most

    def _add(self, kind: NodeType, up: bool) -> None:
        node = _Node(kind, self.now, up, dict(kind.resources), self.now if up else None)
        self.nodes.append(node)
        self.most[kind.name] = max(self.most.get(kind.name, 0), sum(other.kind is kind for other in self.nodes))
        if not up:
            self._at(self.now + kind.boot_s, lambda: self._came(node))

    def _came(self, node: _Node) -> None:
        node.up = True
        node.idle_since = self.now
        self._place()
        if node.idle_since is not None and node.kind.idle_s is not None:  # whoever wanted it has gone
            self._at(self.now + node.kind.idle_s, lambda: self._retire(node))

    def _bill(self, node: _Node, until: float) -> None:
        self.billed[node.kind.name] = self.billed.get(node.kind.name, 0.0) + until - node.asked


def _fits(free: Mapping[str, float], request: Request) -> bool:
    return all(free.get(name, 0.0) >= amount - 1e-6 for name, amount in request.items() if amount)


def _times(free: Mapping[str, float], request: Request) -> int:
    """How many workers of a request find room."""
    return min((int((free.get(name, 0.0) + 1e-6) // amount) for name, amount in request.items() if amount), default=0)
