"""Worker 0 saves alone: the others outwait it, and no file of weights is held in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.fixtures.ray_cluster import free_port
from tests.training.save_process import SIZE


def test_a_worker_outwaits_the_saving_and_no_file_is_in_memory_as_a_whole(tmp_path: Path) -> None:
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "DS_ACCELERATOR": "cpu",
    }
    storage = tmp_path / "results"
    command = [sys.executable, "-m", "tests.training.save_process", json.dumps({"storage": str(storage)})]
    group = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    ends = [process.communicate(timeout=240) for process in group]
    assert [process.returncode for process in group] == [0, 0], b"\n".join(errors for _, errors in ends).decode()
    for output, _ in ends:
        assert int(output.decode().split("peak ")[1]) < SIZE / 2
    for name in ("stage1/projectors.safetensors", "stage2/language_model/model.safetensors"):
        assert (storage / "models/m" / name).stat().st_size == SIZE
