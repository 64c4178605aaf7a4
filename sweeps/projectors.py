"""Does it matter how visual tokens are mapped to the language model?

Trains the LLaVA of each candidate with every kind of projector, attacks it white-box at every budget, and writes
records, statistics and a report under STORAGE/reports/projectors/. The same command again computes only what is
missing.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sweeps.console import run_script
from sweeps.options import AttackOptions, CandidateOptions, check_numbers

if TYPE_CHECKING:
    from sweeps.plan import Plan

SWEEP = "projectors"


@dataclass(frozen=True)
class Options(CandidateOptions, AttackOptions):
    """Candidates x projectors; lists are given as ``--projectors linear mlp2x_gelu``.

    Attributes:
        projectors: linear (LLaVA 1), mlp2x_gelu (LLaVA 1.5), or another number of layers.
    """

    projectors: tuple[str, ...] = ("linear", "mlp2x_gelu")


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    from rllava.model.llava import projector_depth  # imports torch and transformers
    from rllava.recipes import PRESETS
    from sweeps.grid import candidates_of, changed, read_grid, trained
    from sweeps.grid import make_plan as plan_of

    for kind in options.projectors:
        projector_depth(kind)
    grid = read_grid(options, PRESETS.get(options.preset))
    candidates = [
        changed(candidate, kind, replace(model, projector=kind))
        for candidate, model in trained(candidates_of(options, grid))
        for kind in dict.fromkeys(options.projectors)
    ]
    return plan_of(options, SWEEP, replace(grid, candidates=tuple(candidates)))


def main(options: Options) -> None:
    """Runs the sweep."""
    plan = make_plan(options)
    from sweeps.grid import run_plan  # imports torch and transformers

    run_plan(options, plan, options.workers)


if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
