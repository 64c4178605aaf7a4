"""Makes the embedded encoders: contrastive, FARE, TeCoA, and adversarial pre-training from scratch, under Ray Train.

    python sweeps/pretrain_encoders.py --output rllava/assets

Each is a step in the storage: what was cut off is gone on with, and none is made twice. Writes NAME.safetensors per
encoder (with the heads it was trained with) and ``tiny_encoders.json``, the card that says what made each: recipe,
hash, zero-shot accuracy on the test split, clean and under APGD.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import ScalingConfig

from cluster.beside import run_beside
from cluster.connect import connect
from cluster.machine import usable_cores
from cluster.placement import place
from rllava.data.pairs import Pairs, class_pairs, labelled_images
from rllava.encoders.dual import load_dual, zero_shot_accuracy
from rllava.errors import UserError
from rllava.filesystem import remove_folder
from rllava.graph import step_of
from rllava.made import place_of
from rllava.pinned import WEIGHTS, MadeBy
from rllava.registry import unknown
from rllava.steps import Facts, WorkItem, Workshop, ensure
from rllava.store import Artifact, Store
from rllava.training.encoder_objectives import ENCODER_OBJECTIVES
from rllava.training.pretraining import RECIPES, PretrainSpec, check_batch
from rllava.training.ray_encoders import EncoderJob, train_encoder_under_ray
from rllava.training.ray_trainer import RUN_NAME
from sweeps.console import current_log, run_script, say
from sweeps.events import Interrupted, TrainingEncoder
from sweeps.options import absolute
from sweeps.telling import TellTraining

CARD = "tiny_encoders.json"
MEASURED_AT = (0.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Options:
    """How to make the embedded encoders.

    Attributes:
        output: folder for the weights and their card.
        storage: results folder, a path or s3://bucket/prefix, in which they are trained.
        encoders: which; by default all. What they are fine-tuned from is made before.
        workers: training workers that share each batch.
        scale: share of every recipe's steps; below 1 for a quick look.
        checkpoint_every: optimiser steps between checkpoints; a run that is cut off loses at most so many.
        test_images: how many test images the accuracies are measured on; at most 888.
    """

    output: Path = Path("rllava/assets")
    storage: str = "results"
    encoders: tuple[str, ...] = tuple(recipe.name for recipe in RECIPES)
    workers: int = 1
    scale: float = 1.0
    checkpoint_every: int = 50
    test_images: int = 888


def check(options: Options) -> None:
    """Refuses what would be left out or cut without a word.

    Raises:
        UserError: naming the option.
    """
    known = [recipe.name for recipe in RECIPES]
    for name in options.encoders:
        if name not in known:
            raise UserError(f"--encoders: {unknown('recipe', name, known)}")
    there = len(labelled_images("test"))
    if not 1 <= options.test_images <= there:
        raise UserError(f"--test-images {options.test_images}: expected 1 to {there}")
    if not options.scale > 0:
        raise UserError(f"--scale {options.scale:g}: expected a positive share of the recipes' steps")
    if options.checkpoint_every < 1:
        raise UserError(f"--checkpoint-every {options.checkpoint_every}: expected at least 1 step")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: expected at least 1")
    for recipe in RECIPES:
        check_batch(recipe, options.workers, recipe.batch_size)


def main(options: Options) -> None:
    """Trains what is missing and writes the card.

    Raises:
        UserError: if an option cannot be meant.
    """
    check(options)
    store = Store(absolute(options.storage))
    store.prepare()
    info = connect(busy_processes=options.workers, verbose=current_log() is not None)
    if (log := current_log()) is not None:
        log.in_use = True
        say(f"messages of Ray and its workers: {log.path}")
    scaling = place(info, options.workers, gpus=0).scaling_config()
    threads = max(1, usable_cores() // options.workers)

    def train(missing: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Facts]]:
        for task in missing:
            say(f"{task.spec.name}: training, in {task.artifact.path}")
            job = EncoderJob(store.url, task.artifact.path, task.spec, options.checkpoint_every, threads=threads)
            facts: Facts = {}
            for event in run_beside(fill, (job, task.artifact, scaling)):
                facts = event if isinstance(event, dict) else facts
                show(task.spec.name, event)
            yield task, facts
            remove_folder(store.filesystem, f"{task.artifact.path}/{RUN_NAME}")

    specs = [recipe.scaled(options.scale) for recipe in RECIPES if recipe.name in options.encoders]
    try:
        ensure(map(step_of, specs), Workshop(store, {PretrainSpec: train}))
    finally:
        ray.shutdown()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    card = output / CARD
    described: dict[str, Any] = json.loads(card.read_text()) if card.exists() else {"encoders": {}}
    described["measured"] = "zero-shot accuracy over 24 captions on easy-VQA test images, under APGD-10 (L-inf, 1/255)"
    test = class_pairs("test", options.test_images)
    for spec in specs:
        described["encoders"][spec.name] = entry = describe(spec, store, output, test)
        card.write_text(json.dumps(described, indent=1) + "\n")
        say(f"{spec.name}: zero-shot accuracy {entry['zero_shot_accuracy']}, written to {output}")


def fill(tell: Callable[[Any], None], job: EncoderJob, artifact: Artifact, scaling: ScalingConfig) -> None:
    """Trains an encoder, in a process that may start what it needs; tells of progress, and the facts at the end."""
    tell(train_encoder_under_ray(job, artifact, scaling, [TellTraining(tell, TrainingEncoder)]))


def show(name: str, event: Any) -> None:
    """A line of progress."""
    if isinstance(event, TrainingEncoder) and event.loss is not None:
        say(f"{name}: step {event.step} of {event.steps}, loss {event.loss:.3f}")
    elif isinstance(event, TrainingEncoder) and event.step:
        say(f"{name}: goes on from step {event.step}")
    elif isinstance(event, Interrupted):
        say(f"{name}: interrupted ({event.reason}); a new group goes on from the last checkpoint")


def describe(spec: PretrainSpec, store: Store, output: Path, test: Pairs) -> dict[str, Any]:
    """Copies the weights of a finished encoder, and measures them.

    Args:
        test: images that are measured.

    Returns:
        Its entry in the card.
    """
    artifact = place_of(MadeBy(spec), store)
    file = output / f"{spec.name}.safetensors"
    store.fetch(f"{artifact.path}/{WEIGHTS}", file)
    dual = load_dual(file, spec.name, test)
    facts = store.facts(artifact)
    return {
        "training": in_words(spec),
        "recipe": dataclasses.asdict(spec) | {"base": spec.base.name if spec.base else None},
        "sha256": facts["sha256"],
        "zero_shot_accuracy": {f"{size:g}": round(zero_shot_accuracy(dual, test, size), 4) for size in MEASURED_AT},
        "test_images": len(test.class_N),
        "seconds": facts["seconds"],
    }


def in_words(spec: PretrainSpec) -> str:
    """What made an encoder."""
    attacked = f" (PGD-{spec.attack_steps}, {spec.epsilon:g}/255)" if spec.attack_steps else ""
    base = f" of {spec.base.name}" if spec.base else ""
    return f"{ENCODER_OBJECTIVES.get(spec.objective).about}{attacked}{base}"


if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
