"""The same script elsewhere: on S3, and as a job on a cluster with token authentication."""

import json
import os
import subprocess
from pathlib import Path

from analysis.loading import load_sweep
from tests.fixtures.processes import Tracked
from tests.fixtures.ray_cluster import RAY, RayHead
from tests.sweeps.conftest import Run
from tests.sweeps.driver import assert_same_results, finish, manifest, records, start


def test_a_submitted_job_leaves_on_s3_what_a_local_run_leaves_on_disk(
    unbroken: Run, s3_storage: str, ray_head: RayHead
) -> None:
    storage = f"{s3_storage}/ablation"
    script = ["python", "sweeps/encoder_ablation.py", "--preset", "smoke", "--storage", storage]
    access = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    command = [RAY, "job", "submit", "--address", ray_head.jobs_url, "--working-dir", "."]
    command += ["--runtime-env-json", json.dumps({"env_vars": access}), "--", *script]
    done = subprocess.run(command, env=dict(ray_head.env), capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert_same_results(storage, unbroken.storage)
    sweep = load_sweep(storage, "encoder_ablation")
    assert len(sweep.records) == 64
    assert f"{storage.removeprefix('s3://')}/reports/encoder_ablation/index.html" in done.stdout


def test_two_training_workers_share_each_batch(tmp_path: Path, tracked: Tracked) -> None:
    storage = str(tmp_path / "results")
    options = ("--workers", "2", "--encoders", "tiny-clip", "--benchmarks", "easy_vqa", "--budgets", "0", "8")
    output = finish(start(storage, tracked, *options))
    (model,) = manifest(storage)["models"]
    facts = json.loads((Path(storage) / model["path"] / "COMPLETE").read_text())
    assert facts["workers"] == 2
    assert facts["damaged"] == 0
    assert "training stage 2: step 6 of 6" in output
    assert {len(table) for table in records(storage).values()} == {8}
