"""Does the order of candidates stand when every one of them is trained again?

Trains each candidate of the encoder ablation with several seeds (or finds the trainings in storage), attacks them
white-box at every budget, and tells the spread of trainings from that of samples. Records, statistics and a report go
to STORAGE/reports/seeds/. The same command again computes only what is missing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rllava.errors import UserError
from sweeps.console import run_script
from sweeps.options import QuestionOptions, check_numbers
from sweeps.question import main_of

if TYPE_CHECKING:
    from sweeps.plan import Plan

SWEEP = "seeds"


@dataclass(frozen=True)
class Options(QuestionOptions):
    """Several trainings per candidate; lists are given as ``--seeds 0 1 2``."""

    seeds: tuple[int, ...] = (0, 1, 2)


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    if len(set(options.seeds)) < 2:
        raise UserError(f"--seeds {' '.join(map(str, options.seeds))}: one training has no spread; give at least two")
    from sweeps.grid import plan_question  # imports torch and transformers

    return plan_question(options, SWEEP)


main = main_of(make_plan)

if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
