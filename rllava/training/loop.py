"""One training stage by DeepSpeed, in a process group that is already there; this file knows no Ray.

Stage 1 trains the projectors, stage 2 the projectors and the language model; encoders are frozen and stay outside the
engine, so that no ZeRO stage partitions them.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rllava.data.stream import MicroBatch
from rllava.encoders.base import Encoder, encode
from rllava.errors import UserError
from rllava.model.conversation import IGNORE, TEMPLATES, Tokens, pieces, tokenize
from rllava.model.llava import Connector
from rllava.specs import StageSpec
from rllava.training.extension_lock import stale_locks_removed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Progress:
    """What a stage reports after an optimiser step.

    Attributes:
        step: optimiser steps done.
        loss: mean over the step's portions on all workers.
        learning_rate: used in the step.
        damaged: damaged images seen so far by this worker since the stage (re)started.
    """

    step: int
    loss: float
    learning_rate: float
    damaged: int


def deepspeed_config(stage: StageSpec, workers: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a stage.

    Args:
        stage: what to train.
        workers: in the process group.

    Returns:
        Nested dictionary.
    """
    return {
        "train_batch_size": stage.global_batch,
        "train_micro_batch_size_per_gpu": stage.micro_batch,
        "gradient_accumulation_steps": stage.global_batch // (stage.micro_batch * workers),
        "gradient_clipping": stage.clip,
        "zero_optimization": {"stage": stage.zero_stage, "overlap_comm": False, "contiguous_gradients": True},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": stage.precision == "bf16"},
        "fp16": {"enabled": stage.precision == "fp16"},
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
    }


def learning_rate(stage: StageSpec, step: int) -> float:
    """Linear warm-up, then cosine to zero (LLaVA 1.5).

    Args:
        stage: peak, steps, warm-up.
        step: from 0.

    Returns:
        The learning rate of that step.
    """
    warm = math.ceil(stage.warmup * stage.steps)
    if step < warm:
        return stage.learning_rate * (step + 1) / warm
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, stage.steps - warm)))


