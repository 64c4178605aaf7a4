"""What the options of a search mean: its space, its grid of benchmarks and conditions, its rungs."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from rllava.conditions.condition import Condition
from rllava.errors import UserError
from rllava.metrics.judges.judge import JudgeSpec
from rllava.recipes import PRESETS, Grid
from rllava.search.history import Limits
from rllava.search.objectives import Objective, read_objectives
from rllava.search.recipes import SEARCHES, SearchRecipe
from rllava.search.rungs import Rung, check_rungs
from rllava.search.sampling import SAMPLERS
from rllava.search.space import Parts, SearchSpace, Space, StageSpace
from rllava.specs import ModelSpec
from sweeps.grid import candidates_of, corruption_conditions, make_plan, read_grid
from sweeps.options import read_budgets
from sweeps.plan import Plan, check_inputs
from sweeps.searching import Search

if TYPE_CHECKING:
    from sweeps.search_settings import Options


@dataclass(frozen=True)
class Asked:
    """What options ask for, before anything is looked at.

    Attributes:
        plan: of all that the parts of the space make.
    """

    objectives: tuple[Objective, ...]
    rungs: tuple[Rung, ...]
    limits: Limits
    space: SearchSpace
    plan: Plan


def read_search(options: "Options") -> Asked:
    """Turns options into what is asked.

    Raises:
        UserError: naming the option and the remedy.
    """
    preset = PRESETS.get(options.preset)
    recipe = SEARCHES.get(options.preset) if options.preset in SEARCHES else SearchRecipe(Space(), ())
    objectives = read_objectives(options.objectives or recipe.objectives)
    SAMPLERS.get(options.sampler)
    grid = grid_of_search(options, preset, recipe, objectives)
    rungs = rungs_of(options, recipe, grid)
    space = SearchSpace(space_of(options, recipe.space), base_model(options, grid), names_of(preset))
    space.check()
    plan = everything(options, grid, space)
    plan = replace(plan, judges=judges_of(options, plan, objectives))
    limits = Limits(options.max_trials or recipe.trials, options.max_hours, options.one_in)
    return Asked(objectives, rungs, limits, space, plan)


def make_search(options: "Options") -> Search:
    """Turns options into a search, everything that it may build looked at.

    Raises:
        UserError: naming the option and the remedy.
    """
    asked = read_search(options)
    pinned = check_inputs(asked.plan)
    model = replace(pinned.grid.model, encoders=asked.space.model.encoders)
    return Search(
        name=options.name,
        plan=pinned,
        space=replace(asked.space, model=model, parts=parts_of(pinned)),
        objectives=asked.objectives,
        rungs=asked.rungs,
        limits=asked.limits,
        sampler=options.sampler,
        seed=options.sampler_seed,
        final_seeds=tuple(dict.fromkeys(options.final_seeds)),
    )


def space_of(options: "Options", recipe: Space) -> Space:
    """The preset's space, with what options say instead."""
    given = {field.name: getattr(options, field.name) for field in fields(Space)}
    stages = {
        name: StageSpace(given[name].steps or kept.steps, given[name].rate or kept.rate)
        for name, kept in (("align", recipe.align), ("instruct", recipe.instruct))
    }
    own = {name: value for name, value in given.items() if value not in ((), None)}
    if options.encoders:  # a list of one's own is what it says, unless more is asked for
        own = {"ensembles": False, "plugged": False, **own}
    return replace(recipe, **{**own, **stages})


def base_model(options: "Options", grid: Grid) -> ModelSpec:
    """What the space leaves out, from the preset, by the seed and in the portions that options ask for."""
    (first, *_) = candidates_of(replace(options, encoders=()), replace(grid, candidates=grid.candidates[:1]))
    if not isinstance(first.model, ModelSpec):
        raise UserError(f"--preset {options.preset}: it trains no LLaVA; a search needs one to vary")
    return first.model


def names_of(preset: Grid) -> tuple[str, ...]:
    """Candidates of a preset, which a space that names none chooses from."""
    return tuple(dict.fromkeys(candidate.name for candidate in preset.candidates))


