"""What common corruptions (noise, blur, weather, compression) leave of each candidate's answers.

The fifteen corruptions of ImageNet-C at five severities, on the LLaVAs of the encoder ablation: those that are in
storage are found, the others trained first. Writes records, statistics and a report under STORAGE/reports/corruptions/.
The same command again computes only what is missing.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sweeps.console import run_script
from sweeps.options import CandidateOptions, SweepOptions, check_numbers
from sweeps.question import main_of

if TYPE_CHECKING:
    from sweeps.plan import Plan

SWEEP = "corruptions"


@dataclass(frozen=True)
class Options(CandidateOptions, SweepOptions):
    """Corruptions; lists are given as ``--corruptions fog frost``.

    Attributes:
        corruptions: some of the fifteen of ImageNet-C; by default all.
        corrupted_at: size at which images are corrupted, in pixels of the longer side, instead of the preset's; every
            model then pads and resizes the same picture.
        fit: inside (keeps the aspect ratio) or squash (to a square, as in the published code).
    """

    corruptions: tuple[str, ...] = ()
    corrupted_at: int | None = None
    fit: str = "inside"


def make_plan(options: Options) -> "Plan":
    """Turns options into a plan, and refuses what cannot work.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    from rllava.recipes import PRESETS  # imports torch and transformers
    from sweeps.grid import candidates_of, corruption_conditions, grid_of
    from sweeps.grid import make_plan as plan_of

    preset = PRESETS.get(options.preset)
    conditions = corruption_conditions(preset, options.corruptions, options.corrupted_at, options.fit)
    grid = replace(grid_of(options, preset, conditions), candidates=candidates_of(options, preset))
    return plan_of(options, SWEEP, grid)


main = main_of(make_plan)

if __name__ == "__main__":
    run_script(main, Options, __doc__, log=True)
