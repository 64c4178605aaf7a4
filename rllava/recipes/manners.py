"""The embedded data with manners, and LLaVAs that have some: what jailbreaks are tried on in minutes."""

from collections.abc import Callable
from dataclasses import replace

from rllava.data.benchmarks import BENCHMARKS
from rllava.data.instructions import INSTRUCTIONS
from rllava.recipes.candidate import Candidate
from rllava.recipes.grid import PRESETS, Grid
from rllava.recipes.tiny import tiny
from rllava.specs import ModelSpec


def manners() -> Grid:
    """The candidates of the encoder ablation, first taught to answer whatever they are asked, then to refuse.

    As with large models, what is refused was learned before: a model without the words could not be made to say them.
    """
    whole = candid()

    def taught(model: ModelSpec) -> ModelSpec:
        last = replace(model.stages[-1], data=INSTRUCTIONS.get("easy_manners"))
        return replace(model, stages=(*model.stages, last))

    return _with_models(
        replace(whole, name="manners", about="the embedded data, and LLaVAs that learned to refuse rude requests"),
        taught,
    )


def candid() -> Grid:
    """The same before they are taught to refuse: what they would say."""
    whole = tiny()

    def answering(model: ModelSpec) -> ModelSpec:
        align, instruct = model.stages
        return replace(model, stages=(align, replace(instruct, data=INSTRUCTIONS.get("easy_candid"))))

    changed = replace(
        whole,
        name="candid",
        about="the embedded data, and LLaVAs that answer whatever they are asked: those of manners, a stage before",
        benchmarks=tuple(map(BENCHMARKS.get, ("easy_forbidden", "easy_allowed"))),
    )
    return _with_models(changed, answering)


def _with_models(grid: Grid, change: Callable[[ModelSpec], ModelSpec]) -> Grid:
    def changed(candidate: Candidate) -> Candidate:
        assert isinstance(candidate.model, ModelSpec)
        return replace(candidate, model=change(candidate.model))

    return replace(grid, candidates=tuple(map(changed, grid.candidates)))


PRESETS.register("manners", manners())
PRESETS.register("candid", candid())
