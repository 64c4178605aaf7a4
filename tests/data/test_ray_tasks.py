"""Shards written by Ray Data's tasks: the same bytes as one process writes, also when their driver is killed."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.connect import ClusterInfo
from rllava.data.instructions import INSTRUCTION_SOURCES, build_instructions, list_data
from rllava.data.ray_dataset import in_ray_tasks
from rllava.data.shards import build_shards
from rllava.errors import UserError
from tests.data.build_process import ROWS, SPEC, register
from tests.fixtures.processes import Tracked, wait_for


@pytest.fixture
def expected(local: Any, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """Content of the files that one process writes."""
    register(0.0)
    build_instructions(SPEC, local, str(tmp_path / "expected"))
    yield files(tmp_path / "expected")
    INSTRUCTION_SOURCES._entries.pop("slow")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("at_a_time", [1, 4])
@pytest.mark.usefixtures("local_ray")
def test_tasks_write_the_bytes_of_one_process(
    at_a_time: int, expected: dict[str, bytes], local: Any, folder: str
) -> None:
    done: list[tuple[int, int]] = []
    tasks = in_ray_tasks({"num_cpus": 1}, at_a_time)
    build_instructions(SPEC, local, folder, tasks, lambda *counts: done.append(counts))
    assert files(Path(folder)) == expected
    assert done == [(number, 20) for number in range(1, 21)]


def test_a_users_mistake_in_a_task_is_one_line(
    local_ray: ClusterInfo, expected: dict[str, bytes], local: Any, folder: str
) -> None:
    from dataclasses import replace

    assert local_ray.is_local
    assert expected
    gone = replace(list_data(SPEC), witness=f"{folder}/gone.jpg")
    with pytest.raises(UserError, match=r"gone.jpg is not on .*a folder that all machines share") as caught:
        build_shards(gone, local, folder, in_ray_tasks({"num_cpus": 1}))
    assert "\n" not in str(caught.value)


def test_the_driver_is_killed_in_the_middle_and_the_same_command_goes_on(
    expected: dict[str, bytes], tmp_path: Path, tracked: Tracked
) -> None:
    folder = tmp_path / "results"
    command = [sys.executable, "-m", "tests.data.build_process", str(folder)]

    def shards() -> list[Path]:
        return sorted(folder.glob("part-*.parquet"))

    driver = subprocess.Popen(command, env=tracked.env, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(shards()) >= 3, 800, "some shards", poll_s=0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    tracked.assert_gone()
    survived = {path: path.stat().st_mtime_ns for path in shards()}
    assert 3 <= len(survived) < ROWS / SPEC.rows_per_shard

    subprocess.run(command, env=tracked.env, check=True, timeout=240, stdout=subprocess.DEVNULL)
    assert files(folder) == expected
    assert {path: path.stat().st_mtime_ns for path in survived} == survived, "a whole shard was built again"
