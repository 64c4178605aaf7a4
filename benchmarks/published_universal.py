"""VisualAdv's optimiser as published beside ours: the same image from the same start and draws, the same loss and
gradient wherever its own goes, and the time of a step.

    python -m benchmarks.published_universal --visualadv CHECKOUT

The published file runs unchanged on our model through a wrapper. What it needs of its own package and for drawing is
replaced, ``cuda()`` and ``half()`` do nothing, and its start and draws are those that ours took. The ratio that is
possible comes from counting the floating-point operations of a forward pass on both sides (with frozen weights, the
backward pass takes about as many again): the published code encodes image and prompt once per target, ours once.
"""

import contextlib
import importlib.util
import io
import random
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import write_sheet
from benchmarks.random_llava import Size, parameters, random_llava
from rllava.attacks.common import PIXEL
from rllava.attacks.universal import mean_and_gradient
from rllava.data.images import CLIP_MEAN
from rllava.data.manners import rude_corpus
from rllava.encoders.base import CLIP_STD
from rllava.errors import UserError
from rllava.evaluation.universal_image import Attempt
from rllava.evaluation.victim import Victim
from rllava.image_spec import ImageSpec
from rllava.model.conversation import IGNORE, Tokens
from rllava.universal_spec import EASY_VQA, Corpus, Making, Picture, Recipe
from sweeps.console import run_script

CODE = "llava_llama_2_utils/visual_attacker.py"

GOAL = 0.8
"""Share of the possible ratio that ours shall reach."""


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        visualadv: folder of a checkout of Unispac/Visual-Adversarial-Examples-Jailbreak-Large-Language-Models.
        size: of the model with random weights: 576 visual tokens, 100M parameters.
        epsilon: in 1/255.
        steps: for which time is taken, a multiple of 100; published and ours take one more.
        repeats: runs of both, in turns; the median counts.
        same_steps: of the comparison of images in float64, and of the points compared in float32, on a small model.
        threads: of PyTorch.
        output: Markdown file to write.
    """

    visualadv: Path
    size: Size = field(default_factory=lambda: Size(image_size=384))
    epsilon: float = 32.0
    steps: int = 3
    repeats: int = 3
    same_steps: int = 200
    threads: int = 2
    output: Path = Path("benchmarks/sheets/published_universal.md")


SMALL = Size(image_size=32, patch=8, tower_width=64, width=64, layers=2, vocabulary=2000)
"""Of the model on which images are compared in float64."""


class Wrapped(torch.nn.Module):
    """Our model with the signature that the published code calls: of normalised images, the mean over all labelled
    tokens of the batch."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__()
        self.llava = attempt.llava

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, return_dict: bool, labels: Tensor, images: Tensor
    ) -> Any:
        kept = attention_mask.sum(1).tolist()
        rows = zip(input_ids.tolist(), labels.tolist(), kept, strict=True)
        tokens = [Tokens(tuple(ids[:count]), tuple(labelled[:count])) for ids, labelled, count in rows]
        pixels_BCHW = images.to(next(self.llava.parameters()).dtype) * _channels(images, CLIP_STD)
        pixels_BCHW = pixels_BCHW + _channels(images, CLIP_MEAN)
        loss_B, count_B = self.llava.connector(self.llava.features(pixels_BCHW), tokens, max_length=1 << 30)
        return types.SimpleNamespace(loss=loss_B.sum() / count_B.sum())


def _normalised(images: Tensor) -> Tensor:
    return (images - _channels(images, CLIP_MEAN)) / _channels(images, CLIP_STD)


def _channels(images: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=images.dtype)[None, :, None, None]


@dataclass
class Point:
    """Of the published side: the normalised image, the drawn targets, the loss, and its gradient by that image."""

    image_1CHW: Tensor
    targets: list[str]
    loss: float
    gradient_1CHW: Tensor | None = None


