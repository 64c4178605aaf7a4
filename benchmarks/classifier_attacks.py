"""Our attacks beside the field's on classifiers: robust accuracy, sample by sample, and time, in one run.

    python -m benchmarks.classifier_attacks --autoattack CHECKOUT --peers FOLDER

The classifiers are the embedded dual encoders, one trained on clean images, one adversarially, with a caption per class
(24 classes). The peers are not dependencies: AutoAttack is read from a checkout of fra31/auto-attack, torchattacks and
foolbox from a folder (``pip install --target FOLDER --no-deps torchattacks foolbox eagerpy GitPython gitdb smmap``).
AutoAttack starts from the random points that ours starts from: what differs then is the attack, not the draw.
"""

import importlib
import itertools
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import write_sheet
from rllava.attacks.autoattack import apgd_ce, apgd_t, start_seeds
from rllava.attacks.common import start_point
from rllava.data.pairs import class_pairs
from rllava.encoders.dual import load_dual
from rllava.errors import UserError
from rllava.weights import weights_path
from sweeps.console import run_script


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        autoattack: folder of a checkout of fra31/auto-attack.
        peers: folder with torchattacks and foolbox.
        models: embedded encoders.
        budgets: in 1/255.
        images: how many test images.
        steps: of every attack.
        targets: classes that the targeted attacks try.
        threads: of PyTorch.
        output: Markdown file to write.
    """

    autoattack: Path
    peers: Path
    models: tuple[str, ...] = ("tiny-clip", "tiny-advxl")
    budgets: tuple[float, ...] = (4.0, 8.0, 16.0)
    images: int = 500
    steps: int = 100
    targets: int = 9
    threads: int = 2
    output: Path = Path("benchmarks/sheets/classifier_attacks.md")


class ZeroShot(nn.Module):
    """An image classifier whose classes are captions."""

    def __init__(self, name: str) -> None:
        super().__init__()
        pairs = class_pairs("train")
        self.dual = load_dual(weights_path(f"asset:{name}.safetensors"), name, pairs).requires_grad_(False)
        with torch.no_grad():
            self.text_KE: Tensor = self.dual.text([wordings[0] for wordings in pairs.captions])

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Logits of the classes.

        Args:
            pixels_BCHW: RGB in [0, 1].

        Returns:
            [B, 24].
        """
        return self.dual.logits(pixels_BCHW, self.text_KE)


def from_our_starts(attack: Any, images_BCHW: Tensor, epsilon: float, first_run: int) -> Any:
    """Makes an attack of AutoAttack start where ours does, through its own argument for that.

    Args:
        attack: an ``APGDAttack``.
        images_BCHW: all clean images; no two alike.
        epsilon: budget in 1/255.
        first_run: number of its first run; later ones count on.
    """
    number = {image_CHW.numpy().tobytes(): sample for sample, image_CHW in enumerate(images_BCHW)}
    assert len(number) == len(images_BCHW)
    original, runs = attack.attack_single_run, itertools.count(first_run)

    def attack_single_run(x: Tensor, y: Tensor) -> Any:
        seeds = start_seeds([number[image_CHW.numpy().tobytes()] for image_CHW in x], next(runs), seed=0)
        return original(x, y, x_init=start_point("surface", x, epsilon, seeds))

    attack.attack_single_run = attack_single_run
    return attack