def grid_of_search(options: "Options", preset: Grid, recipe: SearchRecipe, objectives: Sequence[Objective]) -> Grid:
    """Benchmarks and conditions: those that the objectives need, and what options name beside.

    Raises:
        UserError: if budgets are given and one of an objective is not among them, or no step gives an objective.
    """
    shorter = tuple(
        replace(
            spec,
            samples=recipe.samples or spec.samples,
            rows_per_shard=recipe.rows_per_shard or spec.rows_per_shard,
        )
        for spec in preset.benchmarks
    )
    asked = {entry.budget for entry in objectives if entry.kind == "robust" and entry.budget is not None}
    budgets = options.budgets or tuple(f"{budget:g}/255" for budget in sorted({0.0, *asked}))
    if missing := sorted(asked - set(read_budgets(replace(options, budgets=budgets)))):
        raise UserError(f"--budgets: add {missing[0]:g}, which --objectives ask for")
    how = replace(options, budgets=budgets, protocol=options.protocol or recipe.protocol)
    grid = read_grid(how, replace(preset, benchmarks=shorter))
    more: list[Condition] = []
    if any(entry.kind == "corruption" for entry in objectives):
        more += corruption_conditions(grid, ())
    for entry in objectives:
        if entry.kind == "jailbreak":
            more += jailbreaks(options, grid, entry)
    return replace(grid, conditions=tuple(dict.fromkeys((*grid.conditions, *more))))


def jailbreaks(options: "Options", grid: Grid, objective: Objective) -> list[Condition]:
    """Universal images at the budget of an objective, as the preset's jailbreak sweep makes them.

    Raises:
        UserError: if the preset has none, or no benchmark asks for what a model should refuse.
    """
    from rllava.conditions.universal import Universal
    from rllava.recipes.jailbreaks import JAILBREAKS
    from rllava.tasks.continuation import Continuation
    from rllava.universal_spec import RECIPES, Making

    tried = JAILBREAKS.get(options.preset) if options.preset in JAILBREAKS else None
    to_refuse = [spec for spec in grid.benchmarks if isinstance(spec.task, Continuation) and not spec.task.allowed]
    if tried is None or tried.corpus is None or tried.picture is None or not to_refuse:
        raise UserError(
            f"--objectives {objective.name}: no step of preset {options.preset} gives it (it has no requests that a "
            "model should refuse, or no sentences and picture to make images of); try --preset manners"
        )
    recipe = RECIPES.get(tried.recipes[0])
    recipe = replace(recipe, steps=tried.steps or recipe.steps)
    assert objective.budget is not None
    precision = grid.clean.precision
    making = Making(recipe, tried.corpus, objective.budget, tried.picture.pinned(), precision, None)
    return [Universal(making, 0, precision)]


def judges_of(options: "Options", plan: Plan, objectives: Sequence[Objective]) -> tuple[JudgeSpec, ...]:
    """Who reads the answers: those that options name, else the preset's where an objective needs some."""
    from rllava.recipes.jailbreaks import JAILBREAKS

    if plan.judges or all(entry.kind != "jailbreak" for entry in objectives):
        return plan.judges
    return JAILBREAKS.get(options.preset).judges


def rungs_of(options: "Options", recipe: SearchRecipe, grid: Grid) -> tuple[Rung, ...]:
    """Rungs as options say, else the preset's, else a quarter and a half of the samples.

    Raises:
        UserError: if they do not rise, or there are not so many samples.
    """
    most = max(spec.samples for spec in grid.benchmarks)
    if not options.rungs and not options.rung_steps:
        found = recipe.rungs or (Rung(max(1, most // 4)), Rung(max(1, most // 2)))
        # Fewer samples than the preset has: the same shares of them.
        of = recipe.samples or max(spec.samples for spec in PRESETS.get(options.preset).benchmarks)
        found = tuple(replace(rung, samples=max(1, rung.samples * most // of)) for rung in found)
    else:
        samples = options.rungs or tuple(rung.samples for rung in recipe.rungs)
        shares = options.rung_steps or (1.0,) * len(samples)
        if len(samples) != len(shares):
            raise UserError(
                f"--rung-steps {' '.join(f'{share:g}' for share in shares)}: expected one share for each of the "
                f"{len(samples)} --rungs"
            )
        found = tuple(map(Rung, samples, shares))
    check_rungs(found)
    if found[-1].samples > most:
        raise UserError(f"--rungs {found[-1].samples}: there are {most} samples; give fewer, or more --samples")
    return found


def everything(options: "Options", grid: Grid, space: SearchSpace) -> Plan:
    """A plan of all that the parts of a space make, so that all inputs are looked at before anything runs."""
    built = [space.candidate(configuration) for configuration, refusal in space.built() if refusal is None]
    return make_plan(options, options.name, replace(grid, candidates=tuple(built)))


def parts_of(plan: Plan) -> Parts:
    """Encoders and language models of a plan, by name."""
    encoders = {spec.name: spec for c in plan.grid.candidates for spec in (*c.model.encoders, *c.used)}
    models = {m.language_model.name: m.language_model for m in plan.grid.models}
    return Parts(encoders, models)
