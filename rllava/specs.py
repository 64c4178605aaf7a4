"""Specs: frozen descriptions of the steps of a sweep.

Placement, logging and storage are not in a spec, so the same result has the same fingerprint on a laptop and on a
cluster (see :mod:`rllava.fingerprint`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rllava.conditions.condition import Condition
from rllava.data.benchmarks import BenchmarkSpec
from rllava.data.images import PREPROCESSING_VERSION
from rllava.data.instructions import InstructionSpec
from rllava.encoders.base import EncoderSpec
from rllava.fingerprint import OnlyRounds
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.conversation import TEMPLATES
from rllava.model.language import LanguageModelSpec

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class StageSpec:
    """One training stage.

    Attributes:
        data: instruction data it learns from.
        train_language_model: stage 1 trains the projectors alone, stage 2 the language model as well.
        conversation: template, e.g. ``plain`` (stage 1) or ``vicuna_v1`` (stage 2).
        steps: optimiser steps.
        global_batch: samples per optimiser step, over all workers.
        micro_batch: samples per forward pass of one worker; gradients accumulate up to the global batch. The loss of
            such a portion is the mean over its labelled tokens (as in LLaVA), so that its size decides what a token
            weighs.
        learning_rate: peak.
        warmup: share of the steps with rising learning rate; cosine to zero after it.
        weight_decay: of AdamW.
        clip: largest gradient norm; 0: none.
        zero_stage: DeepSpeed ZeRO stage, 0 to 3.
        precision: of weights and activations in training.
        max_length: longest sequence in tokens, visual ones included; longer ones are cut.
        gradient_checkpointing: whether the language model keeps its layers' inputs alone and computes the rest again in
            the backward pass: a fraction of the memory for a third more time, to the same weights.
    """

    data: InstructionSpec
    train_language_model: bool
    conversation: str
    steps: int
    global_batch: int
    micro_batch: int
    learning_rate: float
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    zero_stage: OnlyRounds[int] = 2
    precision: Precision = "fp32"
    max_length: int = 2048
    gradient_checkpointing: OnlyRounds[bool] = False

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage: expected 0, 1, 2 or 3, got {self.zero_stage}")
        if self.steps < 1 or self.global_batch % self.micro_batch:
            raise ValueError("steps must be at least 1 and global_batch a multiple of micro_batch")

    def versions(self) -> Mapping[str, int]:
        """Of the conversation template."""
        return {"conversation": TEMPLATES.get(self.conversation).version}


@dataclass(frozen=True)
class ModelSpec:
    """A trained LLaVA: encoders, language model, both stages.

    Attributes:
        encoders: one, or several of equal token count (a token-interleaved ensemble).
        language_model: pretrained language model.
        stage1: feature alignment.
        stage2: visual instruction tuning.
        seed: of the projectors' initial weights.
        projector: kind of projector, per encoder.
    """

    encoders: tuple[EncoderSpec, ...]
    language_model: LanguageModelSpec
    stage1: StageSpec
    stage2: StageSpec
    seed: int = 0
    projector: str = "mlp2x_gelu"

    @property
    def name(self) -> str:
        """Readable name: the encoders', joined by ``+``."""
        return "+".join(encoder.name for encoder in self.encoders)

    def versions(self) -> Mapping[str, int]:
        """Of what is done to its training images."""
        return {"preprocessing": PREPROCESSING_VERSION}


@dataclass(frozen=True)
class WholeModel:
    """What a candidate is, whatever its name.

    Attributes:
        llava: as trained, here or elsewhere.
        encoders: that it is judged with.
    """

    llava: ModelSpec | CheckpointSpec
    encoders: tuple[EncoderSpec, ...]


@dataclass(frozen=True)
class EvalSpec:
    """One cell of the grid: a candidate on a benchmark under a condition.

    Attributes:
        candidate: its name in the records.
        model: the LLaVA as trained, here or elsewhere.
        encoders: what stands in for the trained encoders: the model's own (end-to-end) or others (plug-and-play).
        benchmark: data, task and sample list.
        condition: what the model is shown.
        batch_size: samples in flight together; 0: as many as memory holds. What it came to is in the facts of the
            records.
        compiled: whether the attacked model goes through torch.compile.
        smaller: this evaluation at the next smaller budget, if the condition starts from its images.
        sources: evaluations at the same budget whose images this one's condition starts from.
    """

    candidate: str
    model: ModelSpec | CheckpointSpec
    encoders: tuple[EncoderSpec, ...]
    benchmark: BenchmarkSpec
    condition: Condition
    batch_size: OnlyRounds[int]
    compiled: OnlyRounds[bool] = False
    smaller: "EvalSpec | None" = None
    sources: tuple["EvalSpec", ...] = ()

    @property
    def name(self) -> str:
        """Readable name of the records artifact."""
        return f"{self.candidate}-{self.benchmark.name}-{self.condition.short}"

    @property
    def precisions(self) -> tuple[str, ...]:
        """In which precisions the model is asked: that of the clean answers first."""
        return self.condition.precisions(self.benchmark.task.kind)

    @property
    def seed(self) -> int | None:
        """Training seed; None for a checkpoint from elsewhere."""
        return self.model.seed if isinstance(self.model, ModelSpec) else None

    @property
    def whole_model(self) -> WholeModel:
        """The candidate without its name."""
        return WholeModel(self.model, self.encoders)

    def versions(self) -> Mapping[str, int]:
        """Of what is done to images before a model sees them, and of what the condition depends on."""
        return {"preprocessing": PREPROCESSING_VERSION, **self.condition.versions_for(self.benchmark.task.kind)}
