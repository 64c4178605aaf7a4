"""One worker of a training whose stages take no time and whose saving does: started once per rank by the tests.

RANK=0 WORLD_SIZE=2 ... python -m tests.training.save_process '{"storage": "/tmp/results", ...}'
"""

import datetime
import json
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rllava.encoders import encoder_spec
from rllava.recipes import PRESETS
from rllava.training import ray_trainer
from rllava.training.data_folders import DataFolder

TIMEOUT_S = 5
SAVING_S = 8
SIZE = 64 << 20


def slow(folder: Path, name: str) -> None:
    """Leaves a large file, after longer than a collective waits."""
    time.sleep(SAVING_S)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(bytes(1 << 20))


def main() -> None:
    options = json.loads(sys.argv[1])
    dist.init_process_group("gloo")
    dist.barrier()  # both are there: from here on, nobody is late but by saving
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=TIMEOUT_S))
    done: Any = ray_trainer.Trained({}, None, None, parameters=1, damaged=0)  # type: ignore[arg-type]
    patched: Any = ray_trainer
    patched.run_stage = lambda *_: done
    names = ("projectors.safetensors", "language_model/model.safetensors")
    patched.save_stage = lambda _, number, *parts: slow(parts[-1], names[number - 1])
    patched.POLL_S = 0.2
    job = ray_trainer.TrainJob(
        storage=options["storage"],
        path=f"{options['storage']}/models/m",
        spec=replace(PRESETS.get("smoke").model, encoders=(encoder_spec("tiny-clip"),)),
        data=(DataFolder("one", 1), DataFolder("two", 1)),
        checkpoint_every=1,
        report_every=1,
    )
    tracemalloc.start()
    ray_trainer.train_worker({"job": job})
    _, peak = tracemalloc.get_traced_memory()
    print(f"peak {peak}", flush=True)


if __name__ == "__main__":
    main()
