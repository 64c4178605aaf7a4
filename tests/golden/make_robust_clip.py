"""Writes robust_clip.json: losses and weights of the published trainings of FARE, TeCoA and Sim-CLIP on a tiny tower.

    python -m tests.golden.make_robust_clip CHECKOUT_OF_chs20/RobustVLM CHECKOUT_OF_speedlab-git/SimCLIP

The published ``train_one_epoch`` runs as in ``benchmarks/published_robust_clip.py``, in float64.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.robust_clip_scripts import ROBUSTVLM, SIMCLIP, Case, Given, Published, Size
from rllava.attacks.inner import InnerPgd
from rllava.encoders.whole import build_whole
from rllava.training.tower_recipe import TowerTraining
from tests.golden.tiny_weights import tiny_pixels, tiny_state

TINY = Size(image_size=28, patch_size=14, width=32, layers=2, head_width=16)
STEPS, BATCH, CLASSES = 6, 3, 4

_BASE = TowerTraining("fare", STEPS, 3, BATCH, learning_rate=1e-3, attack=InnerPgd(4.0, steps=3))
CASES = [
    Case("fare", _BASE),
    Case("fare, clean weight", replace(_BASE, clean_weight=0.25)),
    Case("fare, trades", replace(_BASE, trades=True, attack=InnerPgd(8.0, steps=2, step_size=3.0))),
    Case("tecoa", replace(_BASE, objective="tecoa", weight_decay=0.1)),
    Case("tecoa, sgd", replace(_BASE, objective="tecoa", optimiser="sgd", warmup=0)),
    Case("simclip", replace(_BASE, objective="simclip_as_released", weight_decay=1e-5), SIMCLIP),
]


def start() -> Given:
    """What both sides start from, the same in any environment."""
    tower = build_whole(TINY.spec)
    shapes = {name: value.shape for name, value in tower.tower.state_dict().items()}
    tower.tower.load_state_dict(tiny_state(shapes))
    pixels = tiny_pixels(STEPS * BATCH, TINY.image_size).double().split(BATCH)
    draws = np.random.RandomState(1)
    starts = [torch.from_numpy(draws.uniform(-4 / 255, 4 / 255, tuple(row.shape))) for row in pixels]
    classes = [torch.from_numpy(draws.randint(CLASSES, size=BATCH)) for _ in pixels]
    text_KE = torch.from_numpy(draws.standard_normal((CLASSES, 768)))
    text_KE = text_KE / text_KE.norm(dim=1, keepdim=True)
    return Given(tower.double(), list(zip(pixels, classes, strict=True)), starts, text_KE)


def numbers(weights: dict[str, Tensor]) -> dict[str, float]:
    """What is kept of the weights behind an update: of each, the mean square."""
    return {name: float(value.square().mean()) for name, value in sorted(weights.items())}


def main(robustvlm: str, simclip: str) -> None:
    found = {}
    for case in CASES:
        checkout = robustvlm if case.script == ROBUSTVLM else simclip
        trace = Published(Path(checkout), case.script).run(case, start())
        images = [float(batch.square().mean()) for batch in trace.images]
        found[case.name] = {"losses": trace.losses, "images": images, "weights": numbers(trace.weights[-1])}
    Path(__file__).with_name("robust_clip.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
