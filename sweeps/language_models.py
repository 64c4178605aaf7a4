"""Is it the encoder alone that decides how robust a LLaVA is, or the language model as well?

Trains the LLaVA of each candidate with every language model, attacks it white-box at every budget, and writes records,
statistics and a report under STORAGE/reports/language_models/. The same command again computes only what is missing.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rllava.errors import UserError
from sweeps.console import run_script
from sweeps.options import AttackOptions, CandidateOptions, check_numbers

if TYPE_CHECKING:
    from sweeps.plan import Plan

SWEEP = "language_models"


@dataclass(frozen=True)
class Options(CandidateOptions, AttackOptions):
    """Candidates x language models; lists are given as ``--language-models A B``.

    Attributes:
        language_models: a registered name (tiny-llama, smollm2-135m-instruct, vicuna-7b-v1.5), the path of a folder in
            Hugging Face format or of a GGUF file, or hub:ORG/NAME.
        conversation: template in which the last training stage and all questions are put, instead of the preset's; chat
            is each tokenizer's own.
    """

    language_models: tuple[str, ...] = ()
    conversation: str | None = None


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    if not options.language_models:
        raise UserError("--language-models: give at least one, e.g. tiny-llama or the path of a folder")
    from rllava.model.conversation import TEMPLATES  # imports torch and transformers
    from rllava.model.language import language_model_spec
    from rllava.recipes import PRESETS
    from sweeps.grid import candidates_of, changed, read_grid, trained
    from sweeps.grid import make_plan as plan_of

    grid = read_grid(options, PRESETS.get(options.preset))
    specs = [language_model_spec(name) for name in dict.fromkeys(options.language_models)]
    candidates = []
    for candidate, model in trained(candidates_of(options, grid)):
        *first, last = model.stages
        if options.conversation is not None:
            TEMPLATES.get(options.conversation)
            last = replace(last, conversation=options.conversation)
        for spec in specs:
            whole = replace(model, language_model=spec, stages=(*first, last))
            candidates.append(changed(candidate, spec.name, whole))
    return plan_of(options, SWEEP, replace(grid, candidates=tuple(candidates)))


def main(options: Options) -> None:
    """Runs the sweep."""
    plan = make_plan(options)
    from sweeps.grid import run_plan  # imports torch and transformers

    run_plan(options, plan, options.workers)


if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
