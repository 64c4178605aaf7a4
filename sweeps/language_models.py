"""Is it the encoder alone that decides how robust a LLaVA is, or the language model as well?

Trains the LLaVA of each candidate with every language model, attacks it white-box at every budget, and writes records,
statistics and a report under STORAGE/reports/language_models/. The same command again computes only what is missing.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rllava.errors import UserError
from sweeps.console import run_script
from sweeps.options import QuestionOptions, check_numbers
from sweeps.question import main_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rllava.specs import ModelSpec
    from sweeps.plan import Plan

SWEEP = "language_models"


@dataclass(frozen=True)
class Options(QuestionOptions):
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
    from sweeps.grid import plan_question

    specs = [language_model_spec(name) for name in dict.fromkeys(options.language_models)]
    if options.conversation is not None:
        TEMPLATES.get(options.conversation)

    def variants(model: "ModelSpec") -> "Iterator[tuple[str, ModelSpec]]":
        *first, last = model.stages
        asked = replace(last, conversation=options.conversation or last.conversation)
        for spec in specs:
            yield spec.name, replace(model, language_model=spec, stages=(*first, asked))

    return plan_question(options, SWEEP, variants)


main = main_of(make_plan)

if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
