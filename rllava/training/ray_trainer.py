"""Trains a LLaVA under Ray Train: all stages in one worker group, checkpoints through Ray, results into the store."""

import gc
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD
from ray.experimental.internal_kv import _internal_kv_get
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from rllava.data.ray_dataset import micro_batches
from rllava.data.stream import MicroBatch, Stream
from rllava.encoders import check_together, input_size
from rllava.errors import UserError
from rllava.filesystem import copy_folder
from rllava.made import build_at_hand
from rllava.model.assemble import build_connector, carry_encoders, load_trained_encoders, save_stage
from rllava.model.llava import Connector
from rllava.specs import ModelSpec, Stage
from rllava.store import Artifact, Store
from rllava.training.data_folders import DataFolder
from rllava.training.loop import Progress, checkpoint_workers, train_stage

RUN_NAME = "ray-train"
"""Folder of Ray Train's own state inside an unfinished model artifact."""

COLLECTIVE_TIMEOUT_S = 4 * 3600
"""How long a worker waits for the others in a collective: for one that reads a language model, or writes its share of a
checkpoint, more slowly than the rest. A worker that is gone is noticed by Ray Train, not by this."""

DONE = "DONE"
"""Written last into the folder of a stage that another one follows."""

POLL_S = 2.0
"""Seconds between two looks whether worker 0 has saved."""

REPORTS_EVERY_S = "0.25"
"""How often, in seconds, Ray Train's controller asks for reports. A worker that has another one waits until it does: by
Ray's default of 2 s, a report or a checkpoint costs as much as dozens of steps."""


@dataclass(frozen=True)
class TrainJob:
    """What the workers of one run need to know.

    Attributes:
        report_every: optimiser steps between progress reports.
    """

    storage: str
    path: str
    spec: ModelSpec
    data: tuple[DataFolder, ...]
    checkpoint_every: int
    report_every: int


def _dashboard_answers() -> bool:
    """Whether there is one; where it was not to be started, its address is known all the same."""
    known = (_internal_kv_get(DASHBOARD_ADDRESS, namespace=KV_NAMESPACE_DASHBOARD) or b"").decode()
    host, _, port = known.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


class _NoDatasets(DatasetsCallback):  # type: ignore[misc]  # Ray has no types
    """Hands Ray Data's settings on to the workers, as Ray's does, but starts no actor that would share out datasets."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """As Ray's; nothing for a worker's context."""
        return {}


class Trainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    """Ray Train's own, which takes reports sooner, and lacks two actors.

    One looks after its controller by the dashboard. Without a dashboard, as in a local Ray, it looks for one in vain,
    and every run waits 12 s for it to stop. The other shares out the trainer's datasets: workers that read for
    themselves, as ours do, need no such process.
    """

    def fit(self) -> Any:
        """As Ray's."""
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", REPORTS_EVERY_S)
        return super().fit()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if not self.datasets:
            alone = _NoDatasets(self.train_run_context, self.datasets)
            callbacks = [alone if type(callback) is DatasetsCallback else callback for callback in callbacks]
        if _dashboard_answers():
            return callbacks
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def check_workers(spec: ModelSpec, workers: int) -> None:
    """Refuses a number of workers that cannot share the global batches evenly.

    Raises:
        UserError: naming the batch sizes.
    """
    for number, stage in enumerate(spec.stages, start=1):
        if stage.global_batch % (stage.micro_batch * workers):
            raise UserError(
                f"--workers {workers}: stage {number} has a global batch of {stage.global_batch} in portions of "
                f"{stage.micro_batch}; the number of workers must divide {stage.global_batch // stage.micro_batch} "
                "(more of them: a smaller --micro-batch)"
            )