class Published:
    """The published attack on our model.

    Args:
        checkout: see :class:`Options`.
    """

    def __init__(self, checkout: Path, attempt: Attempt) -> None:
        self.attempt, self.by_text = attempt, dict(zip(attempt.making.corpus.targets, attempt.targets, strict=True))
        with self._stand_ins():
            self.module = published_code(checkout)

    def run(self, start_CHW: Tensor, draws: Sequence[Sequence[int]], steps: int) -> Tensor:
        """Its last image.

        Args:
            start_CHW: first point.
            draws: per step, which targets.
            steps: a multiple of 100; one more is taken.
        """
        attempt, epsilon = self.attempt, self.attempt.making.epsilon * PIXEL
        texts = attempt.making.corpus.targets
        drawn = iter([[texts[index] for index in step] for step in draws])
        clean_1CHW = attempt.clean_CHW[None]
        noise_1CHW = (start_CHW[None] - clean_1CHW + epsilon) / (2 * epsilon)
        saved: list[Tensor] = []
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            self._stand_ins(),
            mock.patch.object(random, "sample", side_effect=drawn),
            mock.patch.object(torch, "rand_like", return_value=noise_1CHW.clone()),
            mock.patch.object(self.module, "save_image", lambda image, path: saved.append(image)),
        ):
            self._attacker(folder).attack_constrained(
                None, _normalised(clean_1CHW), batch_size=len(draws[0]), num_iter=steps, alpha=PIXEL, epsilon=epsilon
            )
        return saved[-1]

    def loss(self, image_CHW: Tensor, drawn: Sequence[int]) -> Tensor:
        """What it minimises, of some targets."""
        texts = [self.attempt.making.corpus.targets[index] for index in drawn]
        with self._stand_ins():
            found: Tensor = self._attacker("").attack_loss(self.prompt(), _normalised(image_CHW[None]), texts)
        return found

    @contextlib.contextmanager
    def watched(self) -> Iterator[list["Point"]]:
        """Gathers every point at which it takes a gradient."""
        found: list[Point] = []
        attack_loss = self.module.Attacker.attack_loss

        def watching(attacker: Any, prompts: Any, images: Tensor, targets: Sequence[str]) -> Tensor:
            loss: Tensor = attack_loss(attacker, prompts, images, targets)
            if images.requires_grad:
                point = Point(images.detach(), list(targets), float(loss.detach()))
                images.register_hook(lambda gradient: setattr(point, "gradient_1CHW", gradient.detach()))  # type: ignore[no-untyped-call]
                found.append(point)
            return loss

        with mock.patch.object(self.module.Attacker, "attack_loss", watching):
            yield found

    def _attacker(self, folder: str) -> Any:
        arguments = types.SimpleNamespace(save_dir=folder)
        texts = list(self.attempt.making.corpus.targets)
        return self.module.Attacker(arguments, Wrapped(self.attempt), self._tokenize, texts, device="cpu")

    def _tokenize(self, targets: Sequence[str]) -> Any:
        begin = self.attempt.llava.tokenizer.bos_token_id
        rows = [[label for label in self.by_text[text].labels if label != IGNORE] for text in targets]
        return types.SimpleNamespace(input_ids=[[begin, *row] for row in rows])

    def prompt(self) -> Any:
        """The ids before a target, as the published code holds them."""
        first = self.attempt.targets[0]
        length = next(index for index, label in enumerate(first.labels) if label != IGNORE)
        ids_1T = torch.tensor([list(first.ids[:length])])
        return types.SimpleNamespace(context_length=[length], input_ids=[ids_1T])

    @contextlib.contextmanager
    def _stand_ins(self) -> Iterator[None]:
        """What the file imports of its own package and for drawing, and what a CPU has not."""
        own = types.ModuleType("llava_llama_2_utils")
        own.prompt_wrapper = types.SimpleNamespace(Prompt=lambda *_, **__: self.prompt())  # type: ignore[attr-defined]
        silent = types.SimpleNamespace(generate=lambda *_: "")
        own.generator = types.SimpleNamespace(Generator=lambda **_: silent)  # type: ignore[attr-defined]
        drawing = {
            name: mock.MagicMock() for name in ("matplotlib", "matplotlib.pyplot", "matplotlib.widgets", "seaborn")
        }
        pictures = mock.MagicMock()
        same: Callable[..., Tensor] = lambda tensor, *_, **__: tensor  # noqa: E731
        modules = {"llava_llama_2_utils": own, "torchvision": pictures, "torchvision.utils": pictures, **drawing}
        # Its constants are float32 otherwise, which would be seen in float64.
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.attempt.clean_CHW.dtype)
        try:
            with (
                mock.patch.dict(sys.modules, modules),
                mock.patch.object(Tensor, "cuda", same),
                mock.patch.object(Tensor, "half", same),
            ):
                yield
        finally:
            torch.set_default_dtype(before)


