"""The published training scripts of FARE, TeCoA and Sim-CLIP beside ours: the same losses, attacked images and weights
from the same model, data order and attack starts; and the time of an update.

    python -m benchmarks.published_robust_clip --robustvlm CHECKOUT --simclip CHECKOUT

The published ``train_one_epoch`` runs unchanged, with the published ``pgd_train.py`` and what that imports, and the
evaluation that it does at its first step. What is replaced is told in the sheet.
"""

import itertools
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import write_sheet
from benchmarks.robust_clip_scripts import (
    REPLACED,
    ROBUSTVLM,
    SIMCLIP,
    SMALL,
    Case,
    Given,
    Published,
    Size,
    Trace,
    given,
    run_ours,
)
from rllava.attacks.inner import InnerPgd
from rllava.training.tower_recipe import TowerTraining
from sweeps.console import run_script


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        robustvlm: folder of a checkout of chs20/RobustVLM.
        simclip: folder of a checkout of speedlab-git/SimCLIP.
        same_steps: updates after which losses and weights are compared.
        size: of the tower on which time is taken.
        batch: images of an update, in both.
        steps: updates for which time is taken.
        repeats: runs of both, in turns; the median counts.
        threads: of PyTorch.
        output: Markdown file to write.
    """

    robustvlm: Path
    simclip: Path
    same_steps: int = 50
    size: Size = field(default_factory=Size)
    batch: int = 8
    steps: int = 3
    repeats: int = 3
    threads: int = 2
    output: Path = Path("benchmarks/sheets/published_robust_clip.md")

    def published(self, case: Case) -> Published:
        """The script of a training."""
        return Published(self.robustvlm if case.script == ROBUSTVLM else self.simclip, case.script)


def cases(options: Options) -> list[Case]:
    """The published trainings at the steps and batch of the comparison, at rates at which weights go a long way."""
    base = TowerTraining(
        "fare", options.same_steps, options.same_steps // 5, options.batch, learning_rate=1e-3, attack=InnerPgd(4.0)
    )
    return [
        Case("FARE", base),
        Case("TeCoA", replace(base, objective="tecoa")),
        Case("Sim-CLIP", replace(base, objective="simclip_as_released", weight_decay=1e-5), SIMCLIP),
        Case("FARE, clean weight 0.5", replace(base, clean_weight=0.5)),
        Case("FARE, TRADES", replace(base, trades=True)),
        Case("TeCoA, SGD", replace(base, objective="tecoa", optimiser="sgd")),
    ]


@dataclass(frozen=True)
class Gap:
    """How far both sides are apart.

    Attributes:
        losses: largest difference of a loss, relative.
        weights: largest difference of a weight behind an update.
        moved: largest way of a weight from its start, in the published training, to compare with.
        tie: update, from 1, in whose attack a step first went the other way; None if in none.
    """

    losses: float
    weights: float
    moved: float
    tie: int | None


def compare(published: Trace, ours: Trace, start: dict[str, Tensor], step_size: float) -> Gap:
    """Both sides up to the first tie.

    Args:
        start: weights before the first update.
        step_size: of the attack, in 1/255.
    """
    assert len(published.losses) == len(ours.losses) == len(published.images) == len(ours.images)
    apart = [float((a - b).abs().max()) > step_size / 510 for a, b in zip(published.images, ours.images, strict=True)]
    tie = apart.index(True) + 1 if any(apart) else None
    until = len(apart) if tie is None else tie - 1
    pairs = list(zip(published.losses, ours.losses, strict=True))[:until]
    states = list(zip(published.weights, ours.weights, strict=True))[:until]
    return Gap(
        max((abs(a - b) / abs(a) for a, b in pairs), default=0.0),
        max((largest(a, b) for a, b in states), default=0.0),
        largest(start, published.weights[-1]),
        tie,
    )


def largest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest difference of two sets of weights."""
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def same_training(case: Case, options: Options, dtype: torch.dtype) -> Gap:
    """Both sides on the small tower."""
    start = given(SMALL, case.training, options.same_steps, dtype)
    theirs = options.published(case).run(case, start)
    ours = run_ours(case, start)
    return compare(theirs, ours, start.tower.tower.state_dict(), case.training.attack.step_size)