def train_model(
    job: TrainJob,
    artifact: Artifact,
    scaling: ScalingConfig,
    *,
    callbacks: Sequence[Any] = (),
    max_failures: int = 3,
) -> dict[str, Any]:
    """Trains all stages. A run that was cut off goes on from its last checkpoint.

    Ray Train's own state stays in the folder :data:`RUN_NAME` of the artifact, of no use once the artifact is complete.

    Args:
        artifact: to fill; its lease is held by the caller.
        callbacks: of Ray Train, e.g. one that forwards metrics to Ray Tune.
        max_failures: how often a lost worker group is restarted.

    Returns:
        Facts for the artifact's marker.
    """
    return fit(train_worker, {"job": job}, job.storage, artifact, scaling, callbacks, max_failures)


def fit(
    worker: Callable[[dict[str, Any]], dict[str, Any]],
    config: dict[str, Any],
    storage: str,
    artifact: Artifact,
    scaling: ScalingConfig,
    callbacks: Sequence[Any] = (),
    max_failures: int = 3,
) -> dict[str, Any]:
    """Runs a worker group that fills an artifact; a run that was cut off is gone on with.

    Args:
        worker: what each of them runs.
        artifact: to fill; its lease is held by the caller.
        max_failures: how often a lost worker group is restarted.

    Returns:
        Facts for the artifact's marker: the number of workers, seconds, and what worker 0 returned.
    """
    trainer = Trainer(
        worker,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=scaling,
        run_config=RunConfig(
            name=RUN_NAME,
            storage_path=artifact.path,
            storage_filesystem=Store(storage).arrow_filesystem(),
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),
        ),
    )
    started = time.time()
    result = trainer.fit()
    return {"workers": scaling.num_workers, "seconds": round(time.time() - started, 1), **(result.return_value or {})}


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What every worker of the group runs.

    Args:
        config: ``{"job": TrainJob}``.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    job: TrainJob = config["job"]
    store = Store(job.storage)
    damaged, parameters = 0, 0
    with tempfile.TemporaryDirectory(prefix="rllava-train-") as name:
        scratch, last = Path(name), len(job.spec.stages)
        # What a stage has left is whole if its marker is there; the last one's is the artifact's.
        done = max((n for n in range(1, last) if agreed(store.exists(f"{job.path}/stage{n}/{DONE}"))), default=0)
        for number in range(done + 1, last + 1):
            before = scratch / f"stage{number - 1}" if number > 1 else None
            if before is not None and not before.exists():
                copy_folder(store.filesystem, f"{job.path}/{before.name}", before)
            trained = run_stage(job, number, before)
            damaged, parameters = damaged + trained.damaged, trained.parameters
            if dist.get_rank() == 0:
                folder = scratch / f"stage{number}"
                save_stage(job.spec, number, trained.connector, trained.state, trained.tokenizer, folder)
                if before is not None:
                    carry_encoders(before, folder)
                for file in sorted(folder.rglob("*")):
                    if file.is_file():
                        store.put(f"{job.path}/{file.relative_to(scratch)}", file)
                if number < last:
                    store.write(f"{job.path}/{folder.name}/{DONE}", b"")
            del trained  # its language model makes room for the next stage's
            gc.collect()  # DeepSpeed's engine refers to itself, and would keep it
            # Nobody waits for worker 0 at the end: the run is over when all workers are.
            if number < last:
                wait_for_file(store, f"{job.path}/stage{number}/{DONE}")
    return {"parameters": parameters, "damaged": damaged}


def wait_for_file(store: Store, path: str) -> None:
    """Waits until worker 0 has saved something, however long it takes; were it lost, Ray Train would end this worker.

    Args:
        path: of a file that is written whole, in the storage.
    """
    while not store.exists(path):
        time.sleep(POLL_S)


def agreed(value: bool) -> bool:
    """Worker 0's view of something, on all workers.

    Returns:
        Worker 0's.
    """
    views = [value]
    dist.broadcast_object_list(views, src=0)
    return views[0]