def train_stage(
    stage: StageSpec,
    encoders: Sequence[Encoder],
    connector: Connector,
    tokenizer: Any,
    batches: Callable[[int], Iterator[MicroBatch]],
    *,
    resume: Path | None = None,
    checkpoint_every: int = 0,
    save: Callable[[Callable[[Path], None], Progress], None] = lambda write, progress: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Tensor]:
    """Trains one stage.

    Args:
        stage: what to do.
        encoders: frozen towers.
        connector: what is trained, with its weights from before.
        tokenizer: of the language model.
        batches: from an optimiser step to this worker's portions from there on.
        resume: folder of a checkpoint of this stage, or None.
        checkpoint_every: optimiser steps between checkpoints; 0: none.
        save: called on every worker when a checkpoint is due, with a function that writes this worker's part into a
            folder.
        report: called on every worker after each step.

    Returns:
        Full weights of the connector on worker 0; empty elsewhere.
    """
    engine = start_engine(stage, connector)
    done = load_checkpoint(engine, resume) if resume is not None else 0
    for encoder in encoders:
        encoder.to(engine.device, DTYPES[stage.precision])
    accumulation = engine.gradient_accumulation_steps()
    portions = batches(done)
    damaged = 0
    for step in range(done, stage.steps):
        rate = learning_rate(stage, step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        loss = torch.zeros((), device=engine.device)
        for _ in range(accumulation):
            portion = next(portions)
            damaged += sum(reason is not None for reason in portion.damaged)
            loss += portion_loss(engine, encoders, tokenizer, stage, portion) / accumulation
        progress = Progress(step + 1, mean_over_workers(loss), rate, damaged)
        report(progress)
        if checkpoint_every and (step + 1) % checkpoint_every == 0 and step + 1 < stage.steps:
            save(functools.partial(save_checkpoint, engine, step=progress.step), progress)
    return gather_weights(engine, connector)


def start_engine(stage: StageSpec, connector: Connector) -> Any:
    """Freezes what the stage does not train and wraps the connector.

    Args:
        stage: what to train.
        connector: projectors and language model.

    Returns:
        A DeepSpeed engine.
    """
    import deepspeed  # seconds to import, and only training needs it

    connector.train()
    if stage.gradient_checkpointing:
        recompute_layers(connector)
    connector.language_model.requires_grad_(stage.train_language_model)
    connector.projectors.requires_grad_(True)
    trainable = [parameter for parameter in connector.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=stage.learning_rate, weight_decay=stage.weight_decay)
    whole = {name: buffer.clone() for name, buffer in connector.named_buffers() if buffer.is_floating_point()}
    with stale_locks_removed():
        engine, *_ = deepspeed.initialize(
            model=connector,
            optimizer=optimiser,
            config=deepspeed_config(stage, dist.get_world_size()),
            dist_init_required=False,
        )
    # In half precision it rounds buffers too; those of rotary embeddings then err by more the later a token stands.
    for name, buffer in connector.named_buffers():
        if name in whole:
            buffer.data = whole[name].to(buffer.device)
    return engine


def recompute_layers(connector: Connector) -> None:
    """Makes the language model's layers keep their inputs alone until the backward pass, in which they run again.

    Args:
        connector: in training mode; evaluation and decoding are as before.

    Raises:
        UserError: if its language model cannot.
    """
    language_model: Any = connector.language_model
    if not getattr(language_model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"gradient_checkpointing: {type(language_model).__name__} cannot compute its layers again; set it to False"
        )
    # transformers calls it so since 5.x, and will forget the older name in 6.
    name = "activation_checkpointing_enable"
    enable = getattr(language_model, name, None) or language_model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def portion_loss(
    engine: Any, encoders: Sequence[Encoder], tokenizer: Any, stage: StageSpec, portion: MicroBatch
) -> Tensor:
    """Forward and backward pass of one portion; the engine steps when enough have accumulated.

    Args:
        engine: DeepSpeed's.
        encoders: frozen towers.
        tokenizer: of the language model.
        stage: conversation and length.
        portion: images and conversations.

    Returns:
        Mean loss per labelled token, detached.
    """
    pixels_BCHW = torch.from_numpy(portion.pixels_BHWC).to(engine.device).permute(0, 3, 1, 2).float() / 255.0
    with torch.no_grad():
        features = encode(encoders, pixels_BCHW)
    tokens = [
        without_labels(tokens) if damaged is not None else tokens
        for tokens, damaged in zip(
            (conversation_tokens(tokenizer, stage.conversation, text) for text in portion.conversations),
            portion.damaged,
            strict=True,
        )
    ]
    loss_B, count_B = engine(features, tokens, stage.max_length)
    loss: Tensor = loss_B.sum() / count_B.sum().clamp(min=1)
    engine.backward(loss)
    engine.step()
    return loss.detach()


def conversation_tokens(tokenizer: Any, template: str, text: str) -> Tokens:
    """Tokens of a conversation in LLaVA's JSON format.

    Args:
        tokenizer: of the language model.
        template: name of a conversation template.
        text: JSON list of ``{"from": "human" | "gpt", "value": ...}``.

    Returns:
        Ids and labels.
    """
    turns = json.loads(text)
    # As LLaVA: an answer without a question before it is left out, and so is a question nobody answered.
    turns = turns[1:] if turns and turns[0]["from"] != "human" else turns
    values = [turn["value"] for turn in turns[: len(turns) // 2 * 2]]
    rounds = list(zip(values[::2], values[1::2], strict=True))
    return tokenize(tokenizer, pieces(TEMPLATES.get(template), rounds))


def without_labels(tokens: Tokens) -> Tokens:
    """The same tokens without loss, for samples that keep their place in the data order but teach nothing.

    Args:
        tokens: of a sample whose image is damaged.

    Returns:
        Ids with all labels ignored.
    """
    return Tokens(tokens.ids, (IGNORE,) * len(tokens.ids))


def mean_over_workers(value: Tensor) -> float:
    """Mean of a scalar over the process group.

    Args:
        value: of this worker.

    Returns:
        The mean.
    """
    value = value.clone()
    dist.all_reduce(value)
    return float(value) / dist.get_world_size()


_STATE = "progress.json"


def save_checkpoint(engine: Any, folder: Path, step: int) -> None:
    """Writes this worker's part of a checkpoint; every worker must call it.

    Args:
        engine: DeepSpeed's.
        folder: to write into.
        step: optimiser steps done.
    """
    engine.save_checkpoint(str(folder), tag="engine", save_latest=False, exclude_frozen_parameters=True)
    (folder / _STATE).write_text(json.dumps({"step": step, "workers": dist.get_world_size()}))


def checkpoint_workers(folder: Path) -> int:
    """How many workers wrote a checkpoint; ZeRO's parts fit the same number only.

    Args:
        folder: of the checkpoint.

    Returns:
        Their number.
    """
    return int(json.loads((folder / _STATE).read_text())["workers"])


def load_checkpoint(engine: Any, folder: Path) -> int:
    """Restores weights, optimiser and step count.

    Args:
        engine: DeepSpeed's.
        folder: of a checkpoint by the same number of workers.

    Returns:
        Optimiser steps done.
    """
    with only_weights():
        engine.load_checkpoint(str(folder), tag="engine", load_module_strict=False)
    return int(json.loads((folder / _STATE).read_text())["step"])


@contextmanager
def only_weights() -> Iterator[None]:
    """Within it, every ``torch.load`` refuses to run code, whatever its caller asks for.

    DeepSpeed's checkpoints hold tensors, plain values and a few of its own classes, which are named here.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        classes = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
        with torch.serialization.safe_globals([*classes, (_enum_member, "builtins.getattr")]):
            yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _enum_member(kind: type[Enum], name: str) -> Enum:
    """Stands in for the getattr by which early releases of Python 3.11 pickle the members of an enumeration."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise UnpicklingError(f"a checkpoint asks for attribute '{name}' of something that is no enumeration")
    return kind[name]


def gather_weights(engine: Any, connector: Connector) -> dict[str, Tensor]:
    """Full weights on worker 0, from wherever ZeRO keeps them; every worker must call it.

    Args:
        engine: DeepSpeed's.
        connector: what it trains.

    Returns:
        State dictionary on the CPU on worker 0, empty elsewhere.
    """
    import deepspeed

    partitioned = engine.zero_optimization_stage() == 3
    state: dict[str, Tensor] = {}
    for name, parameter in connector.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
            if dist.get_rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    return state