def published_code(checkout: Path) -> Any:
    """Imports the published attack.

    Raises:
        UserError: if its code is not there.
    """
    spec = importlib.util.spec_from_file_location("published_universal", checkout / CODE)
    if spec is None or spec.loader is None or not (checkout / CODE).is_file():
        raise UserError(
            f"{checkout / CODE} is not there; --visualadv takes the folder of a checkout of "
            "Unispac/Visual-Adversarial-Examples-Jailbreak-Large-Language-Models"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attempt_on(size: Size, options: Options, steps: int, dtype: torch.dtype) -> Attempt:
    """Our attack on a LLaVA with random weights."""
    llava, spec = random_llava(size)
    recipe = Recipe("visualadv", steps=steps + 1)
    making = Making(recipe, Corpus("easy_rude", rude_corpus()), options.epsilon, Picture(f"{EASY_VQA}train-0000"))
    attempt = Attempt(Victim(llava, torch.device("cpu")), ImageSpec(spec, spec.encoders, making))
    attempt.llava.to(dtype)
    attempt.clean_CHW = attempt.clean_CHW.to(dtype)
    return attempt


@dataclass(frozen=True)
class Ours:
    """What our attack went through: its first point, its draws, its last image."""

    start_CHW: Tensor
    draws: list[list[int]]
    image_CHW: Tensor


def run_ours(attempt: Attempt) -> Ours:
    """All steps of our attack."""
    attack, draws, points = attempt.attack(), [], []
    loss = attack._loss

    def watched(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
        draws.append(index_N.tolist())
        points.append(image_1CHW.detach()[0])
        return loss(image_1CHW, index_N)

    attack._loss = watched
    while not attack.done:
        attack.step()
    return Ours(points[0], draws, attack.result().image_CHW)


def same_image(options: Options) -> float:
    """Largest difference of a pixel between both sides' last images, in 1/255, in float64 on a small model."""
    attempt = attempt_on(SMALL, options, options.same_steps, torch.float64)
    ours = run_ours(attempt)
    theirs_CHW = Published(options.visualadv, attempt).run(ours.start_CHW, ours.draws, options.same_steps)
    return float((theirs_CHW - ours.image_CHW).abs().max()) / PIXEL


@dataclass(frozen=True)
class Gaps:
    """How far both sides are apart at the points of the published trajectory, at the worst of them.

    Attributes:
        loss: relative.
        gradient: norm of the difference over the norm of the published one.
        signs: share of the entries whose sign differs.
    """

    points: int
    loss: float
    gradient: float
    signs: float


def same_points(options: Options) -> Gaps:
    """Our loss and gradient at every point at which the published side took its own, in float32 on a small model."""
    attempt = attempt_on(SMALL, options, options.same_steps, torch.float32)
    published, ours = Published(options.visualadv, attempt), run_ours(attempt)
    with published.watched() as points:
        published.run(ours.start_CHW, ours.draws, options.same_steps)
    numbers = {text: index for index, text in enumerate(attempt.making.corpus.targets)}
    weight_M = torch.tensor(attempt.weights)
    gaps = []
    for point in points:
        assert point.gradient_1CHW is not None
        index_N = torch.tensor([numbers[text] for text in point.targets])
        image_1CHW = point.image_1CHW * _channels(point.image_1CHW, CLIP_STD) + _channels(point.image_1CHW, CLIP_MEAN)
        mean, gradient_1CHW = mean_and_gradient(attempt.loss, image_1CHW, index_N, weight_M[index_N])
        # Ours is maximised, and taken by the pixels before they are normalised.
        theirs_1CHW = -point.gradient_1CHW / _channels(point.gradient_1CHW, CLIP_STD)
        gaps.append((
            abs(-float(mean) - point.loss) / abs(point.loss),
            float((gradient_1CHW - theirs_1CHW).norm() / theirs_1CHW.norm()),
            float((gradient_1CHW.sign() != theirs_1CHW.sign()).float().mean()),
        ))  # fmt: skip
    return Gaps(len(gaps), *(max(values) for values in zip(*gaps, strict=True)))


@dataclass(frozen=True)
class Speed:
    """Of both sides: floating-point operations of a forward pass, and seconds per step of every run."""

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


def speed(options: Options, attempt: Attempt) -> Speed:
    """Both sides in turns, each with the same start and draws."""
    steps = options.steps
    published = Published(options.visualadv, attempt)
    ours = run_ours(attempt)  # once to warm up
    seconds: tuple[list[float], list[float]] = ([], [])
    runs: tuple[Callable[[], Any], ...] = (
        lambda: published.run(ours.start_CHW, ours.draws, steps),
        lambda: run_ours(attempt),
    )
    drawn = ours.draws[0]
    counts = [
        operations(lambda: published.loss(ours.start_CHW, drawn)),
        operations(lambda: attempt.loss(ours.start_CHW[None], torch.tensor(drawn))),
    ]
    for _ in range(options.repeats):
        for run, taken in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            taken.append((time.perf_counter() - began) / (steps + 1))
    return Speed(counts[0], counts[1], *seconds)


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call without its backward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def main(options: Options) -> None:
    """Compares, and writes the sheet."""
    torch.set_num_threads(options.threads)
    difference, gaps = same_image(options), same_points(options)
    attempt = attempt_on(options.size, options, options.steps, torch.float32)
    found = speed(options, attempt)
    tokens = attempt.llava.encoders[0].spec.tokens  # type: ignore[union-attr]
    share = found.measured / found.possible
    text = (
        f"`python -m benchmarks.published_universal --visualadv CHECKOUT`: 8 targets a step, {tokens} visual tokens, "
        f"{parameters(attempt.llava) / 1e6:.0f}M parameters with random weights, float32, {options.threads} threads, "
        f"{options.repeats} runs of {options.steps + 1} steps in turns, the median.\n\n"
        f"In float64, after {options.same_steps + 1} steps from the same start and draws on a small model, no pixel of "
        f"the two images differs by more than {difference:.1g}/255.\n\n"
        f"In float32, at each of the {gaps.points} points of the published trajectory on that model: the losses differ "
        f"by at most {gaps.loss:.1g} of themselves, the gradients by {gaps.gradient:.1g} of their norm, and at most "
        f"{gaps.signs:.2%} of a gradient's entries have another sign.\n\n"
        f"Goal, {GOAL:.0%} of the ratio that the operations allow ({found.possible:.2f}): "
        f"{'met' if share >= GOAL else 'not met'} ({found.measured:.2f}, {share:.0%})."
    )
    rows = [
        ("published", f"{found.published_operations / 1e9:.0f}", f"{_median(found.published_seconds):.2f}"),
        ("ours", f"{found.our_operations / 1e9:.0f}", f"{_median(found.our_seconds):.2f}"),
    ]
    write_sheet(
        options.output, "Universal images: the published optimiser beside ours", text,
        ("", "10^9 operations forward", "seconds a step"), rows,
    )  # fmt: skip
    print(text)


if __name__ == "__main__":
    run_script(main, Options, __doc__)
