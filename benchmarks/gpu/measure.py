"""All measurements with one tower: growing batches, the parts of a step, and the same compiled.

Shapes: B batch, C channel, H/W image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.bench import Bench, say
from benchmarks.gpu.device import GIB, median_seconds, release
from benchmarks.gpu.flops import count_flops
from benchmarks.gpu.models import build_llava
from benchmarks.gpu.options import Options
from benchmarks.gpu.results import Batch, TowerResult
from benchmarks.gpu.shapes import Shapes
from benchmarks.gpu.stopwatch import divide_time
from rllava.errors import UserError
from rllava.model.llava import Llava


def measure_batch(bench: Bench, count: int) -> Batch | None:
    """Time and memory of one batch size.

    Returns:
        The measurement; None if memory does not suffice.
    """
    measured = None
    try:
        release(bench.options.device)
        measured = _measure_batch(bench, count)
    except RuntimeError as error:
        # The matrix library says in its own words that it got no workspace.
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
    # Here the exception is gone, and with it what the failed attempt held.
    release(bench.options.device)
    return measured


def _measure_batch(bench: Bench, count: int) -> Batch:
    options = bench.options
    loss, images_BCHW = bench.loss(count), bench.images(count)
    index_B = torch.arange(count, device=options.device)

    @torch.no_grad()
    def forward() -> None:
        loss(images_BCHW, index_B)

    bench.attack(loss, images_BCHW, 1)  # warm-up, with and without gradient
    forward_s = median_seconds(forward, options.device, options.repeats)
    attack_s = median_seconds(lambda: bench.attack(loss, images_BCHW, options.steps), options.device, options.repeats)
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
            say(f"  batch {count}: out of memory")
            return tuple(batches), count
        batches.append(batch)
        say(f"  batch {count}: {_described(batch)}")
    return tuple(batches), None


@contextmanager
def compiled(llava: Llava) -> Iterator[None]:
    """Within, the layers of encoder and language model are compiled, one by one (equal layers share the code).

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
    """All measurements with one tower."""
    tower = shapes.towers[name]
    llava = build_llava(shapes, tower, language_model, options.dtype, options.device)
    bench = Bench(llava, shapes, options)
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in llava.parameters())
    say(f"{tower.label}: weights {weight_bytes / GIB:.4g} GiB")
    flops = count_flops(bench, tower)
    say(f"  one step: {flops.counted / 1e12:.4g} TFLOP counted, {flops.estimated / 1e12:.4g} estimated")
    batches, too_large = grow_batch(bench)
    best = min(batches, key=lambda batch: batch.sample_s).count
    parts_s = divide_time(bench, best)
    say("  " + ", ".join(f"{part} {1000 * seconds:.4g} ms" for part, seconds in parts_s.items()))
    fused = None
    if options.compile:
        with compiled(llava):
            fused = measure_batch(bench, best)
        say(f"  batch {best}, compiled: {_described(fused) if fused else 'out of memory'}")
    return TowerResult(name, tower, weight_bytes, flops, batches, too_large, parts_s, fused)


def _described(batch: Batch) -> str:
    memory = "" if batch.peak_bytes is None else f", peak {batch.peak_bytes / GIB:.4g} GiB"
    return f"{batch.sample_s:.4g} s per sample, {1000 * batch.step_s:.4g} ms per step{memory}"
