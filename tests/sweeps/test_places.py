"""The same script elsewhere: on S3, and as a job on a cluster with token authentication."""

import json
import os
import subprocess
from pathlib import Path

from analysis.loading import load_sweep
from rllava.store import Store
from tests.fixtures.processes import Tracked, processes_called
from tests.fixtures.ray_cluster import RAY, RayHead
from tests.sweeps.conftest import Run
from tests.sweeps.driver import assert_same_results, finish, manifest, records, start
from tests.sweeps.shown import unexpected

OF_THE_JOB = (
    r"\d{4}-\d\d-\d\d [\d:,]+\s+\w+ (cli|job_manager|dashboard_sdk|packaging|working_dir|sdk)\.py:\d+ -- .*",
    r"Running entrypoint for job \w+: .*",
    r"-*",
    r"Job '\w+' (submitted successfully|succeeded)",
    r"Job submission server address: .*",
    r"Next steps",
    r"(Query the logs of the job|Query the status of the job|Request the job to be stopped):",
    r"ray job (logs|status|stop) \w+",
    r"Tailing logs until the job exits \(disable with --no-wait\):",
)
"""What ``ray job submit`` itself prints."""


def test_a_submitted_job_leaves_on_s3_what_a_local_run_leaves_on_disk(
    unbroken: Run, s3_storage: str, ray_head: RayHead
) -> None:
    """... and shows what a local run shows, also when a trial's process is killed on the way."""
    storage = f"{s3_storage}/ablation"
    script = ["python", "sweeps/encoder_ablation.py", "--preset", "smoke", "--storage", storage]
    access = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    command = [RAY, "job", "submit", "--address", ray_head.jobs_url, "--working-dir", "."]
    command += ["--runtime-env-json", json.dumps({"env_vars": access}), "--", *script]
    job = subprocess.Popen(command, env=dict(ray_head.env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert job.stdout is not None
        shown = []
        for line in job.stdout:
            shown.append(line)
            if "evaluating: 8 parts to do" in line and not any("evaluating" in earlier for earlier in shown[:-1]):
                processes_called(ray_head.tracked, "ImplicitFunc")[0].kill()
        output = "".join(shown)
        assert job.wait(timeout=300) == 0, output[-4000:]
    finally:
        job.kill()
        job.wait()
    assert_same_results(storage, unbroken.storage)
    sweep = load_sweep(storage, "encoder_ablation")
    assert len(sweep.records) == 64
    assert f"{storage.removeprefix('s3://')}/reports/encoder_ablation/index.html" in output
    assert output.count("started again (its process was lost); kept: ") == 1
    assert unexpected(output, OF_THE_JOB) == []
    store = Store(storage)
    (log,) = store.filesystem.ls(f"{store.root}/logs", detail=False)
    assert b"Traceback" in store.filesystem.cat_file(log), "the killed trial's error is in no log"


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
