"""Speed of an attack on LLaVA-1.5-7B's shapes on one GPU: seconds and memory per sample, and where the time goes.

    python -m benchmarks.gpu_7b                               # towers one after the other, on the GPU
    python -m benchmarks.gpu_7b --shapes tiny --device cpu    # the same code on a small model, in seconds

The weights are random, since speed depends on shapes and not on values; nothing is downloaded. It needs PyTorch,
transformers and safetensors; neither Ray nor DeepSpeed nor a data set.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

import argparse
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from rllava.attacks.apgd import apgd
from rllava.attacks.common import LossFunction
from rllava.encoders.base import Encoder, EncoderSpec
from rllava.errors import SweepError, UserError
from rllava.model.conversation import IGNORE, IMAGE_TOKEN, Tokens
from rllava.model.llava import Connector, Llava, build_projector
from rllava.torchvision_shim import declare_missing_operators

declare_missing_operators()  # before transformers is imported

import transformers  # noqa: E402
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM  # noqa: E402

ATTACK_STEPS = 100
"""Of the attack whose time is reported: APGD-100."""

GOAL_TOWER = "clip-l"
GOAL_SECONDS = 5.0
"""Per sample for APGD-100 with that tower, at most."""
GOAL_SHARE = 0.55
"""Of the machine's measured matrix rate, at least."""

EPSILON = 4.0
WEIGHT_STD = 0.02
GIB = 1 << 30

PARTS = ("encoder", "projector and splice", "language model", "head and loss", "attack")
"""Of a step; each but the last is a forward and a backward pass."""

_COUNT_FORWARD: Callable[..., int] = sdpa_flop_count
_COUNT_BACKWARD: Callable[..., int] = sdpa_backward_flop_count
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: _COUNT_FORWARD(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: _COUNT_BACKWARD(*shapes[:4])
    ),
}
"""Operators that PyTorch's counter leaves out."""


# --- what is measured ---


@dataclass(frozen=True)
class Tower:
    """A vision transformer with a class token, which the projector does not see.

    Attributes:
        label: for the sheet.
        width: of a token.
        layers: of the trained model.
        heads: of each.
        mlp: hidden width.
        layer: whose output is taken, -1 the last one; layers behind it are not built.
        activation: as transformers calls it.
    """

    label: str
    width: int
    layers: int
    heads: int
    mlp: int
    layer: int = -1
    activation: str = "gelu"

    @property
    def layers_run(self) -> int:
        """Layers up to the one whose output is taken."""
        return self.layers + 1 + self.layer


