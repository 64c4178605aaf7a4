"""How robust is a LLaVA that is already trained?

Attacks ready checkpoints white-box at every budget, without any training: original LLaVA and Robust-LLaVA folders,
Hugging Face's LlavaForConditionalGeneration, or what another sweep trained (a folder below models/ of its storage).
Records, statistics and a report go to STORAGE/reports/evaluate/.
The same command again computes only what is missing.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rllava.errors import UserError
from sweeps.console import run_script
from sweeps.options import AttackOptions, check_numbers
from sweeps.question import main_of

if TYPE_CHECKING:
    from rllava.recipes import Candidate
    from sweeps.plan import Plan

SWEEP = "evaluate"


@dataclass(frozen=True)
class Options(AttackOptions):
    """What is evaluated; lists are given as ``--model A B``.

    Attributes:
        model: checkpoints, folders or ORG/NAME of the hub; every one of them is a candidate.
        encoders: encoders that are plugged into every checkpoint beside its own (plug-and-play), e.g. fare4-336; for
            an ensemble a+b.
        language_model: folder or ORG/NAME of the language model, for checkpoints of projectors alone.
        conversation: template of questions, e.g. vicuna_v1, llava_llama_2 or chat (the tokenizer's own); by default
            vicuna_v1 where the language model is a Llama.
        vision_tower: of folders in LLaVA's own format that hold a tower other than the one their config.json names: own
            (the one inside, which was trained along) or named.
        preset: recipe that gives benchmarks, budgets, protocol and samples not named here: tiny (embedded data) or
            paper.
        name: of the report's folder.
    """

    model: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    language_model: str | None = None
    conversation: str | None = None
    vision_tower: Literal["own", "named"] | None = None
    preset: str = "tiny"
    name: str = SWEEP


def candidates_of(options: Options) -> "tuple[Candidate, ...]":
    """Every checkpoint with its own encoders, and with each of the others plugged in.

    Raises:
        UserError: if a checkpoint cannot be read, or an encoder does not fit its projectors.
    """
    if not options.model:
        raise UserError("--model: give at least one checkpoint, a folder or ORG/NAME of the hub")
    # Encoders import torch, which takes seconds; a mistake in a number is told by now.
    from rllava.encoders import check_swap, check_together, encoder_spec
    from rllava.model.checkpoint import read_checkpoint
    from rllava.recipes import Candidate

    found = []
    for source in dict.fromkeys(options.model):
        checkpoint = read_checkpoint(
            source,
            language_model=options.language_model,
            conversation=options.conversation,
            vision_tower=options.vision_tower,
        )
        own = Candidate(checkpoint.name, checkpoint, checkpoint.encoders)
        found.append(own)
        for text in dict.fromkeys(options.encoders):
            used = tuple(encoder_spec(name) for name in text.split("+"))
            check_together(used, f"--encoders {text}")
            check_swap(used, checkpoint.encoders, f"--encoders {text}, {checkpoint.name}")
            plugged = "+".join(spec.name for spec in used)
            found.append(replace(own, name=f"{plugged}@{checkpoint.name}", used=used))
    return tuple(found)


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    if not options.name or not options.name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"--name {options.name}: expected letters, digits, - and _")
    from rllava.recipes import PRESETS  # imports torch and transformers
    from sweeps.grid import make_plan as plan_of
    from sweeps.grid import read_grid

    grid = read_grid(options, PRESETS.get(options.preset))
    return plan_of(options, options.name, replace(grid, candidates=candidates_of(options)))


main = main_of(make_plan)

if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
