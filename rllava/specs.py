"""Specs: frozen descriptions of the steps of a sweep.

Placement, logging and storage are not in a spec, so the same result has the same fingerprint on a laptop and on a
cluster (see :mod:`rllava.fingerprint`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from rllava.attacks.rounds import Precision
from rllava.conditions.condition import Condition
from rllava.data.benchmarks import BenchmarkSpec
from rllava.data.images import PREPROCESSING_VERSION, Fit
from rllava.data.instructions import InstructionSpec
from rllava.encoders.base import EncoderSpec
from rllava.fingerprint import OnlyRounds
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.conversation import TEMPLATES
from rllava.model.language import LanguageModelSpec
from rllava.pinned import MadeBy
from rllava.training.objectives import OBJECTIVES


@dataclass(frozen=True)
class Rates:
    """Peak learning rates of a LLaVA's parts; a part without one stays as it is."""

    projectors: float | None = None
    language_model: float | None = None
    encoders: float | None = None

    def __post_init__(self) -> None:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        if not any(rate is not None for rate in named.values()):
            raise ValueError(f"rates: nothing is trained; give one of {', '.join(named)} a learning rate")
        for name, rate in named.items():
            if rate is not None and not rate > 0:
                raise ValueError(f"rates: {name} has {rate}; expected a number above 0, or None to leave it as it is")


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
        data: instruction data it learns from.
        rates: what it trains, and how fast: LLaVA's first stage the projectors alone, its second the language model as
            well.
        conversation: template, e.g. ``plain`` (first stage) or ``vicuna_v1`` (second).
        global_batch: samples per optimiser step, over all workers.
        micro_batch: samples per forward pass of one worker; gradients accumulate up to the global batch. The loss of
            such a portion is the mean over its labelled tokens (as in LLaVA), so that its size decides what a token
            weighs.
        objective: name in :data:`rllava.training.objectives.OBJECTIVES`.
        warmup: share of the steps with rising learning rate; cosine to zero after it.
        warmup_from_zero: whether the first step's learning rate is 0, as in Hugging Face's schedule; else the warm-up
            is one step ahead of that.
        clip: largest gradient norm; 0: none.
        fit: how images become square: padded, or cropped as CLIP's own pre-processing does. What is attacked later is
            padded, whatever it was trained with.
        zero_stage: DeepSpeed ZeRO stage, 0 to 3.
        precision: of weights and activations in training.
        max_length: longest sequence in tokens, visual ones included; longer ones are cut.
        gradient_checkpointing: whether the language model keeps its layers' inputs alone and computes the rest again in
            the backward pass: a fraction of the memory for a third more time, to the same weights.
    """

    data: InstructionSpec
    rates: Rates
    conversation: str
    steps: int
    global_batch: int
    micro_batch: int
    objective: str = "llava"
    warmup: float = 0.03
    warmup_from_zero: bool = False
    weight_decay: float = 0.0
    clip: float = 1.0
    fit: Fit = "pad"
    zero_stage: OnlyRounds[int] = 2
    precision: Precision = "float32"
    max_length: int = 2048
    gradient_checkpointing: OnlyRounds[bool] = False

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage: expected 0, 1, 2 or 3, got {self.zero_stage}")
        if self.steps < 1 or self.global_batch % self.micro_batch:
            raise ValueError("steps must be at least 1 and global_batch a multiple of micro_batch")

    def versions(self) -> Mapping[str, int]:
        """Of the conversation template and of the objective."""
        objective = OBJECTIVES.get(self.objective)
        return {"conversation": TEMPLATES.get(self.conversation).version, "objective": objective.version}


@dataclass(frozen=True)
class ModelSpec:
    """A trained LLaVA: encoders, language model, stages.

    Attributes:
        encoders: one, or several of equal token count (a token-interleaved ensemble), as they are before training.
        stages: one after the other; each goes on from what the one before has trained. Questions are asked in the last
            one's conversation template.
        seed: of the projectors' initial weights.
        projector: kind of projector, per encoder.
    """

    encoders: tuple[EncoderSpec, ...]
    language_model: LanguageModelSpec
    stages: tuple[Stage, ...]
    seed: int = 0
    projector: str = "mlp2x_gelu"

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages: a model is trained in at least one; projectors know nothing before")

    @property
    def name(self) -> str:
        """Readable name: the encoders', joined by ``+``."""
        return "+".join(encoder.name for encoder in self.encoders)

    @property
    def conversation(self) -> str:
        """Template in which it is asked."""
        return self.stages[-1].conversation

    @property
    def own_encoders(self) -> tuple[EncoderSpec, ...]:
        """Its encoders as its training leaves them: the same, unless a stage trains them."""
        if all(stage.rates.encoders is None for stage in self.stages):
            return self.encoders
        return tuple(replace(spec, weights=MadeBy(self, index)) for index, spec in enumerate(self.encoders))

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

    @property
    def recipe(self) -> WholeModel:
        """The candidate without its name and its training seed."""
        if not isinstance(self.model, ModelSpec) or self.model.seed == 0:
            return self.whole_model
        model = replace(self.model, seed=0)
        own = dict(zip(self.model.own_encoders, model.own_encoders, strict=True))
        return WholeModel(model, tuple(own.get(encoder, encoder) for encoder in self.encoders))

    def versions(self) -> Mapping[str, int]:
        """Of what is done to images before a model sees them, and of what the condition depends on."""
        return {"preprocessing": PREPROCESSING_VERSION, **self.condition.versions_for(self.benchmark.task.kind)}
