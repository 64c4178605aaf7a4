"""What a search chooses from: whole LLaVAs, of the parts and settings that a base recipe may have replaced.

A configuration is what one point of the space sets, by name: settings that another one makes senseless (a learning rate
of what is not trained, the partner of an encoder that stands alone) are not in it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from rllava.encoders import EncoderSpec
from rllava.errors import UserError
from rllava.model.language import LanguageModelSpec, language_model_spec
from rllava.model.llava import projector_depth
from rllava.recipes.candidate import Candidate, parse_candidate
from rllava.specs import ModelSpec, Rates, Stage

Value = str | int | float
Configuration = Mapping[str, Value]

ALONE, ENSEMBLE, PLUGGED = "alone", "ensemble", "plugged"
"""How encoders are put together."""

Trained = Literal["projectors", "language_model", "encoders"]
TRAINED: tuple[Trained, ...] = ("projectors", "language_model", "encoders")
"""What the last stage may train, each with those before it."""

MOST_TOLD = 3
"""Reasons named of a space in which nothing can be built."""

_DIGITS = 3
"""Significant digits of a learning rate: the name of a configuration tells it whole."""


@dataclass(frozen=True)
class StageSpace:
    """What a search may change of a training stage; what is left out stays as in the preset.

    Attributes:
        steps: numbers of optimiser steps.
        rate: least and largest peak learning rate, chosen on a logarithmic scale: of the projectors and of all that the
            stage trains as fast as them.
    """

    steps: tuple[int, ...] = ()
    rate: tuple[float, float] | None = None


@dataclass(frozen=True)
class Space:
    """What a search chooses from; what is left out stays as in the preset.

    Attributes:
        encoders: candidates as the encoder ablation names them: a, a+b or b@a; by default the preset's.
        ensembles: whether every two of them are tried together as well (a+b).
        plugged: whether every one of them is tried in the LLaVA of every other as well (b@a).
        language_models: names or paths.
        projectors: linear, mlp2x_gelu or another number of layers.
        align: first stage.
        instruct: last stage.
        trains: what the last stage trains: projectors alone, the language_model with them, or the encoders as well.
        language_model_rate: least and largest peak learning rate of the language model in the last stage, where it is
            trained.
        encoder_rate: least and largest peak learning rate of the encoders in the last stage, where they are trained.
    """

    encoders: tuple[str, ...] = ()
    ensembles: bool = False
    plugged: bool = False
    language_models: tuple[str, ...] = ()
    projectors: tuple[str, ...] = ()
    align: StageSpace = field(default_factory=StageSpace)
    instruct: StageSpace = field(default_factory=StageSpace)
    trains: tuple[Trained, ...] = ()
    language_model_rate: tuple[float, float] | None = None
    encoder_rate: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, values in (("align.steps", self.align.steps), ("instruct.steps", self.instruct.steps)):
            if any(steps < 1 for steps in values):
                raise UserError(f"--{name} {' '.join(map(str, values))}: expected at least 1 step")
        rates = {
            "align.rate": self.align.rate,
            "instruct.rate": self.instruct.rate,
            "language-model-rate": self.language_model_rate,
            "encoder-rate": self.encoder_rate,
        }
        for name, rate in rates.items():
            if rate is not None and not 0 < rate[0] <= rate[1] < math.inf:
                raise UserError(f"--{name} {rate[0]:g} {rate[1]:g}: expected two numbers above 0, the smaller first")


@dataclass(frozen=True)
class Choice:
    """A setting with some values.

    Attributes:
        when: another setting and the values of it for which there is this one; None: always.
    """

    name: str
    values: tuple[Value, ...]
    when: tuple[str, tuple[Value, ...]] | None = None


@dataclass(frozen=True)
class Range:
    """A setting between two numbers, on a logarithmic scale."""

    name: str
    low: float
    high: float
    when: tuple[str, tuple[Value, ...]] | None = None

    def nearest(self, value: float) -> float:
        """The value to as many digits as are told of it, kept inside."""
        return min(max(rounded(value), self.low), self.high)


Setting = Choice | Range


def applies(setting: Setting, chosen: Configuration) -> bool:
    """Whether what was chosen before it leaves room for a setting."""
    return setting.when is None or chosen.get(setting.when[0]) in setting.when[1]


def rounded(rate: float) -> float:
    """A learning rate to as many digits as are told of it."""
    return float(f"{rate:.{_DIGITS - 1}e}")


@dataclass(frozen=True)
class Parts:
    """Parts by name, where other specs stand for them, e.g. those whose weights have been looked at."""

    encoders: Mapping[str, EncoderSpec] = field(default_factory=dict)
    language_models: Mapping[str, LanguageModelSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchSpace:
    """A space over a base recipe.

    Attributes:
        model: gives what the space leaves out.
        names: candidates to choose from where the space names none.
        parts: that stand in for what names say.
        too_large: says of a candidate why no machine holds it; None: one does.
    """

    space: Space
    model: ModelSpec
    names: tuple[str, ...]
    parts: Parts = field(default_factory=Parts)
    too_large: Callable[[Candidate], str | None] | None = None

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """In the order in which they are chosen: one that depends on another comes after it."""
        space = self.space
        names = tuple(dict.fromkeys(space.encoders or self.names))
        singles = tuple(name for name in names if not set("+@") & set(name))
        together = [ALONE, *([ENSEMBLE] if space.ensembles else []), *([PLUGGED] if space.plugged else [])]
        found: list[Setting] = [Choice("encoders", names)]
        if len(together) > 1:
            found += [
                Choice("built", tuple(together), ("encoders", singles)),
                Choice("partner", singles, ("built", tuple(together[1:]))),
            ]
        models = tuple(dict.fromkeys(language_model_spec(name).name for name in space.language_models))
        trains = tuple(dict.fromkeys(space.trains))
        optional: list[tuple[str, tuple[Value, ...]]] = [
            ("language_model", models),
            ("projector", tuple(dict.fromkeys(space.projectors))),
            ("align_steps", tuple(dict.fromkeys(space.align.steps))),
            ("instruct_steps", tuple(dict.fromkeys(space.instruct.steps))),
            ("trains", trains),
        ]
        found += [Choice(name, values) for name, values in optional if values]
        with_language_model, with_encoders = (("trains", TRAINED[place:]) if trains else None for place in (1, 2))
        ranges: list[tuple[str, tuple[float, float] | None, tuple[str, tuple[Value, ...]] | None]] = [
            ("align_rate", space.align.rate, None),
            ("instruct_rate", space.instruct.rate, None),
            ("language_model_rate", space.language_model_rate, with_language_model),
            ("encoder_rate", space.encoder_rate, with_encoders),
        ]
        found += [Range(name, *rate, when) for name, rate, when in ranges if rate is not None]
        return tuple(found)

    def refusal(self, configuration: Configuration) -> str | None:
        """Why a configuration cannot be built, or is another one in other words; None: it can."""
        partner, encoder = configuration.get("partner"), configuration.get("encoders")
        if partner is not None and partner == encoder:
            return f"{encoder} with itself"
        if configuration.get("built") == ENSEMBLE:
            order = [name for setting in self.settings if setting.name == "partner" for name in setting.values]  # type: ignore[union-attr]
            if order.index(str(partner)) < order.index(str(encoder)):
                return f"{encoder}+{partner}: {partner}+{encoder} in another order"
        try:
            candidate = self.candidate(configuration)
        except (UserError, ValueError) as error:
            return str(error)
        return None if self.too_large is None else self.too_large(candidate)

    def candidate(self, configuration: Configuration, share: float = 1.0) -> Candidate:
        """What a configuration describes.

        Args:
            share: of the training steps that are made.

        Raises:
            UserError: if it cannot be built.
        """
        found = parse_candidate(encoders_of(configuration), self._model(configuration, share))
        own = self.parts.encoders
        model = found.model
        assert isinstance(model, ModelSpec)
        pinned = replace(model, encoders=tuple(own.get(spec.name, spec) for spec in model.encoders))
        told = ",".join(
            [
                *(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                  for key, value in self._unusual(configuration).items()),
                *([f"steps x{share:g}"] if share != 1 else []),
            ]
        )  # fmt: skip
        return replace(
            found,
            name=f"{found.name}:{told.replace(' ', '')}" if told else found.name,
            model=pinned,
            used=tuple(own.get(spec.name, spec) for spec in found.used),
        )

    def _unusual(self, configuration: Configuration) -> dict[str, Value]:
        """Settings that are not the preset's: what is as there bears the name that it has in any sweep."""
        usual = self.usual()
        parts = ("encoders", "built", "partner")
        return {key: value for key, value in configuration.items() if key not in parts and usual.get(key) != value}

    def usual(self) -> dict[str, Value | None]:
        """What the preset has, by setting."""
        align, instruct = self.model.stages[0], self.model.stages[-1]
        rates = instruct.rates
        trains = next((name for name in reversed(TRAINED) if getattr(rates, name) is not None), None)
        return {
            "language_model": self.model.language_model.name,
            "projector": self.model.projector,
            "align_steps": align.steps,
            "instruct_steps": instruct.steps,
            "trains": trains,
            "align_rate": align.rates.projectors,
            "instruct_rate": rates.projectors,
            "language_model_rate": rates.language_model,
            "encoder_rate": rates.encoders,
        }

    def _model(self, chosen: Configuration, share: float) -> ModelSpec:
        align, instruct = self.model.stages[0], self.model.stages[-1]
        first_steps, last_steps = chosen.get("align_steps"), chosen.get("instruct_steps")
        faster = _faster(align.rates, chosen, "align_rate")
        align = replace(align, **_steps(first_steps, align, share), rates=faster)
        rates = _last_rates(instruct.rates, chosen)
        instruct = replace(instruct, **_steps(last_steps, instruct, share), rates=rates)
        between = [replace(stage, **_steps(None, stage, share)) for stage in self.model.stages[1:-1]]
        stages = (align, *between, instruct) if len(self.model.stages) > 1 else (instruct,)
        name = chosen.get("language_model")
        language_model = self.model.language_model if name is None else self._language_model(str(name))
        projector = str(chosen.get("projector", self.model.projector))
        projector_depth(projector)
        return replace(self.model, stages=stages, language_model=language_model, projector=projector)

    def _language_model(self, name: str) -> LanguageModelSpec:
        if name in self.parts.language_models:
            return self.parts.language_models[name]
        return next(spec for spec in map(language_model_spec, self.space.language_models) if spec.name == name)

    def built(self) -> Iterator[tuple[Configuration, str | None]]:
        """Every choice of parts (encoders, language model, projector), and why it cannot be built, if so."""
        parts = [s for s in self.settings if s.name in ("encoders", "built", "partner", "language_model", "projector")]
        for chosen in _products(parts):
            yield chosen, self.refusal(chosen)

    def check(self) -> None:
        """Refuses a space with nothing in it.

        Raises:
            UserError: if nothing can be built, with reasons, a name is unknown, or a rate is of what is not trained.
        """
        self._check_rates()
        refusals = []
        for _, refusal in self.built():
            if refusal is None:
                return
            refusals.append(refusal)
        told = "; ".join(dict.fromkeys(refusals))
        shown = "; ".join(list(dict.fromkeys(refusals))[:MOST_TOLD]) if refusals else "no encoders are named"
        more = f"; and {len(refusals) - MOST_TOLD} more" if len(told) > len(shown) else ""
        raise UserError(f"--encoders: nothing in this space can be built ({shown}{more})")

    def _check_rates(self) -> None:
        usual = self.usual()["trains"]
        most = max((TRAINED.index(name) for name in self.space.trains or (usual,) if name is not None), default=0)
        for place, rate in ((1, self.space.language_model_rate), (2, self.space.encoder_rate)):
            if rate is not None and place > most:
                option = ("language-model-rate", "encoder-rate")[place - 1]
                raise UserError(f"--{option}: the last stage does not train it; add {TRAINED[place]} to --trains")

    @property
    def finite(self) -> bool:
        """Whether it has so many configurations and no more."""
        return all(isinstance(setting, Choice) or setting.low == setting.high for setting in self.settings)

    def points(self, at: Mapping[str, Value | None] | None = None) -> Iterator[Configuration]:
        """All configurations of a finite space that can be built; of another one, those at some values of its ranges.

        Args:
            at: values of ranges, by name; None: of each its least.
        """

        def fixed(setting: Setting) -> Choice:
            if isinstance(setting, Choice):
                return setting
            value = setting.low if at is None or setting.low == setting.high else at.get(setting.name)
            inside = isinstance(value, float) and setting.low <= value <= setting.high
            return Choice(setting.name, (setting.nearest(value),) if inside else (), setting.when)  # type: ignore[arg-type]

        for chosen in _products([fixed(setting) for setting in self.settings]):
            if self.refusal(chosen) is None:
                yield chosen


