"""Writes autoattack.json: the loss at every step of AutoAttack's own APGD on a small classifier.

    python -m tests.golden.make_autoattack PATH_TO_A_CHECKOUT_OF_fra31/auto-attack

The batch is the reference's own; start points are given to both sides, as their random numbers differ.
"""

import importlib
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.attacks.classifier import Classifier, images, start_points

CASES = [
    (norm, epsilon, loss, steps)
    for norm, epsilon in (("Linf", 8.0), ("Linf", 32.0), ("L2", 64.0), ("L2", 255.0))
    for loss in ("ce", "dlr-targeted")
    for steps in (1, 10, 50)
]


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    reference = importlib.import_module("autoattack.autopgd_base")
    torch.set_default_dtype(torch.float64)  # the reference makes its own tensors
    model, (pixels_BCHW, label_B) = Classifier(), images(6)
    target_B = (label_B + 1) % 5
    rows = []
    for norm, epsilon, loss, steps in CASES:
        losses: list[list[float]] = []
        kind = reference.APGDAttack_targeted if loss == "dlr-targeted" else reference.APGDAttack

        def observed(x: Tensor, loss: str = loss, losses: list[list[float]] = losses) -> Tensor:
            logits_BK = model(x)
            value_B = (
                F.cross_entropy(logits_BK, label_B, reduction="none")
                if loss == "ce"
                else attack.dlr_loss_targeted(logits_BK, label_B)  # noqa: B023
            )
            losses.append(value_B.tolist())
            return logits_BK

        attack = kind(observed, n_iter=steps, norm=norm, eps=epsilon / 255)
        attack.init_hyperparam(pixels_BCHW)
        attack.y_target = target_B
        start_BCHW = start_points(pixels_BCHW, epsilon, "linf" if norm == "Linf" else "l2")
        best_BCHW, right_B, best_loss_B, wrong_BCHW = attack.attack_single_run(pixels_BCHW, label_B, x_init=start_BCHW)
        rows.append(
            {
                "norm": norm,
                "epsilon": epsilon,
                "loss": loss,
                "steps": steps,
                "losses": losses,
                "best_loss": best_loss_B.tolist(),
                "best_sum": best_BCHW.detach().flatten(1).sum(1).tolist(),
                "solved": (~right_B.bool()).tolist(),
                "solved_sum": wrong_BCHW.detach().flatten(1).sum(1).tolist(),
            }
        )
    Path(__file__).with_name("autoattack.json").write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
