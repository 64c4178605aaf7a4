"""Runs a trial's work beside the trial: in a process of its own, outside the placement group that Ray Tune made for it.

Tune captures whatever a trial starts in the trial's placement group, which is removed when the trial ends. So the
trial itself only waits, here, for an actor of no CPUs on its own node that belongs to no group: from there Ray Train
and Ray Data start, and it dies with the trial's process.
"""

import queue
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

HEARD_EVERY_S = 1.0
"""How long the waiting process asks for news at a time; news are passed on at once."""


class Tell:
    """Sends news to the process that waits; goes along to other processes, such as Ray Train's controller.

    Args:
        work: the actor whose waiting process is told.
        here: where the actor's own process leaves news.
    """

    def __init__(self, work: Any, here: "queue.SimpleQueue[Any] | None" = None) -> None:
        self.work = work
        self.here = here

    def __call__(self, news: Any) -> None:
        """Tells something; never waits."""
        if self.here is not None:
            self.here.put(news)
        else:
            self.work.tell.remote(news)

    def __reduce__(self) -> tuple[type["Tell"], tuple[Any]]:
        return (Tell, (self.work,))


class _Work:
    """Runs one function; its methods are served side by side."""

    def __init__(self) -> None:
        self.news: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @ray.method(concurrency_group="telling")  # type: ignore[untyped-decorator]
    def tell(self, news: Any) -> None:
        self.news.put(news)

    @ray.method(concurrency_group="listening")  # type: ignore[untyped-decorator]
    def heard(self, timeout_s: float) -> list[Any]:
        """What was told since the last call; waits for the first."""
        found = []
        try:
            found.append(self.news.get(timeout=timeout_s))
            while True:
                found.append(self.news.get_nowait())
        except queue.Empty:
            return found

    def run(self, function: Callable[..., None], arguments: tuple[Any, ...], first: tuple[Any, ...]) -> None:
        function(Tell(ray.get_runtime_context().current_actor, self.news), *first, *arguments)


def run_beside(function: Any, arguments: Any = (), *first: Any) -> Iterator[Any]:
    """Runs ``function(tell, *first, *arguments)`` in a process of its own on this node, outside this placement group.

    It ends when this process does, and when the iterator is closed.

    Args:
        function: reports through its first argument, a :class:`Tell`, which it may hand to others. It and its arguments
            may be references to Ray's object store, which are not opened here.

    Yields:
        What it told, in the order of each teller.

    Raises:
        Exception: what the function raised, or Ray's error if its process was lost.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here, concurrency_groups={"telling": 1, "listening": 1})(_Work)
    work = actor.remote()
    try:
        running = work.run.remote(function, arguments, first)
        done = False
        while not done:
            done = bool(ray.wait([running], timeout=0)[0])  # asked first: all news of a finished one are there
            yield from ray.get(work.heard.remote(0.0 if done else HEARD_EVERY_S))
        ray.get(running)
    finally:
        ray.kill(work)
