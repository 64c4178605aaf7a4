"""``--calibrate``: a few real steps of every model that is here, to know how fast they go on this machine.

The training loop's own code and the attack worker's, on random images, in this process: what Ray adds is not in it.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from cluster.rates import Rate
from rllava.attacks.common import loss_and_gradient
from rllava.data.files import missing_data
from rllava.data.instructions import InstructionSpec
from rllava.data.stream import MicroBatch
from rllava.encoders import build_encoder, input_size
from rllava.model.assemble import build_connector
from rllava.model.language import load_tokenizer
from rllava.model.llava import Llava
from rllava.model.shapes import local_path
from rllava.pinned import MadeBy
from rllava.specs import EvalSpec, ModelSpec, Stage
from rllava.training.loop import train_stage
from rllava.weights import Weighted, has_weights
from sweeps.amounts import Counter
from sweeps.console import note
from sweeps.known_rates import Known, key_of
from sweeps.plan import Plan
from sweeps.texts import instruction_rows

STEPS = 5
"""Optimiser steps of a stage; the first is not counted."""

LOOKS = 3
SOURCE = "calibrated here"

Clock = Callable[[], float]


def calibrate(plan: Plan, known: Known, workers: int, threads: int, clock: Clock = time.perf_counter) -> None:
    """Measures every model of a plan whose parts are on this machine, and adds its rates to those that are known.

    Args:
        workers: of a training: each does its share of what is counted.
        threads: that a worker has.
        clock: seconds; ``time.process_time`` where others use the machine too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads))
    try:
        for model in plan.grid.models:
            if _is_here(model):
                _calibrate(plan, model, known, workers, clock)
            else:
                note(f"{model.name}: not calibrated, its weights or data are not on this machine")
    finally:
        torch.set_num_threads(before)
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_here(model: ModelSpec) -> bool:
    trained = any(isinstance(spec.weights, MadeBy) for spec in model.encoders)
    parts: tuple[Weighted, ...] = (*model.encoders, model.language_model)
    return (
        all(map(has_weights, parts)) and not trained and not missing_data(stage.data.source for stage in model.stages)
    )


def _calibrate(plan: Plan, model: ModelSpec, known: Known, workers: int, clock: Clock) -> None:
    counter = Counter(plan, workers)
    amounts = counter.training(model).amounts
    for index, (stage, amount) in enumerate(zip(model.stages, amounts, strict=True)):
        seconds = training_step_s(model, stage, workers, clock)
        known.by_model[key_of(model, "training", index), model.name] = Rate(
            amount.flops / stage.steps / (seconds * workers), SOURCE
        )
    for candidate in plan.grid.candidates:
        if candidate.model == model and not candidate.plugged:
            spec = next((s for s, _ in plan.evaluations(candidate) if s.condition.searches), None)
            spec = spec or plan.evaluations(candidate)[0][0]
            _calibrate_answers(counter, spec, known, clock)
            return


def training_step_s(model: ModelSpec, stage: Stage, workers: int, clock: Clock) -> float:
    """Seconds of an optimiser step of one worker among some: its share of the global batch."""
    own = replace(stage, steps=STEPS, global_batch=stage.global_batch // workers)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is imported
    for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)  # DeepSpeed looks for its launcher's
    encoders = [build_encoder(spec) for spec in model.encoders]
    connector, tokenizer = build_connector(model, getattr(torch, stage.precision))
    ends: list[float] = []
    if not dist.is_initialized():  # for all stages: DeepSpeed remembers the first group that it sees
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    batches = _portions(stage.data, own.micro_batch, input_size(model.encoders))
    train_stage(own, encoders, connector, tokenizer, lambda step: batches, report=lambda progress: ends.append(clock()))
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(ends))


def _portions(data: InstructionSpec, count: int, size: int) -> Iterator[MicroBatch]:
    rows, generator, first = instruction_rows(data), np.random.default_rng(0), 0
    while True:
        texts = [rows[(first + number) % len(rows)] for number in range(count)]
        pixels = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        yield MicroBatch(pixels, texts, [None] * count, list(range(first, first + count)))
        first += count


def _calibrate_answers(counter: Counter, spec: EvalSpec, known: Known, clock: Clock) -> None:
    """Looks with a gradient, and answers, at two sizes of a batch: what a call costs, and what a sample does."""
    assert isinstance(spec.model, ModelSpec)
    needed = counter.evaluation(spec, 1)
    most = min(counter.plan.grid.batch_size or 8, spec.benchmark.rows_per_shard)
    sizes = sorted({max(1, most // 4), most})
    llava = _untrained(spec)
    for work, call in (("attack", _look(llava, spec)), ("answers", _answers(llava, spec))):
        amount = next((entry for entry in needed.amounts if entry.work == work), None)
        if amount is None:
            continue
        seconds = [_best(lambda size=size, call=call: call(size), clock) for size in sizes]  # type: ignore[misc]
        each = (seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else seconds[0] / sizes[0]
        each = max(each, 0.1 * seconds[-1] / sizes[-1])
        flops = counter.unit_flops(spec, work)  # type: ignore[arg-type]
        fixed = max(0.0, seconds[0] - each * sizes[0])
        tokens = counter.new_tokens(spec) if work == "answers" else 1.0
        key = key_of(spec.model, work, -1)  # type: ignore[arg-type]
        rate = Rate(flops / each, SOURCE, fixed / max(1.0, tokens))
        known.by_model[key, spec.model.name] = rate
        known.rates.setdefault(key, rate)


def _untrained(spec: EvalSpec) -> Llava:
    model = spec.model
    assert isinstance(model, ModelSpec)
    connector, _ = build_connector(model)
    path = local_path(model.language_model)
    assert path is not None
    tokenizer = load_tokenizer(path, model.language_model.label)
    encoders = [build_encoder(encoder) for encoder in model.encoders]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    llava = Llava(encoders, connector, tokenizer, model.conversation)
    return llava.requires_grad_(False).eval().to(device)


def _look(llava: Llava, spec: EvalSpec) -> Callable[[int], Any]:
    tokens = llava.tokens(spec.benchmark.task.ask("what colour is the shape?"), "a large blue circle")
    prefix = llava.encode_prefix(tokens)

    def call(count: int) -> Any:
        pixels_BCHW = torch.rand(count, 3, llava.image_size, llava.image_size, device=_device(llava))
        return loss_and_gradient(
            lambda shown, _: llava.answer_loss(shown, [tokens] * count, prefix), pixels_BCHW, torch.arange(count)
        )

    return call


def _answers(llava: Llava, spec: EvalSpec) -> Callable[[int], Any]:
    prompt = llava.tokens(spec.benchmark.task.ask("what colour is the shape?"))

    def call(count: int) -> Any:
        pixels_BCHW = torch.rand(count, 3, llava.image_size, llava.image_size, device=_device(llava))
        return llava.generate(pixels_BCHW, [prompt] * count, spec.benchmark.task.decoding.max_new_tokens)

    return call


def _device(llava: Llava) -> torch.device:
    return next(llava.parameters()).device


def _best(call: Callable[[], Any], clock: Clock) -> float:
    """The shortest of some calls after one that warms up: what disturbs only makes longer."""
    call()
    times = []
    for _ in range(LOOKS):
        started = clock()
        call()
        times.append(clock() - started)
    return min(times)
