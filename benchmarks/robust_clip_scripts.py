"""The published training scripts of FARE, TeCoA and Sim-CLIP, run unchanged on our towers; and our loop beside them.

Both start from the same weights, and take the same images and attack starts in the same order.
"""

import contextlib
import copy
import importlib.util
import io
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip_train.scheduler
import torch
from torch import Tensor

from rllava.attacks.inner import inner_pgd, uniform_delta
from rllava.encoders.base import EncoderSpec
from rllava.encoders.whole import WholeTower, build_whole
from rllava.errors import UserError
from rllava.training import tower_training
from rllava.training.tower_objectives import TOWER_OBJECTIVES
from rllava.training.tower_recipe import TowerTraining
from rllava.training.tower_training import TowerProgress, frozen_copy, train_tower

ROBUSTVLM, SIMCLIP = "train/adversarial_training_clip.py", "train/adversarial_training_simclip.py"

REPLACED = (
    "the data sets (`train.datasets`, `train.sam_data`), `load_clip_model`, `unwrap_model` and the class names, none "
    "of which it calls here; `wandb.log`, which gathers the losses; `Tensor.cuda`, which does nothing; "
    "`Tensor.uniform_`, which gives the injected starts; and the prints, which are not shown"
)
"""What of the published code's surroundings is another thing here."""


@dataclass(frozen=True)
class Size:
    """Of a vision transformer of open_clip with random weights."""

    image_size: int = 112
    patch_size: int = 14
    width: int = 256
    layers: int = 6
    head_width: int = 64

    @property
    def spec(self) -> EncoderSpec:
        """Of its encoder; QuickGELU, as OpenAI's."""
        sizes = (self.width, self.layers, self.head_width, self.patch_size)
        names = ("width", "layers", "head_width", "patch_size")
        return EncoderSpec(
            "random", "rllava.encoders.towers.open_clip:build", None, self.image_size, 0, 0, architecture="ViT-L-14",
            arguments=tuple(zip(names, sizes, strict=True)), activation="quick_gelu", layer=-2,
        )  # fmt: skip


SMALL = Size(image_size=28, patch_size=7, width=64, layers=3, head_width=16)
"""Of the tower on which weights are compared."""


@dataclass(frozen=True)
class Case:
    """A training, and the script that it was published in."""

    name: str
    training: TowerTraining
    script: str = ROBUSTVLM


@dataclass(frozen=True)
class Given:
    """What both sides start from: models, images and classes per update, starts per update, texts."""

    tower: WholeTower
    data: list[tuple[Tensor, Tensor]]
    starts: list[Tensor]
    text_KE: Tensor


def given(size: Size, training: TowerTraining, steps: int, dtype: torch.dtype) -> Given:
    """A tower with random weights, and random images, classes, starts and texts."""
    tower = build_whole(size.spec).to(dtype)
    generator = torch.Generator().manual_seed(0)
    shape, classes = (training.batch_size, 3, size.image_size, size.image_size), 10
    data = [
        (torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype),
         torch.randint(classes, (training.batch_size,), generator=generator))
        for _ in range(steps)
    ]  # fmt: skip
    with torch.no_grad():
        width = tower(data[0][0][:1]).shape[1]
    text_KE = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    text_KE = torch.nn.functional.normalize(text_KE, dim=-1).to(dtype)
    seeds = [range(1000 * step, 1000 * step + training.batch_size) for step in range(steps)]
    starts = [uniform_delta(data[0][0], training.attack.epsilon, row) for row in seeds]
    return Given(tower, data, starts, text_KE)


@dataclass
class Trace:
    """Of one side, per update: losses, attacked images, weights behind it, and the time when it was done."""

    losses: list[float] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def note(self, module: torch.nn.Module, keep: bool) -> None:
        """An update is done."""
        self.times.append(time.perf_counter())
        if keep:
            self.weights.append({name: value.detach().clone() for name, value in module.state_dict().items()})