def encoders_of(configuration: Configuration) -> str:
    """The candidate's encoders in the grammar of the ablation."""
    encoder, partner = configuration["encoders"], configuration.get("partner")
    built = configuration.get("built", ALONE)
    return str(encoder) if built == ALONE else f"{encoder}+{partner}" if built == ENSEMBLE else f"{partner}@{encoder}"


def _products(settings: list[Any]) -> Iterator[dict[str, Value]]:
    """Every choice, conditions kept; learning rates come by way of choices of one value."""

    def extend(chosen: dict[str, Value], rest: list[Any]) -> Iterator[dict[str, Value]]:
        if not rest:
            yield chosen
            return
        setting, *others = rest
        if not applies(setting, chosen):
            yield from extend(chosen, others)
            return
        for value in setting.values:
            yield from extend({**chosen, setting.name: value}, others)

    return extend({}, settings)


def _steps(chosen: Value | None, stage: Stage, share: float) -> dict[str, Any]:
    steps = stage.steps if chosen is None else int(chosen)
    return {"steps": max(1, round(share * steps))}


def _faster(rates: Rates, chosen: Configuration, name: str) -> Rates:
    """Rates with another one for the projectors, and for what learned as fast as they."""
    rate = chosen.get(name)
    if rate is None:
        return rates
    before = rates.projectors
    changed = {part: rate for part in TRAINED if getattr(rates, part) is not None and getattr(rates, part) == before}
    return replace(rates, **{"projectors": rate, **changed})  # type: ignore[arg-type]


def _last_rates(rates: Rates, chosen: Configuration) -> Rates:
    found = _faster(rates, chosen, "instruct_rate")
    trains = chosen.get("trains")
    if trains is not None:
        kept = TRAINED[: 1 + TRAINED.index(trains)]
        # What the preset does not train learns as fast as the projectors, unless a rate of its own is chosen.
        found = Rates(**{part: getattr(found, part) or found.projectors for part in kept})
    own = {"language_model": chosen.get("language_model_rate"), "encoders": chosen.get("encoder_rate")}
    return replace(found, **{part: rate for part, rate in own.items() if rate is not None})  # type: ignore[arg-type]
