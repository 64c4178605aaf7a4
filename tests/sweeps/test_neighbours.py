"""Trials beside each other: what ends, or is killed, takes nothing from the others."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import psutil

from tests.fixtures.processes import Tracked, processes_called, wait_for
from tests.sweeps.conftest import Run
from tests.sweeps.driver import finish, records, start
from tests.sweeps.shown import unexpected

SHORT, LONG, OTHER = "tiny-clip", "tiny-fare4@tiny-clip", "tiny-tecoa4@tiny-clip"


def folders(storage: Path, candidate: str) -> list[Path]:
    return sorted((storage / "records").glob(f"{candidate.replace('@', '_in_')}-easy*"))


def hold_in_their_attacks(storage: Path, *candidates: str) -> list[psutil.Process]:
    """Stops the processes that drive candidates' attacks, each once one is in flight: nothing more is handed out."""
    held: dict[str, psutil.Process] = {}

    def all_held() -> bool:
        for readable in (candidate.replace("@", "_in_") for candidate in candidates):
            leases = list((storage / "leases").glob(f"records-{readable}-easy*.json"))
            if readable not in held and leases and list(storage.glob(f"records/{readable}-easy*/state-*")):
                held[readable] = psutil.Process(json.loads(leases[0].read_text())["pid"])
                held[readable].suspend()
        return len(held) == len(candidates)

    wait_for(all_held, 800, "all attacks in flight", poll_s=0.01)
    return list(held.values())


def test_a_trial_that_ends_and_one_that_is_killed_leave_the_others_alone(
    unbroken: Run, tmp_path: Path, tracked: Tracked
) -> None:
    storage = tmp_path / "results"
    shutil.copytree(unbroken.storage, storage)
    # One part is missing of the first, so that it ends in the middle of the others' attacks.
    attacked = folders(storage, SHORT)[-1]
    (attacked / "COMPLETE").unlink()
    (attacked / "part-00001.parquet").unlink()
    for folder in folders(storage, LONG):
        shutil.rmtree(folder)
    driver = start(str(storage), tracked, "--encoders", SHORT, LONG, OTHER, "--trials", "3", "--save-every", "0")
    # However busy the machine is: the others are held in the middle of their attacks until the short one has ended.
    held = hold_in_their_attacks(storage, LONG, OTHER)
    wait_for(lambda: (attacked / "COMPLETE").exists(), 800, "the end of the short trial")
    trials = wait_for(lambda: found if len(found := processes_called(tracked, "ImplicitFunc")) == 2 else [], 800, "two")
    trials[0].kill()
    for work in held:
        with contextlib.suppress(psutil.NoSuchProcess):  # the killed trial's goes with it
            work.resume()
    output = finish(driver)

    again = re.findall(r"^\S+ (\S+) +started again \(its process was lost\); kept: (.*)$", output, re.MULTILINE)
    assert len(again) == 1, output
    (hit, kept) = again[0]
    assert hit in (LONG, OTHER)
    assert re.fullmatch(r"its LLaVA and \d+ of 8 parts of its records", kept)
    starts = re.findall(r"^\S+ (\S+) +found in storage: model", output, re.MULTILINE)
    assert sorted(starts) == sorted([SHORT, LONG, OTHER, hit]), "a trial was started again that was not hit"
    assert unexpected(output) == []
    (log,) = re.findall(r"messages of Ray and its workers: (\S+)", output)
    assert "ActorUnschedulableError" not in Path(log).read_text()

    mine, theirs = records(str(storage)), records(unbroken.storage)
    assert {name: table.to_pylist() for name, table in mine.items() if name in theirs} == {
        name: table.to_pylist() for name, table in theirs.items()
    }
