"""Writes apgd.json: the loss at every step of RobustVLM's own APGD on a small classifier.

    python -m tests.golden.make_apgd PATH_TO_A_CHECKOUT_OF_chs20/RobustVLM

The reference attacks one image at a time; its step size shows in the trajectory, as every point depends on it.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.published_loop import published_code
from tests.attacks.classifier import Classifier, images


def main(checkout: str) -> None:
    reference = published_code(Path(checkout))
    torch.set_default_dtype(torch.float64)  # the reference makes its own tensors
    model, (pixels_BCHW, label_B) = Classifier(), images(6)
    rows = []
    for steps in (1, 3, 10, 33, 100):
        for epsilon in (8.0, 32.0):
            for sample in range(len(label_B)):
                losses: list[float] = []

                def loss(x: torch.Tensor, sample: int = sample, losses: list[float] = losses) -> torch.Tensor:
                    value = F.cross_entropy(model(x), label_B[sample : sample + 1], reduction="none")
                    losses.append(float(value))
                    return value

                best, best_loss, _ = reference.apgd(
                    loss, pixels_BCHW[sample : sample + 1], "linf", epsilon / 255, n_iter=steps, alpha=1.0
                )
                rows.append(
                    {
                        "steps": steps,
                        "epsilon": epsilon,
                        "sample": sample,
                        "losses": losses,
                        "best_loss": float(best_loss),
                        "image_sum": float(best.sum()),
                    }
                )
    Path(__file__).with_name("apgd.json").write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