class Published:
    """A published script, imported with stand-ins for its surroundings."""

    def __init__(self, checkout: Path, script: str) -> None:
        self.checkout = checkout
        with self._surroundings():
            self.module = _imported(checkout, script)

    def run(self, case: Case, start: Given, *, first: int = 0, keep: bool = True) -> Trace:
        """Trains a copy of the tower.

        Args:
            first: updates that count as done; from 1 on, no evaluation comes before the next 1000th.
            keep: whether weights and images are.
        """
        from torchvision import transforms  # after rllava, which declares the operators that a build may lack

        trace, training, module = Trace(), case.training, self.module
        starts, pgd = iter(start.starts), module.pgd

        def recorded(**arguments: Any) -> Tensor:
            images_BCHW: Tensor = pgd(**arguments)
            if keep:
                trace.images.append(images_BCHW.detach().clone())
            return images_BCHW

        with tempfile.TemporaryDirectory() as folder, self._surroundings() as wandb:
            arguments = _arguments(training, folder)
            visual = copy.deepcopy(start.tower.tower)
            normalize = transforms.Normalize(start.tower.spec.mean, start.tower.spec.std)
            base = module.ClipVisionModel(copy.deepcopy(start.tower.tower), arguments, normalize)
            model = module.ClipVisionModel(visual, arguments, normalize)
            optimiser = _published_optimiser(visual, training)
            schedule = open_clip_train.scheduler.cosine_lr(
                optimiser, training.learning_rate, training.warmup, training.steps
            )

            def scheduler(step: int) -> None:  # called behind every update
                trace.note(visual, keep)
                schedule(step)

            def injected(noise: Tensor, low: float, high: float) -> Tensor:
                assert (low, high) == (-arguments.eps, arguments.eps)
                return noise.copy_(next(starts))

            wandb.log.side_effect = lambda row: trace.losses.append(row["loss-total"])
            with (
                mock.patch.object(module, "pgd", recorded),
                mock.patch.object(Tensor, "uniform_", injected),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                trace.times.append(time.perf_counter())
                module.train_one_epoch(
                    first, model=model, model_orig=base, dataloader=start.data, dataloader_eval=start.data[:1],
                    optimizer=optimiser, scheduler=scheduler, embedding_text_labels_norm=start.text_KE.T,
                    normalize=normalize, args=arguments, epoch=0,
                )  # fmt: skip
        return trace

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[Any]:
        """What the scripts import beside PyTorch and the code that is compared, and what a CPU has not."""
        wandb = mock.MagicMock()
        packages = {}
        for name in ("train", "vlm_eval", "vlm_eval.attacks"):
            packages[name] = types.ModuleType(name)
            packages[name].__path__ = [str(self.checkout / name.replace(".", "/"))]
        modules = {
            **packages,
            "wandb": wandb,
            "training": types.ModuleType("training"),
            "training.scheduler": open_clip_train.scheduler,
            **{
                name: mock.MagicMock()
                for name in (
                    "train.datasets", "train.sam_data", "CLIP_eval", "CLIP_eval.eval_utils", "open_flamingo",
                    "open_flamingo.eval", "open_flamingo.eval.classification_utils", "open_flamingo.eval.models",
                    "open_flamingo.eval.models.utils",
                )
            },
        }  # fmt: skip
        same: Callable[..., Tensor] = lambda tensor, *_, **__: tensor  # noqa: E731
        with (
            _in_place(modules),
            mock.patch.object(sys, "path", list(sys.path)),
            mock.patch.object(Tensor, "cuda", same),
            mock.patch.object(getattr(self, "module", wandb), "wandb", wandb),
        ):
            yield wandb


@contextlib.contextmanager
def _in_place(modules: dict[str, Any]) -> Iterator[None]:
    """Puts modules in the place of others, and takes them and what was imported below them away again.

    ``mock.patch.dict`` would forget whatever PyTorch imports meanwhile, which cannot be imported twice.
    """
    roots = {name.partition(".")[0] for name in modules}
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in roots}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update(before)


def _imported(checkout: Path, script: str) -> Any:
    path = checkout / script
    if not path.is_file():
        option = "--robustvlm takes the folder of a checkout of chs20/RobustVLM"
        if script == SIMCLIP:
            option = "--simclip takes the folder of a checkout of speedlab-git/SimCLIP"
        raise UserError(f"{path} is not there; {option}")
    spec = importlib.util.spec_from_file_location("published_robust_clip", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _arguments(training: TowerTraining, folder: str) -> Any:
    """The command line of a training."""
    loss = "ce" if TOWER_OBJECTIVES.get(training.objective).needs_text else "l2"
    return types.SimpleNamespace(
        output_normalize=TOWER_OBJECTIVES.get(training.objective).normalised, steps=training.steps, loss=loss,
        inner_loss=loss, attack_loss=loss, loss_clean="l2", clean_weight=training.clean_weight, trades=training.trades,
        attack="pgd", norm="linf", eps=training.attack.epsilon / 255, iterations_adv=training.attack.steps,
        stepsize_adv=training.attack.step_size / 255, log_freq=1, eval_freq=1000, save_checkpoints=False,
        output_dir=folder, total_epochs=1,
    )  # fmt: skip


def _published_optimiser(visual: Any, training: TowerTraining) -> torch.optim.Optimizer:
    """As the script's ``main`` has it."""
    if training.optimiser == "sgd":
        return torch.optim.SGD(
            visual.parameters(), lr=training.learning_rate, momentum=training.momentum,
            weight_decay=training.weight_decay,
        )  # fmt: skip
    return torch.optim.AdamW(visual.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)


def run_ours(case: Case, start: Given, *, keep: bool = True) -> Trace:
    """Trains a copy of the tower by our loop, from the same starts in the same order."""
    trace, tower, attack = Trace(), copy.deepcopy(start.tower), inner_pgd

    def recorded(*arguments: Any) -> Tensor:
        images_BCHW = attack(*arguments)
        if keep:
            trace.images.append(images_BCHW.detach().clone())
        return images_BCHW

    def report(progress: TowerProgress) -> None:
        trace.losses.append(progress.loss)
        trace.note(tower.tower, keep)

    training = replace(case.training, steps=max(len(start.data), 1)) if not keep else case.training
    with mock.patch.object(tower_training, "inner_pgd", recorded):
        trace.times.append(time.perf_counter())
        train_tower(
            tower, frozen_copy(tower), lambda step: iter(start.data[step:]), training, text_KE=start.text_KE,
            starts=lambda step, _: start.starts[step], report=report,
        )  # fmt: skip
    return trace
