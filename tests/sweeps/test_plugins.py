"""A sweep whose task, benchmark, condition, protocol, metric and judge all come from another package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.judgements import analyse_judgements, joined
from analysis.loading import load_sweep
from rllava.fingerprint import fingerprint
from rllava.metrics.judges.judge import read_judge
from rllava.metrics.judges.lexicon import Lexicon, words_of
from tests.fixtures.processes import Tracked, processes_called, wait_for
from tests.sweeps.conftest import Run
from tests.sweeps.driver import finish, start
from tests.sweeps.shown import unexpected

SWEEP = "encoder_ablation"
SAMPLES, SHARDS = 8, 2
CONDITIONS = 3  # clean, attacked, mirrored


def judged(storage: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in storage.glob("judgements/*/part-*.parquet")}


@pytest.mark.processes
def test_a_sweep_uses_them_all_and_a_killed_judge_loses_no_part(
    unbroken: Run, packages: Path, tmp_path: Path, tracked: Tracked
) -> None:
    storage, gate, words = tmp_path / "results", tmp_path / "gate", tmp_path / "words.txt"
    gate.mkdir()
    words.write_text("# what is answered to most\nyes\nno\nred\n")
    shutil.copytree(unbroken.storage, storage)
    options = (
        *("--encoders", "tiny-clip", "--benchmarks", "example_yes_no", "--protocol", "twice", "--budgets", "0", "8"),
        *("--conditions", "mirrored"),
        *("--judges", f"lexicon:{words}", f"gate:{gate}", "brevity:1"),
    )
    driver = start(str(storage), tracked, *options, packages=packages)
    wait_for(lambda: driver.poll() is not None or list(gate.glob("at-work-*")), 800, "the judge at work")
    assert driver.poll() is None, finish(driver)
    before = judged(storage)
    assert len(before) == CONDITIONS * SHARDS, "the word list's are written, the gate's are not"
    for worker in processes_called(tracked, "PartJudge"):
        worker.kill()
    (gate / "open").touch()
    output = finish(driver)
    assert unexpected(output) == []
    assert len(list(gate.glob("at-work-*"))) == 2, "the judge was not started again after it was killed"
    assert {path: when for path, when in judged(storage).items() if path in before} == before
    assert len(judged(storage)) == 3 * CONDITIONS * SHARDS

    results = load_sweep(str(storage), SWEEP)
    assert set(results.records["kind"]) == {"clean", "attack", "mirrored"}
    assert set(results.records["condition"]) == {"clean", "twice-v1", "mirrored-v1"}
    assert results.records["error"].isna().all()
    assert len(results.records) == CONDITIONS * SAMPLES
    assert set(results.records["score"]) <= {0.0, 100.0}, "the metric of the package gives nothing else"
    check_judgements(results.judgements, joined(results), words)
    findings = analyse_judgements(results)
    assert findings is not None
    # Of an attacked sample the answer to the 8-bit image as well, of a clean one too; of another condition one.
    assert findings.rates.groupby("judge")["n"].sum().to_list() == [5 * SAMPLES] * 3
    page = (storage / f"reports/{SWEEP}/index.html").read_text()
    assert "What judges say of the answers" in page
    assert "Under other conditions" in page

    made = judged(storage)
    assert "0 with something to do" in finish(start(str(storage), tracked, *options, packages=packages))
    assert judged(storage) == made


def check_judgements(judgements: pd.DataFrame, found: pd.DataFrame, words: Path) -> None:
    """What the workers wrote is what the same judge says here, of each answer by itself."""
    (spec,) = [read_judge(f"lexicon:{words}").pinned()]
    assert isinstance(spec, Lexicon)
    assert spec.entries == ("yes", "no", "red")
    own = found[found["judge"] == spec.label]
    assert len(own) == 5 * SAMPLES
    for row in own.to_dict("records"):
        assert row["flagged"] == any(word in spec.entries for word in words_of(row["text"])), row
        assert row["score"] == sum(word in spec.entries for word in words_of(row["text"]))
    by_gate = judgements[judgements["judge"] == "gate-v1"]
    assert list(by_gate["flagged"]) == [not empty for empty in by_gate["empty"]]


@pytest.mark.processes
def test_its_versions_are_part_of_what_they_make(packages: Path) -> None:
    program = """
import json
from dataclasses import replace
from rllava.conditions.condition import Setting, read_conditions
from rllava.data.benchmarks import BENCHMARKS
from rllava.fingerprint import fingerprint
from rllava.metrics.judges.judge import read_judge
from rllava.metrics.metric import METRICS
from rllava.attacks.protocols import PROTOCOLS

benchmark, condition = BENCHMARKS.get("example_yes_no"), read_conditions("mirrored", Setting())[0]
judge, protocol = read_judge("brevity:3"), PROTOCOLS.get("twice")
things = {"benchmark": benchmark, "condition": condition, "judge": judge, "protocol": protocol}
before = {name: fingerprint(thing) for name, thing in things.items()}

def again(spec):
    return fingerprint(replace(spec))

type(condition).version = type(judge).version = 2
after = {"condition": again(condition), "judge": again(judge)}
after["protocol"] = fingerprint(replace(protocol, version=2))
type(benchmark.task).version = 2
after["benchmark"] = again(replace(benchmark, task=replace(benchmark.task)))
type(benchmark.task).version = 1
METRICS._entries["exact"] = replace(METRICS.get("exact"), version=2)
assert again(replace(benchmark, task=replace(benchmark.task))) not in (before["benchmark"], after["benchmark"])
print(json.dumps([before, after]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{packages}:{Path.cwd()}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = json.loads(ran.stdout)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] == after[name]] == []


@pytest.mark.processes
def test_a_package_that_fails_is_named_in_one_line(tmp_path: Path) -> None:
    told = tmp_path / "broken-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[rllava.metrics]\nmine = no_such_module:add\n")
    ran = subprocess.run(
        [sys.executable, "-c", "from rllava.metrics.metric import METRICS; METRICS.get('exact')"],
        env={"PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert ran.stderr.splitlines()[-1] == (
        "rllava.errors.UserError: package broken: its entry point 'mine' in rllava.metrics fails "
        "(ModuleNotFoundError: No module named 'no_such_module'); mend or uninstall it"
    )


def test_two_of_one_name_are_no_two_judges(tmp_path: Path) -> None:
    for name, text in (("a.txt", "red\n"), ("b.txt", "# the same\nred\n"), ("c.txt", "blue\n")):
        (tmp_path / name).write_text(text)
    a, b, c = (read_judge(f"lexicon:{tmp_path / name}.txt").pinned() for name in "abc")
    assert fingerprint(a) == fingerprint(b) != fingerprint(c)
    assert a.label == b.label != c.label
