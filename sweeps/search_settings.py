"""Options of a search. Nothing here imports torch or Ray: help and mistakes in numbers are told at once."""

from dataclasses import dataclass, field
from typing import Literal

from rllava.errors import UserError
from sweeps.options import QuestionOptions, check_numbers

SWEEP = "search"


@dataclass(frozen=True)
class Stage:
    """Settings of a training stage to choose from; what is left out is the preset's.

    Attributes:
        steps: numbers of optimiser steps.
        rate: least and largest peak learning rate of the projectors and of all that learns as fast as they, chosen on a
            logarithmic scale.
    """

    steps: tuple[int, ...] = ()
    rate: tuple[float, float] | None = None


@dataclass(frozen=True)
class Options(QuestionOptions):
    """The search; lists are given as ``--objectives clean robust@8``.

    Attributes:
        encoders: candidates to choose from, instead of the preset's: a, a+b or b@a.
        ensembles: whether every two single encoders are tried together as well (a+b).
        plugged: whether every one is tried in the LLaVA of every other as well (b@a).
        language_models: names or paths to choose from.
        projectors: to choose from: linear, mlp2x_gelu or another number of layers.
        align: settings of the first training stage.
        instruct: settings of the last training stage.
        trains: what the last stage trains, to choose from: projectors, language_model (with them) or encoders (as
            well).
        language_model_rate: least and largest peak learning rate of the language model, where it is trained.
        encoder_rate: least and largest peak learning rate of the encoders, where they are trained.
        objectives: two or three of clean, robust@EPS, corruption, jailbreak@EPS, gpu_hours and parameters.
        sampler: tpe (of several objectives), nsga2 or random.
        sampler_seed: another one is another search of the same study.
        rungs: samples of each benchmark that a configuration is scored on, rung by rung; the last one leaves some for
            the final scores.
        rung_steps: share of the training steps made at each rung; the last is 1.
        one_in: of the configurations that finished a rung, one in so many goes on.
        max_trials: trials that are begun, i.e. configurations at rungs.
        max_hours: of one worker (a GPU where there are any), spent on trainings and evaluations.
        final_seeds: trainings with which the front is scored beside the search's own.
        name: of the study and of its report.
    """

    ensembles: bool | None = None
    plugged: bool | None = None
    language_models: tuple[str, ...] = ()
    projectors: tuple[str, ...] = ()
    align: Stage = field(default_factory=Stage)
    instruct: Stage = field(default_factory=Stage)
    trains: tuple[Literal["projectors", "language_model", "encoders"], ...] = ()
    language_model_rate: tuple[float, float] | None = None
    encoder_rate: tuple[float, float] | None = None
    objectives: tuple[str, ...] = ()
    sampler: str = "tpe"
    sampler_seed: int = 0
    rungs: tuple[int, ...] = ()
    rung_steps: tuple[float, ...] = ()
    one_in: int = 3
    max_trials: int | None = None
    max_hours: float | None = None
    final_seeds: tuple[int, ...] = ()
    name: str = SWEEP


def check_search_numbers(options: Options) -> None:
    """Refuses numbers that no recipe makes right.

    Raises:
        UserError: naming the option and what is expected.
    """
    check_numbers(options)
    if not options.name or not options.name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"--name {options.name}: expected letters, digits, - and _")
    if options.max_trials is not None and options.max_trials < 1:
        raise UserError(f"--max-trials {options.max_trials}: expected at least 1")
    if options.max_hours is not None and not options.max_hours > 0:
        raise UserError(f"--max-hours {options.max_hours:g}: expected a number above 0")
    if options.one_in < 2:
        raise UserError(f"--one-in {options.one_in}: expected at least 2")
    if not 0 <= options.sampler_seed < 1 << 20:
        raise UserError(f"--sampler-seed {options.sampler_seed}: expected a number from 0 to {(1 << 20) - 1}")
    if options.first_samples is not None:
        raise UserError("--first-samples: a search takes as many as --rungs say; leave it out")
    if len(set(options.seeds)) != 1:
        raise UserError("--seeds: a search trains with one; --final-seeds trains its front with more")
    if set(options.final_seeds) & set(options.seeds):
        raise UserError(f"--final-seeds: the search itself trains with {options.seeds[0]}; leave that one out")