Attack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""``attack(model, images_BCHW, label_B, epsilon) -> adversarial images``."""


def attacks(options: Options) -> dict[str, list[tuple[str, Attack]]]:
    """The attacks, ours first, by what they have in common.

    Raises:
        UserError: if a peer is missing.
    """
    sys.path[:0] = [str(options.autoattack), str(options.peers)]
    try:
        reference, torchattacks, foolbox = map(
            importlib.import_module, ("autoattack.autopgd_base", "torchattacks", "foolbox")
        )
    except ImportError as error:
        raise UserError(f"a peer cannot be imported ({error}); how to get them: --help") from error
    steps, targets = options.steps, options.targets

    def autoattack_ce(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        attack = reference.APGDAttack(model, n_iter=steps, eps=epsilon / 255)
        found: Tensor = from_our_starts(attack, images, epsilon, first_run=0).perturb(images, labels)
        return found

    def autoattack_t(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        attack = reference.APGDAttack_targeted(model, n_iter=steps, eps=epsilon / 255, n_target_classes=targets)
        found: Tensor = from_our_starts(attack, images, epsilon, first_run=1).perturb(images, labels)
        return found

    def foolbox_pgd(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        attack = foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=2.5 / steps)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        found: Tensor = attack(wrapped, images, labels, epsilons=epsilon / 255)[1]
        return found

    return {
        "APGD on the cross-entropy": [
            ("rllava", lambda m, x, y, e: apgd_ce(m, x, y, epsilon=e, steps=steps).images_BCHW),
            ("AutoAttack", autoattack_ce),
            ("torchattacks", lambda m, x, y, e: torchattacks.APGD(m, eps=e / 255, steps=steps)(x, y)),
        ],
        "APGD on the targeted DLR loss": [
            ("rllava", lambda m, x, y, e: apgd_t(m, x, y, epsilon=e, steps=steps, targets=targets).images_BCHW),
            ("AutoAttack", autoattack_t),
        ],
        "PGD (ours: APGD above)": [
            ("torchattacks", lambda m, x, y, e: torchattacks.PGD(m, eps=e / 255, alpha=e / 255 / 4, steps=steps)(x, y)),
            ("foolbox", foolbox_pgd),
        ],
    }


def main(options: Options) -> None:
    """Runs all and writes the sheet.

    Args:
        options: see :class:`Options`.
    """
    torch.set_num_threads(options.threads)
    pairs = class_pairs("test", options.images)
    images_BCHW = torch.from_numpy(pairs.images_NHWC).permute(0, 3, 1, 2).float().contiguous() / 255.0
    label_B = torch.from_numpy(pairs.class_N).long()
    kinds = attacks(options)
    rows = []
    for name in options.models:
        model = ZeroShot(name).eval()
        for epsilon in options.budgets:
            ours: Tensor | None = None
            for kind, sides in kinds.items():
                for side, attack in sides:
                    started = time.perf_counter()
                    adversarial_BCHW = attack(model, images_BCHW, label_B, epsilon).detach()
                    seconds = time.perf_counter() - started
                    excess = float((adversarial_BCHW - images_BCHW).abs().max()) * 255 - epsilon
                    assert excess < 1e-3, f"{side} left its budget by {excess}/255"
                    with torch.no_grad():
                        robust_B = model(adversarial_BCHW).argmax(1) == label_B
                    if side == "rllava":
                        ours = robust_B
                    assert ours is not None
                    only_ours, only_theirs = int((robust_B & ~ours).sum()), int((ours & ~robust_B).sum())
                    row = (name, f"{epsilon:g}", kind, side, f"{100 * robust_B.float().mean():.1f}")
                    rows.append((*row, str(only_ours), str(only_theirs), f"{seconds:.1f}"))
                    print(*rows[-1], sep=" | ", flush=True)
    write_sheet(
        options.output,
        "Attacks on classifiers, side by side",
        f"`python -m benchmarks.classifier_attacks` on {options.images} test images of the embedded data, "
        f"{options.steps} steps, {options.targets} target classes, float32,\n{options.threads} threads "
        f"({platform.machine()}, torch {torch.__version__}). Peers: AutoAttack from its repository, from our "
        "random start points; torchattacks and foolbox from PyPI. A\nsample is broken if its returned image is "
        "misclassified; each row is compared with ours of the last APGD above it.",
        ("model", "ε", "attack", "side", "robust %", "broken by ours alone", "broken by it alone", "s"),
        rows,
    )


if __name__ == "__main__":
    run_script(main, Options, __doc__)
