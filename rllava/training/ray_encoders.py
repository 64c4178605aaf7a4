"""Trains an encoder under Ray Train: checkpoints through Ray, its weights into the store."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, ScalingConfig

from rllava.data.pairs import Pairs, class_pairs
from rllava.encoders.dual import DualEncoder, load_dual, save_dual, untrained
from rllava.made import place_of
from rllava.pinned import WEIGHTS, MadeBy
from rllava.store import Artifact, Store
from rllava.training.pretraining import PretrainSpec, check_batch, read_state, train_encoder
from rllava.training.ray_trainer import fit
from rllava.training.together import rank, workers
from rllava.weights import digest

STATE = "state.pt"
"""File of a checkpoint."""


@dataclass(frozen=True)
class EncoderJob:
    """What the workers of one training need to know.

    Attributes:
        report_every: optimiser steps between reports to Ray Train: ``step`` of ``steps``, ``loss`` (None at the start).
        threads: of each worker; 0: PyTorch's own choice.
    """

    storage: str
    path: str
    spec: PretrainSpec
    checkpoint_every: int
    report_every: int = 25
    threads: int = 0


def train_encoder_under_ray(
    job: EncoderJob, artifact: Artifact, scaling: ScalingConfig, callbacks: Sequence[Any] = ()
) -> dict[str, Any]:
    """Fills an artifact of kind ``encoders``; a training that was cut off goes on from its last checkpoint.

    Args:
        job: what to do. The artifact of its base is complete.
        artifact: its lease is held by the caller.

    Returns:
        Facts for its marker, the ``sha256`` of the weights among them.
    """
    return fit(train_worker, {"job": job}, job.storage, artifact, scaling, callbacks)


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What every worker runs; worker 0 leaves the weights."""
    job: EncoderJob = config["job"]
    if job.threads:
        torch.set_num_threads(job.threads)
    spec, store = job.spec, Store(job.storage)
    pairs = class_pairs("train")
    check_batch(spec, workers(), len(pairs.class_N))
    dual, base = start(spec, pairs, store)

    state = resumed()
    latest: dict[str, Any] = {"step": 0 if state is None else int(state["step"]), "steps": spec.steps, "loss": None}
    ray.train.report(latest)

    def report(step: int, loss: float) -> None:
        latest.update(step=step, loss=loss)
        if step % job.report_every == 0 or step == spec.steps:
            ray.train.report(dict(latest))

    def save(step: int, state: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="rllava-checkpoint-") as folder:
            checkpoint = None
            if rank() == 0:  # the others hold the same
                (Path(folder) / STATE).write_bytes(state)
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report(dict(latest), checkpoint=checkpoint)

    train_encoder(
        dual, base, pairs, spec, resume=state, checkpoint_every=job.checkpoint_every, save=save, report=report
    )
    if rank() > 0:
        return {}
    with tempfile.TemporaryDirectory(prefix="rllava-encoder-") as folder:
        file = Path(folder) / WEIGHTS
        save_dual(dual, file)
        store.put(f"{job.path}/{WEIGHTS}", file)
        return {"sha256": digest(file)}


def start(spec: PretrainSpec, pairs: Pairs, store: Store) -> tuple[DualEncoder, DualEncoder | None]:
    """What a training starts from: the model, and the frozen base that it is a copy of."""
    if spec.base is None:
        return untrained(spec.name, spec.seed, pairs), None
    with tempfile.TemporaryDirectory(prefix="rllava-encoder-") as folder:
        file = Path(folder) / WEIGHTS
        store.fetch(f"{place_of(MadeBy(spec.base), store).path}/{WEIGHTS}", file)
        dual = load_dual(file, spec.name, pairs)
    return dual, copy.deepcopy(dual).requires_grad_(False)


def resumed() -> dict[str, Any] | None:
    """The state of the last checkpoint, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return read_state((Path(folder) / STATE).read_bytes())
