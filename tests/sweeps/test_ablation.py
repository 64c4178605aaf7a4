"""The whole thing, small: what an unbroken run leaves, and what a second one does."""

import contextlib
import csv
import json
import os
import shutil
from pathlib import Path

import psutil

from analysis.loading import load_sweep
from rllava.records import KEY, RECORD_SCHEMA
from tests.analysis.notebook_runner import execute_notebook
from tests.fixtures.processes import Tracked, processes_called
from tests.sweeps.conftest import Run
from tests.sweeps.driver import finish, manifest, records, run_on_terminal, start
from tests.sweeps.shown import LIVE, unexpected

CANDIDATES = ["tiny-clip", "tiny-fare4@tiny-clip"]
BENCHMARKS = ["easy_vqa", "easy_captions"]
BUDGETS = [0.0, 8.0]
SAMPLES = 8


def test_records_are_complete_unique_and_within_the_budget(unbroken: Run) -> None:
    rows = [row for table in records(unbroken.storage).values() for row in table.to_pylist()]
    assert len({tuple(row[key] for key in KEY) for row in rows}) == len(rows)
    expected = {(c, b, e) for c in CANDIDATES for b in BENCHMARKS for e in BUDGETS}
    assert {(row["candidate"], row["benchmark"], row["epsilon"]) for row in rows} == expected
    assert len(rows) == len(expected) * SAMPLES
    for row in rows:
        assert row["error"] is None
        assert row["linf"] <= row["epsilon"] + 1e-3
        assert row["score"] <= row["clean_score"]
        if row["steps"]:
            assert row["epsilon"] > 0
            assert row["adversarial_png"]
            assert row["rounds"]
            assert 0 <= row["zero_gradient_share"] < 0.5
    assert all(table.schema.equals(RECORD_SCHEMA) for table in records(unbroken.storage).values())


def test_records_say_which_evaluation_and_which_model_they_are_of(unbroken: Run) -> None:
    results = load_sweep(unbroken.storage)
    columns = ["condition", "kind", "seed", "draw", "model", "evaluation"]
    models = {}
    for entry in results.manifest.records:
        rows = results.records[results.records["part"].str.startswith(f"{entry.path}/")]
        (said,) = rows[columns].drop_duplicates().to_dict("records")
        assert entry.path.endswith(f"-{said['evaluation']}")
        assert said["condition"] == entry.condition == (results.manifest.protocol if entry.epsilon else "clean")
        assert said["kind"] == ("attack" if entry.epsilon else "clean")
        assert (said["seed"], said["draw"]) == (0, 0)
        models.setdefault(entry.candidate, set()).add(said["model"])
    assert [len(found) for found in models.values()] == [1, 1]
    assert models[CANDIDATES[0]] != models[CANDIDATES[1]], "an encoder that was plugged in is another model"


def test_the_same_samples_are_scored_for_every_candidate_and_budget(unbroken: Run) -> None:
    ids = {}
    for table in records(unbroken.storage).values():
        ids.setdefault(table["benchmark"][0].as_py(), set()).add(tuple(table["sample_id"].to_pylist()))
    assert {name: len(lists) for name, lists in ids.items()} == dict.fromkeys(BENCHMARKS, 1)


def test_the_report_has_all_its_files(unbroken: Run) -> None:
    folder = Path(unbroken.storage) / "reports/encoder_ablation"
    page = (folder / "index.html").read_text()
    assert all(name in page for name in CANDIDATES)
    assert "data:image/" in page, "no gallery"
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["candidate", "benchmark", "epsilon", "mean", "low", "high", "n", "seeds", "training_sd"]
    assert len(rows) == len(CANDIDATES) * len(BENCHMARKS) * len(BUDGETS)
    assert all(float(row["low"]) <= float(row["mean"]) <= float(row["high"]) for row in rows)
    assert {int(row["n"]) for row in rows} == {SAMPLES}


def test_the_output_says_what_happened_and_where_results_are(unbroken: Run) -> None:
    lines = unbroken.output.splitlines()
    assert any("tiny-clip" in line and "training stage 2: step 6 of 6" in line for line in lines)
    assert any("evaluating: part" in line for line in lines)
    assert lines[-1] == f"report:  {unbroken.storage}/reports/encoder_ablation/index.html"
    assert not any("\x1b[" in line for line in lines), "escape codes in a log file"
    assert unexpected(unbroken.output) == []


def test_artifacts_say_how_they_were_computed(unbroken: Run) -> None:
    """What only rounds differently names no result, so it stands beside it."""
    run = manifest(unbroken.storage)
    facts = [json.loads((Path(unbroken.storage) / entry["path"] / "COMPLETE").read_text()) for entry in run["records"]]
    assert [entry["run_as"] for entry in facts] == [[{"batch_size": 4, "compiled": False}]] * len(facts)
    model = Path(unbroken.storage) / run["models"][0]["path"]
    assert json.loads((model / "COMPLETE").read_text())["workers"] == 1
    assert json.loads((model / "spec.json").read_text())["stages"][1]["zero_stage"] == 2


def test_the_plugged_encoder_shares_the_trained_llava(unbroken: Run) -> None:
    assert [model["name"] for model in manifest(unbroken.storage)["models"]] == ["tiny-clip"]


