"""A sweep whose answers an endpoint judges: it goes down in the middle, and nothing is lost."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.judgements import joined
from analysis.loading import load_sweep
from tests.fixtures.endpoint import Endpoint, reply, run_endpoint
from tests.fixtures.processes import Tracked, wait_for
from tests.sweeps.conftest import Run
from tests.sweeps.driver import finish, start
from tests.sweeps.shown import unexpected

KEY = "a-secret-that-must-not-be-seen"


def slowly(n: int) -> tuple[int, Any]:
    time.sleep(0.1)
    return 200, reply("Yes." if n % 2 else "No.")


def parts(storage: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in storage.glob("judgements/*/part-*.parquet")}


def test_an_endpoint_that_goes_down_costs_nothing_but_its_last_part(
    unbroken: Run, tmp_path: Path, tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, file = tmp_path / "results", tmp_path / "judge.toml"
    shutil.copytree(unbroken.storage, storage)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    options = ("--encoders", "tiny-clip", "--benchmarks", "easy_vqa", "--judges", "refusal", f"chat:{file}")

    def described(endpoint: Endpoint) -> None:
        file.write_text(
            f'url = "{endpoint.url}"\nmodel = "m"\nkey = "JUDGE_KEY"\nretries = 1\nat_a_time = 1\n'
            'question = "Is this good: {answer}?"\n'
        )

    with run_endpoint() as endpoint:
        endpoint.script = {"Is this": slowly}
        described(endpoint)
        driver = start(str(storage), tracked, *options)
        # The phrases' parts, and one of the endpoint's.
        wait_for(lambda: driver.poll() is not None or len(parts(storage)) > 4, 800, "its first part")
        port, asked = endpoint.port, len(endpoint.seen)
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode in (1, 2), output
    assert "cannot be reached" in output
    assert "the same command goes on" in output
    assert "Traceback" not in output
    before = parts(storage)
    assert asked > 0

    with run_endpoint(port) as endpoint:
        endpoint.script = {"Is this": slowly}
        output = finish(start(str(storage), tracked, *options))
        assert set(endpoint.keys) == {f"Bearer {KEY}"}
    assert unexpected(output) == []
    assert {path: when for path, when in parts(storage).items() if path in before} == before
    found = joined(load_sweep(str(storage)))
    assert {label.split("-")[0] for label in found["judge"]} == {"refusal", "chat"}
    by_chat = found[found["judge"].str.startswith("chat") & ~found["empty"]]
    assert len(by_chat)
    assert by_chat["error"].isna().all()
    assert by_chat["flagged"].notna().all()
    everything = "".join(path.read_text(errors="replace") for path in storage.rglob("*") if path.is_file())
    assert KEY not in everything + output, "a key stands in a file or on the terminal"