@dataclass(frozen=True)
class Speed:
    """Of both sides: floating-point operations and seconds of an update."""

    published_operations: int
    our_operations: int
    published_seconds: list[float]
    our_seconds: list[float]

    @property
    def possible(self) -> float:
        """Ratio that the operations allow."""
        return self.published_operations / self.our_operations

    @property
    def measured(self) -> float:
        """Ratio of the median times."""
        return _median(self.published_seconds) / _median(self.our_seconds)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def speed(case: Case, options: Options) -> Speed:
    """Both sides in turns, on the larger tower in float32; the published side without its evaluation."""
    start = given(options.size, case.training, options.steps, torch.float32)
    one = replace(start, data=start.data[:1], starts=start.starts[:1])
    published = options.published(case)
    case = replace(case, training=replace(case.training, steps=options.steps + 1, warmup=1))
    runs: tuple[Callable[[Given], Trace], ...] = (
        lambda begin: published.run(case, begin, first=1, keep=False),
        lambda begin: run_ours(case, begin, keep=False),
    )
    counts = [operations(lambda run=run: run(one)) for run in runs]  # type: ignore[misc]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.repeats):
        for run, taken in zip(runs, seconds, strict=True):
            times = run(start).times
            taken += [after - before for before, after in itertools.pairwise(times)]
    return Speed(counts[0], counts[1], *seconds)


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call, backward passes too."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _commit(folder: Path) -> str:
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "of unknown commit"


def main(options: Options) -> None:
    """Compares, and writes the sheet."""
    torch.set_num_threads(options.threads)
    rows, ties = [], []
    for case in cases(options):
        exact, rounded = (same_training(case, options, dtype) for dtype in (torch.float64, torch.float32))
        found = speed(case, options)
        ties.append(rounded.tie)
        rows.append((
            case.name, f"{exact.losses:.1g}", f"{exact.weights:.1g}", f"{exact.moved:.2g}",
            f"{rounded.losses:.1g}", f"{rounded.weights:.1g}", str(rounded.tie or "none"),
            f"{_median(found.published_seconds):.2f}", f"{_median(found.our_seconds):.2f}",
            f"{found.measured:.2f}", f"{found.possible:.2f}",
        ))  # fmt: skip
        print(" | ".join(rows[-1]))
    size = options.size
    text = (
        f"`python -m benchmarks.published_robust_clip --robustvlm CHECKOUT --simclip CHECKOUT`: RobustVLM "
        f"{_commit(options.robustvlm)}, SimCLIP {_commit(options.simclip)}, PyTorch {torch.__version__}, open_clip "
        f"{version('open_clip_torch')}, {options.threads} threads. The published `train_one_epoch` runs unchanged, "
        f"with `ClipVisionModel`, `pgd_train.py`, and the evaluation of its first step; replaced are {REPLACED}.\n\n"
        f"Losses and weights: {options.same_steps} updates of {options.batch} images by PGD-10 at 4/255 on a vision "
        f"transformer of {SMALL.layers} blocks of width {SMALL.width}, learning rate 1e-3, from the same weights, "
        "starts and data order; the largest difference at any update, of losses relative, of weights beside the "
        "longest way that one went. In float32 up to the first update in whose attack a step went the other way, a tie "
        "of a sign.\n\n"
        f"Seconds: of an update of {options.batch} images on {size.layers} blocks of width {size.width} at "
        f"{size.image_size} pixels, float32, the median of {options.repeats} runs of {options.steps} updates in turns. "
        "The possible ratio is that of the floating-point operations: the published scripts encode the clean images in "
        "every update, for their log alone where no part of the loss asks for it."
    )
    head = (
        "", "losses, float64", "weights, float64", "way of weights", "losses, float32", "weights, float32",
        "first tie, float32", "published s", "our s", "ratio", "possible",
    )  # fmt: skip
    write_sheet(options.output, "FARE, TeCoA and Sim-CLIP: the published scripts beside ours", text, head, rows)
    print(text)


if __name__ == "__main__":
    run_script(main, Options, __doc__)
