"""Floating-point operations: how many per second the device does in matrix products, and how many a step takes.

Shapes: C channel, H/W image.
"""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.bench import Bench, say
from benchmarks.gpu.device import median_seconds, release
from benchmarks.gpu.options import Options
from benchmarks.gpu.results import Flops, MatrixRate
from benchmarks.gpu.shapes import Shapes, Tower
from rllava.counting import CPU_ATTENTION
from rllava.errors import SweepError


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
    return MatrixRate(rows, inner, columns, times * flops / median_seconds(work, options.device, options.repeats))


@torch.no_grad()
def matrix_rates(shapes: Shapes, options: Options) -> tuple[MatrixRate, ...]:
    """Speed of square products and of those of the language model's layers, for batches of 1 and 16 samples.

    Args:
        options: give device, precision and the length of the sequence.
    """
    sequence = options.prompt_tokens + shapes.visual_tokens + options.answer_tokens
    products = [(side, side, side) for side in shapes.squares]
    for rows in (sequence, 16 * sequence):
        for inner, columns in ((shapes.width, shapes.width), (shapes.width, shapes.mlp), (shapes.mlp, shapes.width)):
            products.append((rows, inner, columns))
    rates = []
    for product in products:
        rates.append(_matrix_rate(*product, shapes, options))
        say(f"product {product[0]} x {product[1]} x {product[2]}: {rates[-1].rate / 1e12:.4g} TFLOP/s")
    release(options.device)
    return tuple(rates)


def estimated_flops(shapes: Shapes, tower: Tower, prompt_tokens: int, answer_tokens: int) -> int:
    """One step for one sample, from the shapes.

    Every product is done forward, and once more backward (weights get no gradient). Fused attention does two products
    forward and five backward, and is taken as if it were not causal, as PyTorch's counter does.

    Args:
        prompt_tokens: text tokens around the image.

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

    Raises:
        SweepError: if no gradient reaches the pixels.
    """
    options = bench.options
    pixels_1CHW = bench.images(1).requires_grad_(True)
    index_1 = torch.zeros(1, dtype=torch.int64, device=options.device)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
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
