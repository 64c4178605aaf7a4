"""Makes the embedded encoders: contrastive, FARE, TeCoA, and adversarial pre-training from scratch, under Ray Train.

    python sweeps/pretrain_encoders.py --output rllava/assets

Writes NAME.safetensors per encoder (with the heads it was trained with) and ``tiny_encoders.json``, the card that says
what made each: recipe, hash, zero-shot accuracy on the test split, clean and under APGD. An encoder whose recipe in the
card is unchanged is kept, so that a run that was cut off goes on with the next one.
"""

import copy
import dataclasses
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig
from safetensors.torch import load_file, save_file

from cluster.connect import connect
from cluster.machine import usable_cores
from cluster.placement import place
from rllava.data.easy_vqa_source import COLOURS, SHAPES
from rllava.data.pairs import CAPTION_TEMPLATES, caption_of, easy_pairs
from rllava.encoders.pretraining import (
    RECIPES,
    DualEncoder,
    Pairs,
    PretrainSpec,
    train_encoder,
    vocabulary_of,
    zero_shot_accuracy,
)
from rllava.encoders.tiny import TinyConvEncoder, tiny_spec
from rllava.errors import UserError
from rllava.registry import unknown
from rllava.training.ray_trainer import Trainer
from sweeps.console import run_script

