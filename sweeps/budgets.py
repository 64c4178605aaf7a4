"""At which budget is each sample beaten, instead of how many are at a few?

Searches, per sample, for the smallest L-inf budget at which a protocol's rounds beat it: bisection over a ladder of
budgets, each search going on from the images that a larger budget gave. LLaVAs are trained or found in storage, or
given as checkpoints. Records, statistics and a report (the share not beaten at every budget, the median budget, the
area under the curve) go to STORAGE/reports/budgets/. The same command again computes only what is missing.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rllava.errors import UserError
from sweeps.console import run_script
from sweeps.options import CandidateOptions, CheckpointOptions, ProtocolOptions, check_numbers, parse_budget
from sweeps.question import main_of

if TYPE_CHECKING:
    from rllava.conditions.smallest_budget import SmallestBudget
    from rllava.recipes import Grid
    from sweeps.plan import Plan

SWEEP = "budgets"


@dataclass(frozen=True)
class Options(CandidateOptions, CheckpointOptions, ProtocolOptions):
    """Smallest budgets; lists are given as ``--encoders a b``.

    Attributes:
        largest: L-inf budget in units of 1/255 beyond which nothing is looked for, instead of the preset's largest.
        smallest: budget below which nothing is looked for.
        per_octave: budgets to a factor of two; with 4, a sample's is known to 19 %.
        below: a sample is beaten when its score is below this share of its own clean score (or 0, or below the
            benchmark's threshold); 0: at 0 or the threshold alone.
    """

    largest: str | None = None
    smallest: str = "0.25/255"
    per_octave: int = 4
    below: float = 0.5


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    largest = None if options.largest is None else _budget("largest", options.largest)
    smallest = _budget("smallest", options.smallest)
    # Recipes import torch and transformers, which takes seconds; a mistake in a number is told by now.
    from rllava.conditions.clean import Clean
    from rllava.recipes import PRESETS
    from sweeps.grid import candidates_of, checkpoints_of, grid_of
    from sweeps.grid import make_plan as plan_of

    preset = PRESETS.get(options.preset)
    condition = _condition(options, preset, smallest, largest)
    grid = grid_of(options, preset, (Clean(condition.protocol.clean_precision), condition))
    found = checkpoints_of(options, options.encoders) if options.model else candidates_of(options, preset)
    return plan_of(options, SWEEP, replace(grid, candidates=found))


def _condition(options: Options, preset: "Grid", smallest: float, largest: float | None) -> "SmallestBudget":
    from rllava.conditions.smallest_budget import SmallestBudget
    from sweeps.grid import protocol_of

    most = max(preset.budgets) if largest is None else largest
    if not most:
        raise UserError(f"--largest: preset {options.preset} has no budgets; give one")
    try:
        return SmallestBudget(protocol_of(options, preset), most, smallest, options.per_octave, options.below)
    except ValueError as error:
        name, _, what = str(error).partition(": ")
        option = {"smallest": "--smallest", "per_octave": "--per-octave", "below": "--below"}.get(name, "--protocol")
        raise UserError(f"{option}: {what}" if option != "--protocol" else f"--protocol: {error}") from error


def _budget(name: str, text: str) -> float:
    """Reads a budget above 0.

    Raises:
        UserError: naming the option.
    """
    try:
        found = parse_budget(text)
    except UserError as error:
        raise UserError(str(error).replace("--budgets", f"--{name}")) from error
    if not found:
        raise UserError(f"--{name} {text}: expected a budget above 0; the clean answers stand beside in any case")
    return found


main = main_of(make_plan)

if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
