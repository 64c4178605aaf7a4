"""Trials beside each other: what ends, or is killed, takes nothing from the others."""

import re
import shutil
from pathlib import Path

from tests.fixtures.processes import Tracked, processes_called, wait_for
from tests.sweeps.conftest import Run
from tests.sweeps.driver import finish, records, start
from tests.sweeps.shown import unexpected

SHORT, LONG, OTHER = "tiny-clip", "tiny-fare4@tiny-clip", "tiny-tecoa4@tiny-clip"


def folders(storage: Path, candidate: str) -> list[Path]:
    return sorted((storage / "records").glob(f"{candidate.replace('@', '_in_')}-easy*"))


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
    wait_for(lambda: (attacked / "COMPLETE").exists(), 800, "the end of the short trial")
    wait_for(lambda: list(storage.glob("records/*/state-*")), 800, "another trial in the middle of its attack")
    # The first trial's process is the oldest. It goes now; of the others one may have ended as well by then.
    trials = wait_for(lambda: found if len(found := processes_called(tracked, "ImplicitFunc")) <= 2 else [], 300, "two")
    max(trials, key=lambda process: process.create_time()).kill()
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
