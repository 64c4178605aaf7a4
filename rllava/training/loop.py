"""One training stage by DeepSpeed, in a process group that is already there; this file knows no Ray.

What a stage trains is in the engine; encoders that it does not train stay outside, so that no ZeRO stage partitions
them.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

import functools
import hashlib
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
from torch import Tensor, nn

from rllava.data.stream import MicroBatch
from rllava.encoders.base import Encoder, encode
from rllava.errors import UserError
from rllava.model.conversation import IGNORE, TEMPLATES, Tokens, pieces, tokenize
from rllava.model.llava import Connector
from rllava.specs import Stage
from rllava.training.extensions import extensions_at_hand
from rllava.training.objectives import OBJECTIVES, Portion
from rllava.training.together import average


@dataclass(frozen=True)
class Progress:
    """What a stage reports after an optimiser step.

    Attributes:
        loss: mean over the step's portions on all workers.
        damaged: damaged images seen so far by this worker since the stage (re)started.
    """

    step: int
    loss: float
    learning_rate: float
    damaged: int


class Trainee(nn.Module):
    """A LLaVA in training, as a function from images and texts to losses."""

    def __init__(self, connector: Connector, encoders: Sequence[Encoder], trains_encoders: bool) -> None:
        super().__init__()
        self.connector = connector
        self.trained_encoders = nn.ModuleList(encoders if trains_encoders else ())
        self._encoders = tuple(encoders)  # a tuple is no part of a module: frozen ones stay where they are

    def forward(self, pixels_BCHW: Tensor, tokens: Sequence[Tokens], max_length: int) -> tuple[Tensor, Tensor]:
        """Losses of some samples; see :data:`rllava.training.objectives.Model`.

        Args:
            pixels_BCHW: in [0, 1].

        Returns:
            Summed cross-entropy over labelled tokens, and their number, [B] each.
        """
        wanted = torch.is_grad_enabled() and (len(self.trained_encoders) > 0 or pixels_BCHW.requires_grad)
        with torch.set_grad_enabled(wanted):
            features = encode(self._encoders, pixels_BCHW)
        losses: tuple[Tensor, Tensor] = self.connector(features, tokens, max_length)
        return losses

    def parts(self) -> dict[str, list[nn.Module]]:
        """What a stage may train, by its name in :class:`rllava.specs.Rates`."""
        return {
            "projectors": [self.connector.projectors],
            "language_model": [self.connector.language_model],
            "encoders": list(self.trained_encoders),
        }


def deepspeed_config(stage: Stage, workers: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a stage."""
    return {
        "train_batch_size": stage.global_batch,
        "train_micro_batch_size_per_gpu": stage.micro_batch,
        "gradient_accumulation_steps": stage.global_batch // (stage.micro_batch * workers),
        "gradient_clipping": stage.clip,
        "zero_optimization": {"stage": stage.zero_stage, "overlap_comm": False, "contiguous_gradients": True},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": stage.precision == "bfloat16"},
        "fp16": {"enabled": stage.precision == "float16"},
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
    }


def learning_rate(stage: Stage, peak: float, step: int) -> float:
    """Linear warm-up, then cosine to zero (LLaVA 1.5).

    Args:
        step: from 0.

    Returns:
        The learning rate of that step.
    """
    warm = math.ceil(stage.warmup * stage.steps)
    if step < warm:
        return peak * (step if stage.warmup_from_zero else step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, stage.steps - warm)))


def train_stage(
    stage: Stage,
    encoders: Sequence[Encoder],
    connector: Connector,
    tokenizer: Any,
    batches: Callable[[int], Iterator[MicroBatch]],
    *,
    seed: int = 0,
    resume: Path | None = None,
    checkpoint_every: int = 0,
    save: Callable[[Callable[[Path], None], Progress], None] = lambda write, progress: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Tensor]:
    """Trains one stage.

    Args:
        encoders: towers, with their weights from before.
        connector: projectors and language model, with theirs.
        batches: from an optimiser step to this worker's portions from there on.
        seed: of whatever an objective draws.
        resume: folder of a checkpoint of this stage, or None.
        checkpoint_every: optimiser steps between checkpoints; 0: none.
        save: called on every worker when a checkpoint is due, with a function that writes this worker's part into a
            folder.
        report: called on every worker after each step.

    Returns:
        Full weights of the connector, and under ``encoders.PLACE.`` of the encoders that were trained, on worker 0;
        empty elsewhere.
    """
    trainee = Trainee(connector, encoders, stage.rates.encoders is not None)
    engine, peaks = start_engine(stage, trainee)
    done = load_training_state(engine, resume) if resume is not None else 0
    if not trainee.trained_encoders:  # else the engine has placed them
        for encoder in encoders:
            encoder.to(engine.device, getattr(torch, stage.precision))
    accumulation = engine.gradient_accumulation_steps()
    portions = batches(done)
    damaged = 0
    for step in range(done, stage.steps):
        rates = [learning_rate(stage, peak, step) for peak in peaks]
        for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        loss = torch.zeros((), device=engine.device)
        for _ in range(accumulation):
            rows = next(portions)
            damaged += sum(reason is not None for reason in rows.damaged)
            loss += portion_loss(engine, tokenizer, stage, rows, seed) / accumulation
        progress = Progress(step + 1, float(average(loss.clone())), rates[0], damaged)
        report(progress)
        if checkpoint_every and (step + 1) % checkpoint_every == 0 and step + 1 < stage.steps:
            save(functools.partial(save_training_state, engine, step=progress.step), progress)
    return gather_weights(engine, trainee)