@dataclass(frozen=True)
class Trained:
    """What a stage leaves in a worker.

    Attributes:
        state: full weights of the connector on worker 0; empty elsewhere.
        parameters: of the whole LLaVA, encoders included.
        damaged: images that all workers together could not read since the stage (re)started.
    """

    state: dict[str, torch.Tensor]
    connector: Connector
    tokenizer: Any
    parameters: int
    damaged: int


def run_stage(job: TrainJob, number: int, before: Path | None) -> Trained:
    """Runs one stage in this worker.

    Args:
        number: from 1.
        before: local folder of what the stage before has left; None: there is none.
    """
    stage, store = job.spec.stages[number - 1], Store(job.storage)
    encoders = [build_at_hand(spec, store) for spec in job.spec.encoders]
    check_together(job.spec.encoders, f"model {job.spec.name}")
    # In the stage's precision and onto the device at once: every worker of a machine would hold 7B in its memory.
    connector, tokenizer = build_connector(
        job.spec, getattr(torch, stage.precision), ray.train.torch.get_device(), before
    )
    if before is not None:
        load_trained_encoders(encoders, before)
    parameters = sum(p.numel() for module in (connector, *encoders) for p in module.parameters())
    damaged = 0

    def facts(progress: Progress) -> dict[str, Any]:
        return {
            "stage": number,
            "stages": len(job.spec.stages),
            "step": progress.step,
            "steps": stage.steps,
            "loss": progress.loss,
            "damaged": progress.damaged,
        }

    def report(progress: Progress) -> None:
        nonlocal damaged
        damaged = progress.damaged
        if progress.step % job.report_every == 0 or progress.step == stage.steps:
            ray.train.report(facts(progress))

    def save(write: Callable[[Path], None], progress: Progress) -> None:
        with tempfile.TemporaryDirectory(prefix="rllava-checkpoint-") as folder:
            write(Path(folder))
            (Path(folder) / "stage.json").write_text(json.dumps({"stage": number}))
            ray.train.report(facts(progress), checkpoint=Checkpoint.from_directory(folder))

    with tempfile.TemporaryDirectory(prefix="rllava-resume-") as resume:
        state = train_stage(
            stage,
            encoders,
            connector,
            tokenizer,
            lambda step: stage_batches(job, number, stage, step),
            seed=job.spec.seed * 1000 + number,
            resume=fetch_checkpoint(number, Path(resume)),
            checkpoint_every=job.checkpoint_every,
            save=save,
            report=report,
        )
    total = torch.tensor(damaged, device=ray.train.torch.get_device())
    dist.all_reduce(total)
    return Trained(state, connector, tokenizer, parameters, int(total))


def stage_batches(job: TrainJob, number: int, stage: Stage, first_step: int) -> Iterator[MicroBatch]:
    """This worker's portions of a stage, from a step on.

    Args:
        number: of the stage, from 1.
        first_step: optimiser step to start at.
    """
    folder = job.data[number - 1]
    stream = Stream(
        storage=job.storage,
        folder=folder.path,
        rows=folder.rows,
        rows_per_shard=stage.data.rows_per_shard,
        image_size=input_size(job.spec.encoders),
        global_batch=stage.global_batch,
        micro_batch=stage.micro_batch,
        worker=dist.get_rank(),
        workers=dist.get_world_size(),
        fit=stage.fit,
    )
    return micro_batches(stream, first_step, stage.steps)


def fetch_checkpoint(number: int, folder: Path) -> Path | None:
    """The last checkpoint, if it is of this stage and of as many workers.

    Returns:
        The folder, or None to start the stage from its beginning.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    checkpoint.to_directory(str(folder))
    if json.loads((folder / "stage.json").read_text())["stage"] != number:
        return None
    if (written_by := checkpoint_workers(folder)) != dist.get_world_size():
        # ZeRO's parts belong to their number of workers; the stage is short against losing the run's determinism.
        print(
            f"checkpoint of {written_by} workers, now {dist.get_world_size()}: stage {number} starts anew", flush=True
        )
        return None
    return folder