@dataclass(frozen=True)
class Shapes:
    """Of a LLaVA, and of the plain matrix products that are timed beside it.

    Attributes:
        towers: by name.
        image_size: side, in pixels.
        patch: side, in pixels.
        width: of the language model (D).
        mlp: its hidden width.
        layers: of it.
        heads: of it.
        vocabulary: its size (V).
        squares: sides of square matrix products.
        matrix_flops: per timing of a product, which is repeated until it has done so many.
    """

    towers: dict[str, Tower]
    image_size: int
    patch: int
    width: int
    mlp: int
    layers: int
    heads: int
    vocabulary: int
    squares: tuple[int, ...]
    matrix_flops: float

    @property
    def visual_tokens(self) -> int:
        """Of an image (P)."""
        return (self.image_size // self.patch) ** 2


SHAPES = {
    "7b": Shapes(
        # Published shapes: openai/clip-vit-large-patch14-336; AdvXL ViT-H/14 and ViT-g/14 at 336 pixels.
        {
            "clip-l": Tower("CLIP ViT-L/14-336", 1024, 24, 16, 4096, layer=-2, activation="quick_gelu"),
            "advxl-h": Tower("AdvXL ViT-H/14-336", 1280, 32, 16, 5120),
            "advxl-g": Tower("AdvXL ViT-g/14-336", 1408, 40, 16, 6144),
        },
        image_size=336, patch=14, width=4096, mlp=11008, layers=32, heads=32, vocabulary=32000,
        squares=(2048, 4096, 8192, 16384), matrix_flops=3e13,
    ),
    "tiny": Shapes(
        {
            "clip-l": Tower("tiny CLIP", 64, 3, 4, 256, layer=-2, activation="quick_gelu"),
            "advxl-h": Tower("tiny AdvXL H", 80, 2, 4, 320),
            "advxl-g": Tower("tiny AdvXL g", 88, 2, 4, 384),
        },
        image_size=56, patch=14, width=64, mlp=172, layers=2, heads=4, vocabulary=320,
        squares=(64, 128), matrix_flops=2e7,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The command line.

    Attributes:
        shapes: name in :data:`SHAPES`.
        device: of everything.
        towers: names.
        steps: of the attacks that are timed.
        repeats: timings of which the median counts.
        max_batch: where the batch stops growing if memory does not stop it.
        prompt_tokens: text tokens around the image.
        answer_tokens: labelled ones, the end token among them.
        precision: of the weights: ``bfloat16`` or ``float32``.
        compile: whether the best batch is timed with torch.compile, too.
        output: Markdown file to write.
    """

    shapes: str
    device: torch.device
    towers: tuple[str, ...]
    steps: int
    repeats: int
    max_batch: int
    prompt_tokens: int
    answer_tokens: int
    precision: str
    compile: bool
    output: Path

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def command(self) -> str:
        """That measures the same again."""
        return (
            f"python -m benchmarks.gpu_7b --shapes {self.shapes} --device {self.device.type} "
            f"--towers {' '.join(self.towers)} --steps {self.steps} --repeats {self.repeats} "
            f"--max-batch {self.max_batch} --prompt-tokens {self.prompt_tokens} "
            f"--answer-tokens {self.answer_tokens} --precision {self.precision}{' --compile' if self.compile else ''}"
        )


# --- results ---


@dataclass(frozen=True)
class MatrixRate:
    """A matrix product [rows, inner] x [inner, columns], and how fast it ran, in FLOP/s."""

    rows: int
    inner: int
    columns: int
    rate: float


@dataclass(frozen=True)
class Batch:
    """What a batch size costs.

    Attributes:
        count: samples.
        step_s: seconds of a step: forward, backward and the attack's own arithmetic, for the whole batch.
        forward_s: seconds of a look without gradient, with which an attack ends.
        peak_bytes: most memory allocated, weights included; None where it is not known (CPU).
    """

    count: int
    step_s: float
    forward_s: float
    peak_bytes: int | None

    @property
    def sample_s(self) -> float:
        """Seconds per sample of an attack of :data:`ATTACK_STEPS` steps."""
        return (ATTACK_STEPS * self.step_s + self.forward_s) / self.count


@dataclass(frozen=True)
class Flops:
    """Of one step for one sample: counted as it ran, attention's part of that, and estimated from the shapes."""

    counted: int
    attention: int
    estimated: int


@dataclass(frozen=True)
class TowerResult:
    """All measurements with one tower.

    Attributes:
        name: of the tower.
        tower: itself.
        weight_bytes: of encoder, projector and language model.
        flops: of a step.
        batches: measured sizes, growing.
        too_large: size that did not fit, or None.
        parts_s: seconds of a step by part, at the best size.
        compiled: the best size with torch.compile, or None.
    """

    name: str
    tower: Tower
    weight_bytes: int
    flops: Flops
    batches: tuple[Batch, ...]
    too_large: int | None
    parts_s: dict[str, float]
    compiled: Batch | None

    @property
    def best(self) -> Batch:
        """The size of least time per sample."""
        return min(self.batches, key=lambda batch: batch.sample_s)

    @property
    def sample_bytes(self) -> float | None:
        """Memory that a sample more needs: slope of the peak over the batch size."""
        points = [(batch.count, batch.peak_bytes) for batch in self.batches if batch.peak_bytes is not None]
        if len(points) < 2:
            return None
        return statistics.linear_regression(*zip(*points, strict=True)).slope

    def rate(self, batch: Batch) -> float:
        """Counted operations per second in a step.

        Args:
            batch: measured.

        Returns:
            FLOP/s.
        """
        return self.flops.counted * batch.count / batch.step_s


# --- the model ---


class VisionTower(Encoder):
    """CLIP's vision transformer up to the wanted layer, with random weights.

    Args:
        spec: names and normalisation.
        model: of transformers.
    """

    def __init__(self, spec: EncoderSpec, model: nn.Module) -> None:
        super().__init__(spec)
        self.model = model

    def features(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class.

        Args:
            normalised_BCHW: images after normalisation.

        Returns:
            [B, P, D], without the class token.
        """
        tokens_BPD: Tensor = self.model(pixel_values=normalised_BCHW).last_hidden_state[:, 1:]
        return tokens_BPD


@contextmanager
def _created(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Parameters made here are of this precision and on this device from the start: 7B in float32 fill a host."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(default)


@torch.no_grad()
def _randomised(model: nn.Module) -> Any:
    """Random matrices; gains and biases as they are, so that activations and gradients keep a sane size."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, WEIGHT_STD)
    return model.requires_grad_(False).eval()


def build_language_model(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama with random weights, made where it stays.

    Args:
        shapes: its sizes.
        dtype: of its weights.
        device: where.

    Returns:
        The frozen transformers model.
    """
    config = LlamaConfig(
        hidden_size=shapes.width,
        intermediate_size=shapes.mlp,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        num_key_value_heads=shapes.heads,
        vocab_size=shapes.vocabulary,
        max_position_embeddings=4096,
        attn_implementation="sdpa",
    )
    with _created(device, dtype):
        return _randomised(LlamaForCausalLM(config))


def build_llava(shapes: Shapes, tower: Tower, language_model: Any, dtype: torch.dtype, device: torch.device) -> Llava:
    """A LLaVA around a language model: a tower and LLaVA-1.5's projector, with random weights.

    Args:
        shapes: sizes.
        tower: which encoder.
        language_model: see :func:`build_language_model`.
        dtype: of the weights.
        device: where.

    Returns:
        The frozen model, without tokenizer.
    """
    config = CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=tower.mlp,
        num_hidden_layers=tower.layers_run,
        num_attention_heads=tower.heads,
        image_size=shapes.image_size,
        patch_size=shapes.patch,
        hidden_act=tower.activation,
        attn_implementation="sdpa",
    )
    spec = EncoderSpec(tower.label, "", None, None, shapes.image_size, shapes.visual_tokens, tower.width)
    with _created(device, dtype):
        model = _randomised(CLIPVisionModel(config))
        projector = _randomised(build_projector("mlp2x_gelu", tower.width, shapes.width))
    encoder = VisionTower(spec, model)
    return Llava([encoder], Connector([projector], language_model), tokenizer=None, conversation="vicuna_v1").eval()


def random_tokens(shapes: Shapes, count: int, prompt_tokens: int, answer_tokens: int) -> list[Tokens]:
    """Prompts and answers of random words: a common text, an image, a question, an answer.

    Args:
        shapes: gives the vocabulary.
        count: how many.
        prompt_tokens: text tokens around the image; the common text before it has two thirds, as in LLaVA-1.5.
        answer_tokens: labelled ones.

    Returns:
        One conversation per sample.
    """
    generator = torch.Generator().manual_seed(0)

    def words(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, shapes.vocabulary, (length,), generator=generator).tolist())

    before = words(prompt_tokens * 2 // 3)
    conversations = []
    for _ in range(count):
        prompt = (*before, IMAGE_TOKEN, *words(prompt_tokens - len(before)))
        answer = words(answer_tokens)
        conversations.append(Tokens((*prompt, *answer), (*[IGNORE] * len(prompt), *answer)))
    return conversations


@dataclass(frozen=True)
class Bench:
    """A model that is attacked, and how."""

    llava: Llava
    shapes: Shapes
    options: Options

    def loss(self, count: int) -> LossFunction:
        """What an attack maximises.

        Args:
            count: samples in the batch.

        Returns:
            Loss of random answers to random prompts.
        """
        tokens = random_tokens(self.shapes, count, self.options.prompt_tokens, self.options.answer_tokens)
        return lambda pixels_BCHW, _: self.llava.answer_loss(pixels_BCHW, tokens)

    def images(self, count: int) -> Tensor:
        """Random images, float32.

        Args:
            count: how many.

        Returns:
            [B, C, H, W] in [0, 1].
        """
        side = self.shapes.image_size
        return torch.rand(count, 3, side, side, device=self.options.device, dtype=torch.float32)

    def attack(self, loss: LossFunction, images_BCHW: Tensor, steps: int) -> None:
        """An APGD attack.

        Args:
            loss: see :meth:`loss`.
            images_BCHW: clean images.
            steps: of the attack.

        Raises:
            SweepError: if a loss or gradient is not finite; the time of such an attack says nothing.
        """
        result = apgd(loss, images_BCHW, epsilon=EPSILON, steps=steps)
        if bool(result.broken_B.any()):
            raise SweepError("the loss or its gradient is not finite; try --precision float32")


# --- measuring ---


def _median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Wall-clock time of some warmed-up work, the device's part included."""
    times = []
    for _ in range(repeats):
        _synchronise(device)
        started = time.perf_counter()
        work()
        _synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release(device: torch.device) -> None:
    """Gives memory that nothing holds back to the device, so that the next peak is its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _matrix_rate(rows: int, inner: int, columns: int, shapes: Shapes, options: Options) -> MatrixRate:
    """Speed of one product of random matrices, laid out as a linear layer's."""
    left = torch.randn(rows, inner, device=options.device, dtype=options.dtype)
    weight = torch.randn(columns, inner, device=options.device, dtype=options.dtype)
    flops = 2.0 * rows * inner * columns
    times = max(1, round(shapes.matrix_flops / flops))

    def work() -> None:
        for _ in range(times):
            nn.functional.linear(left, weight)

    work()
    return MatrixRate(rows, inner, columns, times * flops / _median_seconds(work, options.device, options.repeats))


@torch.no_grad()
def matrix_rates(shapes: Shapes, options: Options) -> tuple[MatrixRate, ...]:
    """Speed of square products and of those of the language model's layers, for batches of 1 and 16 samples.

    Args:
        shapes: sizes.
        options: give device, precision and the length of the sequence.

    Returns:
        One rate per product.
    """
    sequence = options.prompt_tokens + shapes.visual_tokens + options.answer_tokens
    products = [(side, side, side) for side in shapes.squares]
    for rows in (sequence, 16 * sequence):
        for inner, columns in ((shapes.width, shapes.width), (shapes.width, shapes.mlp), (shapes.mlp, shapes.width)):
            products.append((rows, inner, columns))
    rates = []
    for product in products:
        rates.append(_matrix_rate(*product, shapes, options))
        _say(f"product {product[0]} x {product[1]} x {product[2]}: {rates[-1].rate / 1e12:.4g} TFLOP/s")
    _release(options.device)
    return tuple(rates)


def estimated_flops(shapes: Shapes, tower: Tower, prompt_tokens: int, answer_tokens: int) -> int:
    """One step for one sample, from the shapes.

    Every product is done forward, and once more backward (weights get no gradient). Fused attention does two products
    forward and five backward, and is taken as if it were not causal, as PyTorch's counter does.

    Args:
        shapes: sizes.
        tower: which encoder.
        prompt_tokens: text tokens around the image.
        answer_tokens: labelled ones.

    Returns:
        Floating-point operations, a multiplication and an addition counting as two.
    """
    visual, width = shapes.visual_tokens, tower.width
    encoder = visual * 3 * shapes.patch**2 * width
    encoder += tower.layers_run * (visual + 1) * (4 * width**2 + 2 * width * tower.mlp)
    projector = visual * (width + shapes.width) * shapes.width
    sequence = prompt_tokens + visual + answer_tokens
    language = shapes.layers * sequence * (4 * shapes.width**2 + 3 * shapes.width * shapes.mlp)
    head = answer_tokens * shapes.width * shapes.vocabulary
    attention = tower.layers_run * (visual + 1) ** 2 * width + shapes.layers * sequence**2 * shapes.width
    return 2 * (2 * (encoder + projector + language + head) + 7 * attention)


def count_flops(bench: Bench, tower: Tower) -> Flops:
    """Counts the operations of one real step for one sample: forward, and backward to the pixels.

    Args:
        bench: model and settings.
        tower: of the model.

    Returns:
        The counts.

    Raises:
        SweepError: if no gradient reaches the pixels.
    """
    options = bench.options
    pixels_1CHW = bench.images(1).requires_grad_(True)
    index_1 = torch.zeros(1, dtype=torch.int64, device=options.device)
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        # A copy: the counter's hooks on the inputs of modules stop at a leaf.
        loss_1 = bench.loss(1)(pixels_1CHW.clone(), index_1)
        assert isinstance(loss_1, Tensor)
        (gradient_1CHW,) = torch.autograd.grad(loss_1.sum(), pixels_1CHW)
    if not (bool(gradient_1CHW.isfinite().all()) and bool((gradient_1CHW != 0).any())):
        raise SweepError("no finite gradient reaches the pixels; try --precision float32")
    operators = counter.get_flop_counts()["Global"]
    attention = sum(count for operator, count in operators.items() if "attention" in str(operator))
    estimate = estimated_flops(bench.shapes, tower, options.prompt_tokens, options.answer_tokens)
    return Flops(counter.get_total_flops(), attention, estimate)


def measure_batch(bench: Bench, count: int) -> Batch | None:
    """Time and memory of one batch size.

    Args:
        bench: model and settings.
        count: samples in the batch.

    Returns:
        The measurement; None if memory does not suffice.
    """
    measured = None
    try:
        _release(bench.options.device)
        measured = _measure_batch(bench, count)
    except RuntimeError as error:
        # The matrix library says in its own words that it got no workspace.
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
    # Here the exception is gone, and with it what the failed attempt held.
    _release(bench.options.device)
    return measured


def _measure_batch(bench: Bench, count: int) -> Batch:
    options = bench.options
    loss, images_BCHW = bench.loss(count), bench.images(count)
    index_B = torch.arange(count, device=options.device)

    @torch.no_grad()
    def forward() -> None:
        loss(images_BCHW, index_B)

    bench.attack(loss, images_BCHW, 1)  # warm-up, with and without gradient
    forward_s = _median_seconds(forward, options.device, options.repeats)
    attack_s = _median_seconds(lambda: bench.attack(loss, images_BCHW, options.steps), options.device, options.repeats)
    peak = torch.cuda.max_memory_allocated(options.device) if options.device.type == "cuda" else None
    return Batch(count, (attack_s - forward_s) / options.steps, forward_s, peak)


def _batch_sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and the largest."""
    sizes = [1]
    while sizes[-1] * 2 <= largest:
        sizes.append(sizes[-1] * 2)
    return sizes if sizes[-1] == largest else [*sizes, largest]


def grow_batch(bench: Bench) -> tuple[tuple[Batch, ...], int | None]:
    """Measures growing batches until memory or the largest wanted size ends it.

    Args:
        bench: model and settings.

    Returns:
        The measurements, and the size that did not fit (None if all did).

    Raises:
        UserError: if not even one sample fits.
    """
    batches: list[Batch] = []
    for count in _batch_sizes(bench.options.max_batch):
        batch = measure_batch(bench, count)
        if batch is None and not batches:
            raise UserError("not even one sample fits in this GPU's memory; take a larger GPU")
        if batch is None:
            _say(f"  batch {count}: out of memory")
            return tuple(batches), count
        batches.append(batch)
        _say(f"  batch {count}: {_described(batch)}")
    return tuple(batches), None


class Stopwatch:
    """Where the time of a step goes. Marks are events on the device's own clock: nothing waits for them.

    Each mark ends a stretch of the step, and says which part it belonged to. Forward, they come from hooks on the
    modules; backward, from hooks on the tensors between them, which fire when their gradient is there.

    Args:
        bench: whose model is watched.
    """

    def __init__(self, bench: Bench) -> None:
        self.device = bench.options.device
        self.marks: list[tuple[str, Any]] = []
        language = cast(Any, bench.llava.connector.language_model).model
        self.handles = [
            bench.llava.encoders[0].register_forward_hook(self._after_encoder),
            language.register_forward_pre_hook(self._before_language_model, with_kwargs=True),
            language.register_forward_hook(self._after_language_model),
        ]

    def watched(self, loss: LossFunction) -> LossFunction:
        """The same loss, with the marks at its ends.

        Args:
            loss: of a bench.

        Returns:
            A loss.
        """

        def marked(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            self._mark("attack")
            if not torch.is_grad_enabled():  # the last look: no step follows
                return loss(pixels_BCHW, index_B)
            self._after_gradient(pixels_BCHW, "encoder")
            value = loss(pixels_BCHW, index_B)
            self._mark("head and loss")
            return value

        return marked

    def seconds(self) -> dict[str, float]:
        """What was measured; takes the hooks off.

        Returns:
            Total seconds by part.
        """
        for handle in self.handles:
            handle.remove()
        _synchronise(self.device)
        totals = dict.fromkeys(PARTS, 0.0)
        for (_, begin), (part, end) in zip(self.marks, self.marks[1:], strict=False):
            totals[part] += begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
        return totals

    def _mark(self, part: str) -> None:
        moment: Any = time.perf_counter()
        if self.device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            moment.record()
        self.marks.append((part, moment))

    def _after_gradient(self, tensor: Tensor, part: str) -> None:
        tensor.register_hook(lambda _: self._mark(part))  # type: ignore[no-untyped-call]

    def _after_encoder(self, module: nn.Module, arguments: object, features_BPD: Tensor) -> None:
        if torch.is_grad_enabled():
            self._mark("encoder")
            self._after_gradient(features_BPD, "projector and splice")

    def _before_language_model(self, module: nn.Module, arguments: object, keywords: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self._mark("projector and splice")
            self._after_gradient(keywords["inputs_embeds"], "language model")

    def _after_language_model(self, module: nn.Module, arguments: object, output: Any) -> None:
        if torch.is_grad_enabled():
            self._mark("language model")
            self._after_gradient(output.last_hidden_state, "head and loss")


def divide_time(bench: Bench, count: int) -> dict[str, float]:
    """Seconds of a step by part.

    Args:
        bench: model and settings.
        count: samples in the batch.

    Returns:
        Part to seconds, for the whole batch.
    """
    loss, images_BCHW, steps = bench.loss(count), bench.images(count), bench.options.steps
    _release(bench.options.device)
    bench.attack(loss, images_BCHW, 1)
    stopwatch = Stopwatch(bench)
    bench.attack(stopwatch.watched(loss), images_BCHW, steps)
    return {part: total / steps for part, total in stopwatch.seconds().items()}


@contextmanager
def compiled(llava: Llava) -> Iterator[None]:
    """Within, the layers of encoder and language model are compiled, one by one (equal layers share the code).

    Args:
        llava: changed, and changed back.

    Yields:
        Nothing.
    """
    lists = [module for module in llava.modules() if isinstance(module, nn.ModuleList) and module is not llava.encoders]
    layers: list[Any] = [layer for items in lists if items is not llava.connector.projectors for layer in items]
    torch.compiler.reset()  # all layers share one code object, of which PyTorch keeps only so many versions
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is back


def measure_tower(name: str, language_model: Any, shapes: Shapes, options: Options) -> TowerResult:
    """All measurements with one tower.

    Args:
        name: of the tower.
        language_model: common to all towers.
        shapes: sizes.
        options: settings.

    Returns:
        The result.
    """
    tower = shapes.towers[name]
    llava = build_llava(shapes, tower, language_model, options.dtype, options.device)
    bench = Bench(llava, shapes, options)
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in llava.parameters())
    _say(f"{tower.label}: weights {weight_bytes / GIB:.4g} GiB")
    flops = count_flops(bench, tower)
    _say(f"  one step: {flops.counted / 1e12:.4g} TFLOP counted, {flops.estimated / 1e12:.4g} estimated")
    batches, too_large = grow_batch(bench)
    best = min(batches, key=lambda batch: batch.sample_s).count
    parts_s = divide_time(bench, best)
    _say("  " + ", ".join(f"{part} {1000 * seconds:.4g} ms" for part, seconds in parts_s.items()))
    fused = None
    if options.compile:
        with compiled(llava):
            fused = measure_batch(bench, best)
        _say(f"  batch {best}, compiled: {_described(fused) if fused else 'out of memory'}")
    return TowerResult(name, tower, weight_bytes, flops, batches, too_large, parts_s, fused)


def _described(batch: Batch) -> str:
    memory = "" if batch.peak_bytes is None else f", peak {batch.peak_bytes / GIB:.4g} GiB"
    return f"{batch.sample_s:.4g} s per sample, {1000 * batch.step_s:.4g} ms per step{memory}"


def _say(line: str) -> None:
    print(line, flush=True)


# --- the sheet ---


@dataclass(frozen=True)
class Report:
    """What the sheet is made of; it grows tower by tower."""

    options: Options
    shapes: Shapes
    rates: tuple[MatrixRate, ...]
    results: list[TowerResult] = field(default_factory=list)

    @property
    def matrix_rate(self) -> float:
        """The machine's measured rate: the largest, in FLOP/s."""
        return max(rate.rate for rate in self.rates)


def sheet(report: Report) -> str:
    """The report as Markdown.

    Args:
        report: of all towers so far.

    Returns:
        Text.
    """
    return "\n\n".join(
        [
            f"# APGD-{ATTACK_STEPS} on the shapes of a LLaVA ({report.options.shapes})",
            _how(report),
            "\n".join(goal_lines(report)),
            "## Per tower\n\n" + _table_of_towers(report),
            "## Per batch size\n\n" + _table_of_batches(report),
            "## Where a step's time goes, at the best batch size\n\n" + _table_of_parts(report),
            "## Matrix products\n\n" + _table_of_products(report),
        ]
    ) + "\n"  # fmt: skip


def _machine_name(device: torch.device) -> str:
    """The GPU and its memory, or the processor."""
    if device.type != "cuda":
        return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    memory = torch.cuda.get_device_properties(device).total_memory
    return f"{torch.cuda.get_device_name(device)}, {memory / GIB:.4g} GiB"


def _how(report: Report) -> str:
    options, shapes = report.options, report.shapes
    sequence = options.prompt_tokens + shapes.visual_tokens + options.answer_tokens
    cuda = f", CUDA {torch.version.cuda}" if options.device.type == "cuda" else ""
    return (
        f"`{options.command}` on {_machine_name(options.device)}; Python {platform.python_version()}, "
        f"torch {torch.__version__}{cuda}, transformers {transformers.__version__}.\n\n"
        f"Random weights in {options.precision}; image, perturbation and projection in float32. {shapes.visual_tokens} "
        f"visual and {options.prompt_tokens} text tokens, {options.answer_tokens} labelled ones: {sequence} in all. "
        f"Attacks of {options.steps} steps were timed after a warm-up, the median of {options.repeats}; seconds per "
        f"sample are those of {ATTACK_STEPS} steps and 1 forward pass, divided by the batch. The towers' layers "
        "behind the one whose output LLaVA takes are not built. A step's operations are counted by PyTorch as it runs: "
        "forward, and backward to the pixels; the language model's causal attention is counted in full, though its "
        "kernels skip half. The share is of the fastest matrix product below."
    )


def goal_lines(report: Report) -> list[str]:
    """Whether the measurements meet the goals.

    Args:
        report: of all towers so far.

    Returns:
        A line per goal.
    """
    if report.options.shapes != "7b":
        return ["Goals: for the shapes of 7b only."]
    lines = []
    for result in report.results:
        for what, batch in (("", result.best), (", compiled", result.compiled)):
            if batch is None:
                continue
            share = result.rate(batch) / report.matrix_rate
            place = f"{result.tower.label}{what}, batch {batch.count}"
            if result.name == GOAL_TOWER:
                met = "met" if batch.sample_s <= GOAL_SECONDS else "missed"
                lines.append(f"- Goal, at most {GOAL_SECONDS:g} s per sample, {met}: {batch.sample_s:.4g} s ({place}).")
            met = "met" if share >= GOAL_SHARE else "missed"
            lines.append(f"- Goal, {GOAL_SHARE:.0%} of the measured matrix rate, {met}: {share:.1%} ({place}).")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _table_of_towers(report: Report) -> str:
    rows = []
    for result in report.results:
        best, tower, flops, memory = result.best, result.tower, result.flops, result.sample_bytes
        rows.append(
            (
                tower.label, f"{tower.layers_run} of {tower.layers}", f"{result.weight_bytes / GIB:.4g}",
                "–" if memory is None else f"{memory / GIB:.3g}", f"{flops.counted / 1e12:.4g}",
                f"{flops.estimated / 1e12:.4g}", f"{flops.attention / flops.counted:.1%}", str(best.count),
                f"{best.sample_s:.4g}", f"{result.batches[0].sample_s:.4g}",
                f"{result.rate(best) / report.matrix_rate:.1%}",
            )
        )  # fmt: skip
    return _table(
        (
            "tower", "layers run", "weights, GiB", "GiB per sample", "TFLOP per sample and step", "estimated",
            "of which attention", "best batch", "s per sample", "s per sample, batch 1", "share of matrix rate",
        ),
        rows,
    )  # fmt: skip


def _table_of_batches(report: Report) -> str:
    rows: list[Sequence[str]] = []
    for result in report.results:
        measured = [(str(batch.count), batch) for batch in result.batches]
        if result.compiled is not None:
            measured.append((f"{result.compiled.count}, compiled", result.compiled))
        for size, batch in measured:
            rate, memory = result.rate(batch), batch.peak_bytes
            rows.append(
                (
                    result.tower.label, size, f"{batch.sample_s:.4g}", f"{1000 * batch.step_s:.4g}",
                    f"{1000 * batch.forward_s:.4g}", f"{rate / 1e12:.4g}", f"{rate / report.matrix_rate:.1%}",
                    "–" if memory is None else f"{memory / GIB:.4g}",
                )
            )  # fmt: skip
        if result.too_large is not None:
            rows.append((result.tower.label, str(result.too_large), "out of memory", *["–"] * 5))
    return _table(
        ("tower", "batch", "s per sample", "ms per step", "ms per forward", "TFLOP/s", "share", "peak GiB"), rows
    )


def _table_of_parts(report: Report) -> str:
    rows = []
    for result in report.results:
        total = sum(result.parts_s.values())
        cells = [f"{seconds / total:.1%} ({1000 * seconds:.4g} ms)" for seconds in result.parts_s.values()]
        rows.append((result.tower.label, str(result.best.count), *cells, f"{1000 * total:.4g} ms"))
    return _table(("tower", "batch", *PARTS, "step"), rows)


def _table_of_products(report: Report) -> str:
    rows = [(f"{rate.rows} x {rate.inner} x {rate.columns}", f"{rate.rate / 1e12:.4g}") for rate in report.rates]
    return _table(("product", "TFLOP/s"), rows)


# --- the command line ---


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return int(text)


def parse(arguments: Sequence[str] | None) -> Options:
    """Reads the command line.

    Args:
        arguments: without the program's name; None: those of the process.

    Returns:
        Checked options.

    Raises:
        UserError: if something is wrong with them.
    """
    parser = _Parser("python -m benchmarks.gpu_7b", description=(__doc__ or "").split("\n")[0])
    towers = list(SHAPES["7b"].towers)
    parser.add_argument("--shapes", choices=list(SHAPES), default="7b")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda if there is a GPU)")
    parser.add_argument("--towers", nargs="+", choices=towers, default=towers)
    parser.add_argument("--steps", type=_positive, default=10, help="of the attacks that are timed")
    parser.add_argument("--repeats", type=_positive, default=3, help="timings of which the median counts")
    parser.add_argument("--max-batch", type=_positive, default=64, help="largest batch, if memory allows it")
    parser.add_argument("--prompt-tokens", type=_positive, default=40, help="text tokens around the image")
    parser.add_argument("--answer-tokens", type=_positive, default=12, help="labelled, the end token among them")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16", help="of the weights")
    parser.add_argument("--compile", action="store_true", help="time the best batch with torch.compile, too")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/sheets/gpu_7b.md"), help="sheet to write")
    given = vars(parser.parse_args(arguments))
    device = _device(given.pop("device"), given["shapes"])
    options = Options(device=device, towers=tuple(dict.fromkeys(given.pop("towers"))), **given)
    _check_output(options.output)
    return options


def _device(name: str | None, shapes: str) -> torch.device:
    """The wanted device, or a mistake said before anything is built."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ("cuda" if available else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {name}: unknown; give cuda, cuda:N or cpu") from error
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"--device {name}: neither cuda nor cpu, which is what this measures")
    if device.type == "cuda" and (device.index or 0) >= available:
        raise UserError(f"--device {name}: this machine shows {available} CUDA GPUs; --shapes tiny also runs on cpu")
    if device.type == "cpu" and shapes != "tiny":
        raise UserError(f"--shapes {shapes} needs a CUDA GPU, and the device is cpu; --shapes tiny runs on a CPU")
    return device


def _check_output(path: Path) -> None:
    """Says before the measurements, not after them, that the sheet cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path}: cannot make its folder ({error.strerror}); give another path") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--output {path}: no file that can be written; give another path")


def run(options: Options) -> Report:
    """Measures, and writes the sheet anew after every tower.

    Args:
        options: settings.

    Returns:
        What was measured.
    """
    torch.manual_seed(0)
    if options.device.type == "cuda":
        torch.cuda.set_device(options.device)
    shapes = SHAPES[options.shapes]
    _say(f"{_machine_name(options.device)}, torch {torch.__version__}")
    report = Report(options, shapes, matrix_rates(shapes, options))
    language_model = build_language_model(shapes, options.dtype, options.device)
    for name in options.towers:
        report.results.append(measure_tower(name, language_model, shapes, options))
        options.output.write_text(sheet(report))
    for line in goal_lines(report):
        _say(line)
    _say(f"written: {options.output}")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """The script.

    Args:
        arguments: of the command line; None: those of the process.

    Returns:
        Exit status: 0 done, 1 something failed, 2 a mistake in the arguments, 130 interrupted.
    """
    try:
        run(parse(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (SweepError, torch.OutOfMemoryError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the sheet holds the towers that were done", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
