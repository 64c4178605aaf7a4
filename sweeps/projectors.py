"""Does it matter how visual tokens are mapped to the language model?

Trains the LLaVA of each candidate with every kind of projector, attacks it white-box at every budget, and writes
records, statistics and a report under STORAGE/reports/projectors/. The same command again computes only what is
missing.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sweeps.console import run_script
from sweeps.options import QuestionOptions, check_numbers
from sweeps.question import main_of

if TYPE_CHECKING:
    from sweeps.plan import Plan

SWEEP = "projectors"


@dataclass(frozen=True)
class Options(QuestionOptions):
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
    from sweeps.grid import plan_question

    kinds = tuple(dict.fromkeys(options.projectors))
    for kind in kinds:
        projector_depth(kind)
    return plan_question(options, SWEEP, lambda model: [(kind, replace(model, projector=kind)) for kind in kinds])


main = main_of(make_plan)

if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