def start_engine(stage: Stage, trainee: Trainee) -> tuple[Any, list[float]]:
    """Freezes what the stage does not train and wraps the model.

    Returns:
        A DeepSpeed engine, and the peak learning rate of each group of its optimiser. Parts that learn equally fast
        are one group.
    """
    import deepspeed  # seconds to import, and only training needs it

    connector = trainee.connector
    connector.train()
    if stage.gradient_checkpointing:
        recompute_layers(connector)
    groups: dict[float, list[nn.Parameter]] = {}
    for part, modules in trainee.parts().items():
        rate = getattr(stage.rates, part)
        for module in modules:
            module.requires_grad_(rate is not None)
            if rate is not None:
                groups.setdefault(rate, []).extend(module.parameters())
    optimiser = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for rate, parameters in groups.items()], weight_decay=stage.weight_decay
    )
    whole = {name: buffer.clone() for name, buffer in trainee.named_buffers() if buffer.is_floating_point()}
    with extensions_at_hand():
        engine, *_ = deepspeed.initialize(
            model=trainee,
            optimizer=optimiser,
            config=deepspeed_config(stage, dist.get_world_size()),
            dist_init_required=False,
        )
    # In half precision it rounds buffers too; those of rotary embeddings then err by more the later a token stands.
    for name, buffer in trainee.named_buffers():
        if name in whole:
            buffer.data = whole[name].to(buffer.device)
    return engine, list(groups)


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


def portion_loss(engine: Any, tokenizer: Any, stage: Stage, rows: MicroBatch, seed: int) -> Tensor:
    """Forward and backward pass of one portion; the engine steps when enough have accumulated.

    Returns:
        Loss of the objective, detached.
    """
    pixels_BCHW = torch.from_numpy(rows.pixels_BHWC).to(engine.device).permute(0, 3, 1, 2).float() / 255.0
    tokens = [
        without_labels(tokens) if damaged is not None else tokens
        for tokens, damaged in zip(
            (conversation_tokens(tokenizer, stage.conversation, text) for text in rows.conversations),
            rows.damaged,
            strict=True,
        )
    ]
    seeds = [seed_of(seed, position) for position in rows.positions]
    loss = OBJECTIVES.get(stage.objective).loss(engine, Portion(pixels_BCHW, tokens, stage.max_length, seeds))
    engine.backward(loss)
    engine.step()
    return loss.detach()


def seed_of(run: int, position: int) -> int:
    """The seed of a sample's draws, whichever worker it is on.

    Args:
        position: of the sample in the stage's endless stream.

    Returns:
        Below 2^63.
    """
    return int.from_bytes(hashlib.sha256(f"{run} {position}".encode()).digest()[:8], "big") >> 1


def conversation_tokens(tokenizer: Any, template: str, text: str) -> Tokens:
    """Tokens of a conversation in LLaVA's JSON format.

    Args:
        template: name of a conversation template.
        text: JSON list of ``{"from": "human" | "gpt", "value": ...}``.
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


_STATE = "progress.json"


def save_training_state(engine: Any, folder: Path, step: int) -> None:
    """Writes this worker's part of a checkpoint; every worker must call it."""
    engine.save_checkpoint(str(folder), tag="engine", save_latest=False, exclude_frozen_parameters=True)
    (folder / _STATE).write_text(json.dumps({"step": step, "workers": dist.get_world_size()}))


def checkpoint_workers(folder: Path) -> int:
    """How many workers wrote a checkpoint; ZeRO's parts fit the same number only."""
    return int(json.loads((folder / _STATE).read_text())["workers"])


def load_training_state(engine: Any, folder: Path) -> int:
    """Restores weights, optimiser and step count.

    Args:
        folder: of a checkpoint by the same number of workers.
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


def gather_weights(engine: Any, trainee: Trainee) -> dict[str, Tensor]:
    """Full weights on worker 0, from wherever ZeRO keeps them; every worker must call it.

    Returns:
        State dictionary on the CPU on worker 0, empty elsewhere.
    """
    import deepspeed

    partitioned = engine.zero_optimization_stage() == 3
    state: dict[str, Tensor] = {}
    for name, parameter in trainee.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
            if dist.get_rank() == 0:
                kept = name.removeprefix("connector.").replace("trained_encoders.", "encoders.")
                state[kept] = parameter.detach().cpu().clone()
    if dist.get_rank() == 0:  # what an encoder keeps beside its parameters belongs to its weights
        state |= {
            f"encoders.{name}": buffer.detach().cpu().clone()
            for name, buffer in trainee.trained_encoders.state_dict().items()
            if f"encoders.{name}" not in state
        }
    return state
