"""How robust is a LLaVA that is already trained?

Attacks ready checkpoints white-box at every budget, without any training: original LLaVA and Robust-LLaVA folders,
Hugging Face's LlavaForConditionalGeneration, or what another sweep trained (a folder below models/ of its storage).
Records, statistics and a report go to STORAGE/reports/evaluate/.
The same command again computes only what is missing.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rllava.errors import UserError
from sweeps.console import run_script
from sweeps.options import AttackOptions, CheckpointOptions, check_numbers
from sweeps.question import main_of

if TYPE_CHECKING:
    from sweeps.plan import Plan

SWEEP = "evaluate"


@dataclass(frozen=True)
class Options(CheckpointOptions, AttackOptions):
    """What is evaluated; lists are given as ``--model A B``.

    Attributes:
        encoders: encoders that are plugged into every checkpoint beside its own.
        preset: recipe that gives benchmarks, budgets, protocol and samples not named here: tiny (embedded data) or
            paper.
        name: of the report's folder.
    """

    encoders: tuple[str, ...] = ()
    preset: str = "tiny"
    name: str = SWEEP


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    if not options.name or not options.name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"--name {options.name}: expected letters, digits, - and _")
    from rllava.recipes import PRESETS  # imports torch and transformers
    from sweeps.grid import checkpoints_of, read_grid
    from sweeps.grid import make_plan as plan_of

    grid = read_grid(options, PRESETS.get(options.preset))
    return plan_of(options, options.name, replace(grid, candidates=checkpoints_of(options, options.encoders)))


main = main_of(make_plan)

if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
