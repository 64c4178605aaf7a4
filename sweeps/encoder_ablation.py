"""Which vision encoder should a multi-modal LLM be built on, if it must survive adversarial images?

Trains a LLaVA on each candidate's encoder (or finds it in storage), attacks it white-box at every budget, and writes
records, statistics and a report with the robustness-accuracy trade-off under STORAGE/reports/encoder_ablation/.
The same command again computes only what is missing.

Candidates: a (LLaVA trained end-to-end on encoder a), a+b (token-interleaved ensemble), b@a (encoder b plugged into the
LLaVA trained with a).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps.console import run_script
from sweeps.options import QuestionOptions, check_numbers
from sweeps.question import main_of

if TYPE_CHECKING:
    from sweeps.plan import Plan

SWEEP = "encoder_ablation"


@dataclass(frozen=True)
class Options(QuestionOptions):
    """The encoder ablation; lists are given as ``--budgets 0 4 8``."""


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    # Recipes import torch and transformers, which takes seconds; a mistake in a number is told by now.
    from sweeps.grid import plan_question

    return plan_question(options, SWEEP)


main = main_of(make_plan)

if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