def test_a_second_run_computes_nothing(unbroken: Run, tmp_path: Path, tracked: Tracked) -> None:
    storage = tmp_path / "results"
    shutil.copytree(unbroken.storage, storage)
    watched = [storage / folder for folder in ("records", "models", "data")]
    before = {path: os.stat(path).st_mtime_ns for folder in watched for path in folder.rglob("*") if path.is_file()}
    output = finish(start(str(storage), tracked))
    after = {path: os.stat(path).st_mtime_ns for folder in watched for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert "0 with something to do" in output
    assert all(entry["reused"] for entry in manifest(str(storage))["records"])
    assert tracked.alive() == []


def test_a_wider_grid_computes_the_new_cells_alone_and_shows_it_on_a_terminal(
    unbroken: Run, tmp_path: Path, tracked: Tracked
) -> None:
    storage = tmp_path / "results"
    shutil.copytree(unbroken.storage, storage)
    old = {path: path.stat().st_mtime_ns for path in (storage / "records").rglob("*.parquet")}
    killed = []

    def kill_the_trial_once(shown: str) -> None:
        if not killed and "evaluating" in shown:
            # It takes a while to find the trial: its work is held meanwhile, lest both end by themselves.
            lease = next((storage / "leases").glob("records-tiny-clip-*-eps4-*.json"))
            work = psutil.Process(json.loads(lease.read_text())["pid"])
            work.suspend()
            killed.extend(processes_called(tracked, "ImplicitFunc"))
            killed[0].kill()
            with contextlib.suppress(psutil.NoSuchProcess):  # it goes with the trial
                work.resume()

    options = ("--encoders", "tiny-clip", "--budgets", "0", "4", "8")
    few = ("--first-samples", str(SAMPLES // 2))
    shown = run_on_terminal(str(storage), tracked, *options, *few, watch=kill_the_trial_once)
    assert len(killed) == 1
    assert "\x1b[" in shown, "no live table"
    assert "started again (its process was lost); kept: its LLaVA and" in shown
    assert unexpected(shown, LIVE) == []
    assert "done: clean" in shown
    assert {path: path.stat().st_mtime_ns for path in old} == old
    assert _computed(storage) == {4.0}
    assert len(load_sweep(str(storage)).records) == len(BENCHMARKS) * 3 * SAMPLES // 2

    first = {path: path.stat().st_mtime_ns for path in (storage / "records").rglob("*.parquet")}
    assert len(first) == len(old) + len(BENCHMARKS), "more than the first half was computed"
    finish(start(str(storage), tracked, *options))
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert _computed(storage) == {4.0}
    whole = load_sweep(str(storage)).records
    assert len(whole) == len(BENCHMARKS) * 3 * SAMPLES
    assert "0 with something to do" in finish(start(str(storage), tracked, *options, *few))
    assert len(load_sweep(str(storage)).records) == len(whole) / 2


def _computed(storage: Path) -> set[float]:
    return {entry["epsilon"] for entry in manifest(str(storage))["records"] if not entry["reused"]}


def test_strong_starts_from_what_fast_and_the_paper_found_for_every_candidate(
    unbroken: Run, tmp_path: Path, tracked: Tracked
) -> None:
    storage = tmp_path / "results"
    shutil.copytree(unbroken.storage, storage)
    options = (
        "--protocol strong --attack-steps 1 --attack-precision float32 --budgets 0 8 16 --benchmarks easy_captions"
    )
    output = finish(start(str(storage), tracked, *options.split()))
    assert "images that fast_1steps_float32-v1 and paper_ensemble_1steps_float32-v1 found" in output
    rows = [row for table in records(str(storage)).values() for row in table.to_pylist()]
    found = {
        protocol: {
            (row["candidate"], row["epsilon"], row["sample_id"]): row for row in rows if row["condition"] == protocol
        }
        for protocol in ("fast_1steps_float32-v1", "paper_ensemble_1steps_float32-v1", "strong_1steps_float32-v2")
    }
    fast, paper, strong = found.values()
    assert len(fast) == len(paper) == len(strong) == len(CANDIDATES) * 2 * SAMPLES
    clean = [row for row in rows if row["kind"] == "clean" and row["benchmark"] == "easy_captions"]
    assert len(clean) == len(CANDIDATES) * SAMPLES, "the clean answers were there, whatever protocol had asked for them"
    assert all(row["score"] <= min(fast[key]["score"], paper[key]["score"]) for key, row in strong.items())
    replayed = {name for row in strong.values() for name in row["rounds"] if name.startswith("other")}
    assert replayed == {"other0", "other1", "other2", "other3"}
    for (candidate, epsilon, sample_id), row in fast.items():
        if epsilon == 16.0:
            assert row["score"] <= fast[candidate, 8.0, sample_id]["score"], (
                "the smaller budget's image was not replayed"
            )
    assert not list((storage / "records").rglob("state-*"))


def test_the_notebook_runs_on_real_records(unbroken: Run, tmp_path: Path) -> None:
    shutil.copytree(unbroken.storage, tmp_path / "results")
    execute_notebook(str(tmp_path / "results"), "encoder_ablation")
