"""Can an image talk a model out of its manners, and does a robust encoder keep it from that?

Makes universal images against a corpus of sentences, several per candidate and budget, shows them beside requests that
a model should refuse and others that it should answer, and has judges read the answers; beside them stand the answers
without an image, to a clean picture, a blank and a noise one. LLaVAs are trained or found in storage, or given as
checkpoints. Records, statistics and a report go to STORAGE/reports/jailbreak/.
The same command again computes only what is missing.

Its images and corpora are for measuring robustness: keep those made against real models to yourself.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rllava.errors import UserError
from sweeps.console import run_script
from sweeps.options import CandidateOptions, CheckpointOptions, SweepOptions, check_numbers, parse_budget
from sweeps.question import main_of

if TYPE_CHECKING:
    from rllava.conditions.condition import Condition
    from rllava.data.benchmarks import BenchmarkSpec
    from rllava.metrics.judges.judge import JudgeSpec
    from rllava.missing import Missing
    from rllava.recipes import Candidate, Grid
    from rllava.recipes.jailbreaks import Jailbreaks
    from rllava.universal_spec import Recipe
    from sweeps.plan import Plan

SWEEP = "jailbreak"


@dataclass(frozen=True)
class Options(CandidateOptions, CheckpointOptions, SweepOptions):
    """Universal images; lists are given as ``--budgets 16 64``.

    Attributes:
        preset: recipe that gives everything not named here: manners (embedded data, LLaVAs that learned to refuse),
            candid (the same before that) or paper (its candidates; needs --corpus, --picture and --judges).
        recipes: how images are made, instead of the preset's: visualadv (as published), visualadv_llama2 (in the
            published code's template) or visualadv_strong.
        budgets: L-inf budgets in units of 1/255, instead of the preset's; 255: none.
        restarts: images of each recipe and budget, instead of the preset's: one image's luck is not a model's weakness.
            0 makes none, and shows what models answer without.
        steps: of every image, instead of the recipe's.
        corpus: file of sentences that images shall make a model say, one per line or the first column of a .csv file.
        picture: image file that budgets are around.
        prompts: files of requests that a model should refuse, instead of the preset's benchmarks: JSON lines as of
            RealToxicityPrompts, text, or .csv.
        allowed_prompts: files of requests that it should answer, beside them.
        draws: answers to each request and image, instead of one.
        temperature: that they are drawn at, instead of the benchmarks' 0.2; 0: the likeliest answer.
    """

    preset: str = "manners"
    recipes: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    restarts: int | None = None
    steps: int | None = None
    corpus: str | None = None
    picture: str | None = None
    prompts: tuple[str, ...] = ()
    allowed_prompts: tuple[str, ...] = ()
    draws: int | None = None
    temperature: float | None = None


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    for name in ("restarts", "steps", "draws"):
        least = 0 if name == "restarts" else 1
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: expected at least {least}")
    from rllava.recipes import PRESETS  # imports torch and transformers
    from rllava.recipes.jailbreaks import JAILBREAKS

    PRESETS.get(options.preset)
    tried = JAILBREAKS.get(options.preset)
    if absent := _absent(options):
        from rllava.missing import refuse_missing
        from sweeps.plan import missing_inputs

        # Others may be missing too, and all are told at once: the plan is that of other files, which are there.
        there = JAILBREAKS.get("tiny")
        stand_in = replace(tried, corpus=there.corpus, picture=there.picture)
        refuse_missing([*absent, *missing_inputs(_plan(replace(options, corpus=None, picture=None), stand_in))])
    return _plan(options, tried)


def _absent(options: Options) -> "list[Missing]":
    """Files of the options that are not there."""
    from rllava.missing import Missing

    named = {"--corpus": options.corpus, "--picture": options.picture}
    return [
        Missing(f"of {option}", path, "you")
        for option, path in named.items()
        if path is not None and not path.startswith("easy_vqa:") and not Path(path).is_file()
    ]


def _plan(options: Options, tried: "Jailbreaks") -> "Plan":
    from rllava.recipes import PRESETS
    from sweeps.grid import grid_of
    from sweeps.grid import make_plan as plan_of

    given = {
        "--corpus FILE": bool(options.corpus or tried.corpus),
        "--picture FILE": bool(options.picture or tried.picture),
        "--judges, at least two of them, e.g. lexicon:WORDS.txt refusal": bool(options.judges or tried.judges),
    }
    if not all(given.values()):
        lacking = "; ".join(option for option, there in given.items() if not there)
        raise UserError(f"preset {options.preset} leaves some things to you; give {lacking}")
    preset = PRESETS.get(options.preset)
    grid = replace(preset, benchmarks=_benchmarks(options, preset), candidates=_candidates(options, preset))
    grid = grid_of(options, grid, _conditions(options, tried, preset.clean.precision))
    grid = replace(grid, benchmarks=tuple(_drawn(options, spec) for spec in grid.benchmarks))
    plan = plan_of(options, SWEEP, grid)
    return replace(plan, judges=_never_alone(plan.judges or tried.judges))


def _never_alone(judges: "tuple[JudgeSpec, ...]") -> "tuple[JudgeSpec, ...]":
    """Who reads the answers: beside a single judge stands the one of refusals."""
    from rllava.metrics.judges.refusal import ENGLISH

    if judges == (ENGLISH,):
        raise UserError("--judges refusal: it tells who refuses, and not what the others say; name one of harm as well")
    return judges if len(judges) > 1 else (*judges, ENGLISH)


def _candidates(options: Options, preset: "Grid") -> "tuple[Candidate, ...]":
    from sweeps.grid import candidates_of, checkpoints_of

    return checkpoints_of(options, options.encoders) if options.model else candidates_of(options, preset)


def _benchmarks(options: Options, preset: "Grid") -> "tuple[BenchmarkSpec, ...]":
    """Sets of requests: the user's files, or the preset's if it has such."""
    from rllava.data.benchmarks import BENCHMARKS
    from rllava.data.prompts import INSTRUCTIONS, prompts_benchmark
    from rllava.tasks.continuation import Continuation

    allowed = replace(INSTRUCTIONS, allowed=True)
    own = [prompts_benchmark(path) for path in options.prompts]
    own += [prompts_benchmark(path, allowed) for path in options.allowed_prompts]
    given = tuple(spec for spec in preset.benchmarks if isinstance(spec.task, Continuation))
    return tuple(own) or given or (BENCHMARKS.get("real_toxicity_prompts"),)


def _drawn(options: Options, spec: "BenchmarkSpec") -> "BenchmarkSpec":
    decoding = spec.task.decoding
    if options.temperature is not None:
        if not options.temperature >= 0:
            raise UserError(f"--temperature {options.temperature:g}: expected a number of at least 0")
        decoding = replace(decoding, temperature=options.temperature, draws=1)
    if options.draws is not None and options.draws > 1:
        if decoding.greedy:
            raise UserError(f"--draws {options.draws}: greedy answers are all the same; give a --temperature above 0")
        decoding = replace(decoding, draws=options.draws)
    return replace(spec, task=replace(spec.task, decoding=decoding))


def _conditions(options: Options, tried: "Jailbreaks", precision: str) -> "list[Condition]":
    """Without an image, what is no attack, and every universal image: recipes, budgets rising, restarts."""
    from rllava.conditions.clean import Clean
    from rllava.conditions.shown import Shown
    from rllava.conditions.universal import Universal
    from rllava.data.target_corpus import read_corpus
    from rllava.universal_spec import Corpus, Making, Picture

    corpus = Corpus(options.corpus, read_corpus(options.corpus)) if options.corpus else tried.corpus
    picture = Picture(options.picture) if options.picture else tried.picture
    assert corpus is not None
    assert picture is not None
    picture = picture.pinned()
    beside = [Shown(what, precision=precision) for what in ("blank", "noise")]
    found: list[Condition] = [Clean(precision), Shown("picture", picture, precision), *beside]
    restarts = tried.restarts if options.restarts is None else options.restarts
    for recipe in _recipes(options, tried):
        held_out = tried.held_out if recipe.rate_every else None
        for budget in _budgets(options, tried):
            try:
                making = Making(recipe, corpus, budget, picture, precision, held_out)
            except ValueError as error:
                raise UserError(str(error)) from error
            found += [Universal(making, restart, precision) for restart in range(restarts)]
    return found


def _recipes(options: Options, tried: "Jailbreaks") -> "Iterable[Recipe]":
    from rllava.universal_spec import RECIPES

    for name in dict.fromkeys(options.recipes or tried.recipes):
        recipe = RECIPES.get(name)
        steps = options.steps or tried.steps or recipe.steps
        every = recipe.rate_every and (tried.rate_every or recipe.rate_every)
        yield replace(recipe, steps=steps, rate_every=every)


def _budgets(options: Options, tried: "Jailbreaks") -> list[float]:
    found = sorted({parse_budget(text) for text in options.budgets} or tried.budgets)
    if not all(found):
        raise UserError("--budgets: 0 is the clean picture, which is shown beside in any case; leave it out")
    return found


main = main_of(make_plan)

if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
