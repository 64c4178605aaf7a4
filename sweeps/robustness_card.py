"""The row of an encoder, complete: what it keeps under everything that a model can be shown.

Asks the LLaVAs of the encoder ablation about all benchmarks under all conditions: clean images, attacks at some of the
ablation's budgets (whose records are found where it has run), corruptions, and the others of the preset's card. Writes
a card of candidates x columns, with what other sweeps of the storage say of the same models, to
STORAGE/reports/robustness_card/. The same command again computes only what is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.card_schema import CARD as SWEEP
from rllava.errors import UserError
from sweeps.console import run_script
from sweeps.options import QuestionOptions, check_numbers, read_budgets

if TYPE_CHECKING:
    from rllava.conditions.condition import Condition
    from rllava.recipes import Grid
    from rllava.recipes.cards import Card
    from sweeps.plan import Plan


@dataclass(frozen=True)
class Options(QuestionOptions):
    """The robustness card; lists are given as ``--corruptions fog snow``.

    Attributes:
        corruptions: instead of those of the preset's card: some of the fifteen of ImageNet-C.
        submitted: cards of others, .csv or .parquet, to stand beside ours; they stay in the storage.
    """

    corruptions: tuple[str, ...] = ()
    submitted: tuple[Path, ...] = ()


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    for file in options.submitted:
        from analysis.card_check import checked_card, file_content

        checked_card(file_content(file), str(file))
    from rllava.recipes import PRESETS  # imports torch and transformers
    from rllava.recipes.cards import CARDS
    from sweeps.grid import candidates_of, grid_of
    from sweeps.grid import make_plan as plan_of

    preset, card = PRESETS.get(options.preset), CARDS.get(options.preset)
    named = options.benchmarks or tuple(dict.fromkeys((*(spec.name for spec in preset.benchmarks), *card.benchmarks)))
    candidates = candidates_of(options, preset)
    others = (*card.conditions, *((f"transferred:{candidates[0].name}",) if card.transferred else ()))
    asked = replace(options, benchmarks=named, conditions=tuple(dict.fromkeys((*others, *options.conditions))))
    grid = grid_of(asked, preset, _conditions(options, preset, card))
    return plan_of(options, SWEEP, replace(grid, candidates=candidates))


def _conditions(options: Options, preset: "Grid", card: "Card") -> "Sequence[Condition]":
    from rllava.conditions.attack import at_budgets
    from sweeps.grid import corruption_conditions, protocol_of

    own = card.budgets or tuple(budget for budget in preset.budgets if budget)
    budgets = read_budgets(options, (0.0, *own))
    attacks = at_budgets(protocol_of(options, preset), budgets)
    corruptions = options.corruptions or card.corruptions
    beside = corruption_conditions(preset, corruptions)[1:] if corruptions else ()
    return (*attacks, *beside)


def main(options: Options) -> None:
    """Runs the sweep, with the cards of others in its storage."""
    plan = make_plan(options)
    from analysis.card_check import submit
    from sweeps.grid import run_plan

    if options.plan is None:
        names = [file.name for file in options.submitted]
        if len(set(names)) < len(names):
            raise UserError("--submitted: two files of one name; rename one")
        for file in options.submitted:
            submit(plan.storage, file)
    run_plan(options, plan)


if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
