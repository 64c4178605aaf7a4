"""One of several workers that train encoders by gloo: losses and final weights of every objective, to a file.

python -m tests.training.pretrain_process RANK WORKERS RENDEZVOUS OUTPUT
"""

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from rllava.data.pairs import Pairs
from rllava.encoders.dual import untrained
from rllava.training.pretraining import RECIPES, PretrainSpec, train_encoder

STEPS, BATCH = 3, 8


def small(spec: PretrainSpec) -> PretrainSpec:
    """A recipe with few steps on few images."""
    return dataclasses.replace(spec, steps=STEPS, batch_size=BATCH)


def random_pairs(count: int = 20) -> Pairs:
    """Images of noise with four classes."""
    generator = np.random.default_rng(3)
    images_NHWC = generator.integers(0, 256, size=(count, 64, 64, 3), dtype=np.uint8)
    captions = tuple((f"A {word} thing.", f"There is a {word} thing.") for word in ("red", "blue", "round", "square"))
    return Pairs(images_NHWC, np.arange(count) % len(captions), captions)


def train(
    spec: PretrainSpec, dtype: torch.dtype = torch.float32, **options: object
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and weights as they are at the end."""
    pairs, losses = random_pairs(), []
    dual, base = untrained(spec.name, spec.seed, pairs).to(dtype), None
    if spec.base is not None:
        base = copy.deepcopy(dual).requires_grad_(False).eval()
    train_encoder(dual, base, pairs, spec, report=lambda step, loss: losses.append(loss), **options)  # type: ignore[arg-type]
    return losses, dict(dual.state_dict())


def main() -> None:
    rank, workers, rendezvous, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    found = {spec.objective: train(small(spec), torch.float64) for spec in RECIPES}
    if rank == 0:
        torch.save(found, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
