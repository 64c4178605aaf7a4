"""Work beside a trial: outside its placement group, heard in order, gone with it."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.beside import run_beside
from cluster.connect import ClusterInfo
from tests.fixtures.processes import is_running, wait_for


@contextlib.contextmanager
def trial_of(work: Callable[..., None], *args: Any) -> Iterator[Any]:
    """An actor that runs work beside it, and captures what it starts in its placement group as Ray Tune's trials do."""

    class Trial:
        def run(self) -> tuple[int, list[Any]]:
            return os.getpid(), list(run_beside(work, args))

    group = placement_group([{"CPU": 1}])
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    trial = ray.remote(num_cpus=1, scheduling_strategy=strategy)(Trial).remote()
    try:
        yield trial
    finally:
        ray.kill(trial)
        remove_placement_group(group)


def test_work_is_outside_the_group_and_is_heard_in_order(local_ray: ClusterInfo) -> None:
    def work(tell: Callable[[Any], None], count: int) -> None:
        @ray.remote(num_cpus=1)
        def group_of_a_task(tell: Callable[[Any], None]) -> Any:
            for number in range(count):
                tell(("from elsewhere", number))
            return ray.util.get_current_placement_group()

        tell(("group", ray.util.get_current_placement_group()))
        # The group has one CPU, which the trial holds: a task that were captured could never run.
        tell(("task's group", ray.get(group_of_a_task.remote(tell), timeout=120)))
        for number in range(count):
            tell(("from here", number))

    with trial_of(work, 50) as trial:
        pid, told = ray.get(trial.run.remote(), timeout=180)
    assert pid != os.getpid()
    assert ("group", None) in told
    assert ("task's group", None) in told
    assert [number for name, number in told if name == "from here"] == list(range(50))
    # What others told is in order too; what was still on its way from them at the end of the work may be lost.
    elsewhere = [number for name, number in told if name == "from elsewhere"]
    assert elsewhere == list(range(len(elsewhere)))


def test_an_error_comes_through_and_ends_the_process(local_ray: ClusterInfo) -> None:
    def work(tell: Callable[[Any], None]) -> None:
        tell(os.getpid())
        raise ValueError("broken")

    told = []
    with pytest.raises(ValueError, match="broken"):
        told.extend(run_beside(work))
    (pid,) = told or [None]
    if pid is not None:
        wait_for(lambda: not is_running(pid), 30, "the end of the work's process")


def test_work_dies_with_the_killed_trial(local_ray: ClusterInfo, tmp_path: Path) -> None:
    def work(tell: Callable[[Any], None], folder: str) -> None:
        (Path(folder) / "work").write_text(str(os.getpid()))
        time.sleep(600)

    class Trial:
        def pid(self) -> int:
            return os.getpid()

        def run(self) -> None:
            list(run_beside(work, (), str(tmp_path)))

    trial = ray.remote(num_cpus=1, max_concurrency=2)(Trial).remote()
    running = trial.run.remote()
    noted = tmp_path / "work"
    wait_for(lambda: noted.exists() and noted.read_text(), 120, "the work")
    psutil.Process(ray.get(trial.pid.remote())).kill()
    wait_for(lambda: not is_running(int(noted.read_text())), 30, "the end of the work's process")
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(running)


def test_the_loss_of_the_works_process_is_an_error(local_ray: ClusterInfo) -> None:
    def work(tell: Callable[[Any], None]) -> None:
        tell(os.getpid())
        time.sleep(600)

    heard = run_beside(work)
    psutil.Process(next(heard)).kill()
    with pytest.raises(ray.exceptions.RayActorError):
        next(heard)
