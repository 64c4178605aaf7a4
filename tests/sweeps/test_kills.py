"""SIGKILL at any moment, the same command again, the same results."""

import shutil
import signal
from pathlib import Path

from tests.fixtures.processes import Tracked, processes_called, wait_for
from tests.sweeps.conftest import Run
from tests.sweeps.driver import assert_same_results, finish, start

CANDIDATE = "tiny-clip"
ALONE = ("--encoders", CANDIDATE)
"""It trains, and makes all kinds of parts; what ends beside others is in test_neighbours.py."""


def checkpoints(storage: str) -> list[Path]:
    return list(Path(storage).glob("models/*/ray-train/checkpoint*/stage.json"))


def parts(storage: str) -> list[Path]:
    return list(Path(storage).glob("records/*/part-*.parquet"))


def states(storage: str) -> list[Path]:
    return list(Path(storage).glob("records/*/state-*.pt"))


def test_the_driver_is_killed_in_training_and_again_in_the_attack(
    unbroken: Run, tmp_path: Path, tracked: Tracked
) -> None:
    storage = str(tmp_path / "results")
    driver = start(storage, tracked, *ALONE)
    wait_for(lambda: checkpoints(storage), 800, "a training checkpoint")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    tracked.assert_gone()
    assert not list(Path(storage).glob("models/*/COMPLETE"))

    driver = start(storage, tracked, *ALONE)
    wait_for(lambda: parts(storage), 800, "a part of records")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    tracked.assert_gone()
    survived = {path: path.stat().st_mtime_ns for path in parts(storage)}

    finish(start(storage, tracked, *ALONE))
    assert_same_results(storage, unbroken.storage, CANDIDATE)
    assert {path: path.stat().st_mtime_ns for path in survived} == survived, "a finished part was computed again"


def test_a_training_worker_and_an_attack_worker_are_killed(unbroken: Run, tmp_path: Path, tracked: Tracked) -> None:
    storage = str(tmp_path / "results")
    driver = start(storage, tracked, *ALONE, "--save-every", "0")
    wait_for(lambda: checkpoints(storage), 800, "a training checkpoint")
    (trainer,) = processes_called(tracked, "RayTrainWorker")
    trainer.kill()
    # In the middle of a shard's attack: its successor goes on from the state, to the same bits.
    wait_for(lambda: states(storage), 800, "the state of an attack in flight")
    for attacker in processes_called(tracked, "ShardAttacker"):
        attacker.kill()
    finish(driver)
    assert_same_results(storage, unbroken.storage, CANDIDATE)
    assert states(storage) == []


def test_two_drivers_on_one_storage(unbroken: Run, tmp_path: Path, tracked: Tracked) -> None:
    storage = str(tmp_path / "results")
    drivers = [start(storage, tracked, *ALONE) for _ in range(2)]
    outputs = [finish(driver) for driver in drivers]
    assert_same_results(storage, unbroken.storage, CANDIDATE)
    assert any("waiting for" in output for output in outputs), "neither driver saw the other"


def test_an_interrupt_is_told_and_loses_nothing(unbroken: Run, tmp_path: Path, tracked: Tracked) -> None:
    storage = tmp_path / "results"
    shutil.copytree(unbroken.storage, storage)
    for folder in storage.glob("records/*-eps8-*"):
        shutil.rmtree(folder)
    # What is started in the background, as these tests may be, ignores the signal, and so do its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        driver = start(str(storage), tracked, "--encoders", "tiny-clip", "--save-every", "0")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: states(str(storage)), 800, "the state of an attack in flight")
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130, output
    assert output.rstrip().endswith("interrupted; the same command goes on from here")
    assert "Traceback" not in output
    assert "records:" not in output, "it does not end as if it were done"
    tracked.assert_gone()
    assert states(str(storage))
