"""Who proposes: Optuna's samplers by name, asked about a history that is told anew each time.

A proposal is a function of the space, the history and a seed alone, so that a search that was killed goes on as if it
had not been: there is no state of a sampler to lose.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from rllava.registry import Registry
from rllava.search.space import Choice, Configuration, Range, Setting, Value, applies

SAMPLERS: Registry[Callable[[int], optuna.samplers.BaseSampler]] = Registry("sampler", "rllava.samplers")
"""By the seed of one proposal."""

STARTUP = 5
"""Configurations that are drawn at random before a model of them says anything. Optuna's own 10 are half of a small
search (``benchmarks/sheets/search_replay.md``)."""

POPULATION = 10
"""Of NSGA-II."""

PATIENCE = 40
"""Times that a sampler is asked again when it proposes what cannot be built or was proposed before."""

DRAWS = 1000
"""At random, after that, before a space counts as searched to its end."""


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    # Of several objectives: MOTPE (Ozaki et al. 2022). Grouped, for settings that not every configuration has.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True
        )


def _nsga2(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)


SAMPLERS.register("tpe", _tpe)
SAMPLERS.register("nsga2", _nsga2)
SAMPLERS.register("random", lambda seed: optuna.samplers.RandomSampler(seed=seed))


class Choosable(Protocol):
    """What a sampler needs to know of a space, see :class:`rllava.search.space.SearchSpace`."""

    @property
    def settings(self) -> Sequence[Setting]: ...

    @property
    def finite(self) -> bool: ...

    def refusal(self, configuration: Configuration) -> str | None: ...

    def points(self) -> Iterator[Configuration]: ...

    def built(self) -> Iterator[tuple[Configuration, str | None]]: ...


@dataclass(frozen=True)
class Observed:
    """A configuration that was proposed before.

    Attributes:
        point: values of the objectives, larger is better; None: it is not known yet.
        notes: the sampler's own, from when it proposed it.
    """

    configuration: Configuration
    point: tuple[float, ...] | None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposed:
    """A configuration to try, with the sampler's own notes, which it wants to be told again."""

    configuration: Configuration
    notes: Mapping[str, Any]


def propose(
    space: Choosable, objectives: int, observed: Sequence[Observed], known: Sequence[Configuration], sampler: str,
    seed: int,
) -> Proposed | None:  # fmt: skip
    """The next configuration to try.

    Args:
        objectives: how many.
        observed: what the sampler learns from.
        known: every configuration proposed so far, none of which is proposed again.
        seed: of this proposal; another one for each.

    Returns:
        One that can be built; None: all of a finite space are known, or nothing new turns up in another.
    """
    seen = {_key(configuration) for configuration in known}
    study = _study(space, objectives, observed, SAMPLERS.get(sampler)(seed))
    for _ in range(PATIENCE):
        trial = study.ask()
        chosen = _suggest(space, trial)
        if _key(chosen) not in seen and space.refusal(chosen) is None:
            return Proposed(chosen, study.trials[trial.number].system_attrs)
        study.tell(trial, state=TrialState.FAIL)
    if space.finite:
        left = [chosen for chosen in space.points() if _key(chosen) not in seen]
        return Proposed(left[int(np.random.default_rng(seed).integers(len(left)))], {}) if left else None
    return _at_random(space, seen, seed)


def _at_random(space: Choosable, seen: set[str], seed: int) -> Proposed | None:
    """For a sampler that will not leave what is known: parts that can be built, learning rates at random.

    Returns:
        None where nothing new turns up: rates have so many digits, and a narrow range so many values.
    """
    rng = np.random.default_rng(seed)
    parts = [chosen for chosen, refusal in space.built() if refusal is None]
    for _ in range(DRAWS):
        chosen: dict[str, Value] = {}
        own = parts[int(rng.integers(len(parts)))]
        for setting in space.settings:
            if setting.name in own:
                chosen[setting.name] = own[setting.name]
            elif applies(setting, chosen) and not _is_part(setting):
                chosen[setting.name] = _drawn(setting, rng)
        if _key(chosen) not in seen:
            return Proposed(chosen, {})
    return None


def _is_part(setting: Setting) -> bool:
    return setting.name in ("encoders", "built", "partner", "language_model", "projector")


def _drawn(setting: Setting, rng: np.random.Generator) -> Value:
    if isinstance(setting, Choice):
        return setting.values[int(rng.integers(len(setting.values)))]
    return setting.nearest(math.exp(rng.uniform(math.log(setting.low), math.log(setting.high))))


def _study(
    space: Choosable, objectives: int, observed: Sequence[Observed], sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
    for seen in observed:
        study.add_trial(_frozen(space, seen))
    return study


def _frozen(space: Choosable, seen: Observed) -> FrozenTrial:
    settings = {s.name: s for s in space.settings if s.name in seen.configuration}
    distributions = {name: _distribution(setting) for name, setting in settings.items()}
    how: dict[str, Any] = {
        "params": {name: seen.configuration[name] for name in settings},
        "distributions": distributions,
        "system_attrs": dict(seen.notes),
    }
    if seen.point is None:
        return optuna.trial.create_trial(state=TrialState.RUNNING, **how)
    return optuna.trial.create_trial(state=TrialState.COMPLETE, values=list(seen.point), **how)


def _distribution(setting: Setting) -> BaseDistribution:
    if isinstance(setting, Choice):
        return CategoricalDistribution(setting.values)
    return FloatDistribution(setting.low, setting.high, log=True)


def _suggest(space: Choosable, trial: optuna.Trial) -> dict[str, Value]:
    chosen: dict[str, Value] = {}
    for setting in space.settings:
        if not applies(setting, chosen):
            continue
        if isinstance(setting, Range):
            chosen[setting.name] = setting.nearest(
                trial.suggest_float(setting.name, setting.low, setting.high, log=True)
            )
        else:
            picked = trial.suggest_categorical(setting.name, setting.values)
            assert picked is not None
            chosen[setting.name] = picked
    return chosen


def _key(configuration: Configuration) -> str:
    return repr(sorted(configuration.items()))