TRAINING = {
    "clip": "contrastive image-text training",
    "fare": "FARE fine-tuning (unsupervised, PGD, 4/255) of tiny-clip",
    "tecoa": "TeCoA fine-tuning (supervised, PGD, 4/255) of tiny-clip",
    "advxl": "adversarial pre-training from scratch (PGD, 4/255) with the text tower as label head",
}
MEASURED_AT = (0.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Options:
    """How to make the embedded encoders.

    Attributes:
        output: folder for the weights and their card.
        encoders: which; by default all, in the order of their dependence.
        workers: training workers that share each batch.
        scale: share of every recipe's steps; below 1 for a quick look.
        test_images: how many test images the accuracies are measured on; at most 888.
    """

    output: Path = Path("rllava/assets")
    encoders: tuple[str, ...] = tuple(recipe.name for recipe in RECIPES)
    workers: int = 1
    scale: float = 1.0
    test_images: int = 888


def check(options: Options) -> None:
    """Refuses what would be left out or cut without a word.

    Args:
        options: from the command line.

    Raises:
        UserError: naming the option.
    """
    known = [recipe.name for recipe in RECIPES]
    for name in options.encoders:
        if name not in known:
            raise UserError(f"--encoders: {unknown('recipe', name, known)}")
    there = len(easy_pairs("test")[0])
    if not 1 <= options.test_images <= there:
        raise UserError(f"--test-images {options.test_images}: expected 1 to {there}")
    if not options.scale > 0:
        raise UserError(f"--scale {options.scale:g}: expected a positive share of the recipes' steps")


def load_pairs(split: str, limit: int | None = None) -> Pairs:
    """The embedded images with one class per colour and shape.

    Args:
        split: ``train`` or ``test``.
        limit: how many images; None: all.

    Returns:
        Images, classes, and the wordings of each class.
    """
    images, colours, shapes = easy_pairs(split)
    captions = tuple(
        tuple(caption_of(colour, shape, template) for template in range(len(CAPTION_TEMPLATES)))
        for colour in COLOURS
        for shape in SHAPES
    )
    return Pairs(images[:limit], (colours * len(SHAPES) + shapes)[:limit], captions)


def fresh(spec: PretrainSpec, pairs: Pairs) -> DualEncoder:
    """A dual encoder with random weights.

    Args:
        spec: seed and name.
        pairs: give the vocabulary.

    Returns:
        The model.
    """
    torch.manual_seed(spec.seed)
    return DualEncoder(TinyConvEncoder(tiny_spec(spec.name)), vocabulary_of(pairs))


def to_file(dual: DualEncoder, path: Path) -> str:
    """Writes weights; the encoder's own keys without prefix, the heads under ``head.`` and ``text.``.

    Args:
        dual: to write.
        path: safetensors file.

    Returns:
        Its sha256.
    """
    state = {key.removeprefix("encoder."): value.contiguous() for key, value in dual.state_dict().items()}
    state["text.log_scale"] = state.pop("log_scale")
    save_file(state, path)
    os.chmod(path, 0o644)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def from_file(path: Path, pairs: Pairs) -> DualEncoder:
    """Reads what :func:`to_file` wrote.

    Args:
        path: safetensors file.
        pairs: give the vocabulary.

    Returns:
        The model, in evaluation mode.
    """
    state = load_file(path)
    state["log_scale"] = state.pop("text.log_scale")
    heads = ("head.", "text.", "log_scale")
    dual = fresh(PretrainSpec(path.stem, "clip"), pairs)
    dual.load_state_dict({key if key.startswith(heads) else f"encoder.{key}": value for key, value in state.items()})
    return dual.eval()


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What a Ray Train worker runs: one recipe.

    Args:
        config: ``spec``, ``base`` (path or None), ``output`` path, ``test_images``.

    Returns:
        On worker 0: hash, accuracies, seconds.
    """
    torch.set_num_threads(max(1, usable_cores() // dist.get_world_size()))
    spec: PretrainSpec = config["spec"]
    pairs = load_pairs("train")
    dual, frozen = fresh(spec, pairs), None
    if config["base"] is not None:
        dual = from_file(Path(config["base"]), pairs)
        frozen = copy.deepcopy(dual).requires_grad_(False)
    started = time.time()

    def average(gradient: torch.Tensor) -> None:
        if dist.get_world_size() > 1:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()

    def report(step: int, loss: float) -> None:
        if dist.get_rank() == 0 and (step % 50 == 0 or step == spec.steps - 1):
            print(
                f"{spec.name}: step {step + 1} of {spec.steps}, loss {loss:.3f}, {time.time() - started:.0f} s",
                flush=True,
            )

    train_encoder(
        dual, frozen, pairs, spec, worker=dist.get_rank(), workers=dist.get_world_size(), average=average, report=report
    )
    if dist.get_rank() == 0:
        seconds = round(time.time() - started, 1)
        digest = to_file(dual, Path(config["output"]))
        test = load_pairs("test", config["test_images"])
        accuracy = {f"{epsilon:g}": round(zero_shot_accuracy(dual, test, epsilon), 4) for epsilon in MEASURED_AT}
        return {"sha256": digest, "zero_shot_accuracy": accuracy, "test_images": len(test.class_N), "seconds": seconds}
    return {}


def main(options: Options) -> None:
    """Trains what is missing and writes the card.

    Args:
        options: see :class:`Options`.

    Raises:
        UserError: if an option cannot be meant.
    """
    check(options)
    info = connect(busy_processes=options.workers, verbose=True)
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    card_path = output / "tiny_encoders.json"
    card: dict[str, Any] = json.loads(card_path.read_text()) if card_path.exists() else {"encoders": {}}
    card["measured"] = "zero-shot accuracy over 24 captions on easy-VQA test images, under APGD-10 (L-inf, 1/255)"
    for recipe in RECIPES:
        if recipe.name not in options.encoders:
            continue
        spec = dataclasses.replace(recipe, steps=max(1, round(recipe.steps * options.scale)))
        described = dataclasses.asdict(spec)
        weights = output / f"{spec.name}.safetensors"
        if card["encoders"].get(spec.name, {}).get("recipe") == described and weights.exists():
            print(f"{spec.name}: already made by this recipe")
            continue
        config = {
            "spec": spec,
            "base": str(output / f"{spec.base}.safetensors") if spec.base else None,
            "output": str(weights),
            "test_images": options.test_images,
        }
        trainer = Trainer(
            train_worker,
            train_loop_config=config,
            scaling_config=place(info, options.workers, gpus=0).scaling_config(),
            run_config=RunConfig(name=f"pretrain-{spec.name}", failure_config=FailureConfig(max_failures=2)),
        )
        facts = trainer.fit().return_value
        card["encoders"][spec.name] = {"training": TRAINING[spec.objective], "recipe": described, **facts}
        card_path.write_text(json.dumps(card, indent=1) + "\n")
        print(f"{spec.name}: zero-shot accuracy {facts['zero_shot_accuracy']}, written to {weights}")


if __name__ == "__main__":
    run_script(main, Options, __doc__)
