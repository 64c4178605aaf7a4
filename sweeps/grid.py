"""What options mean for a recipe: the grid that every candidate is put through, its plan, and how it is run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rllava.attacks.protocols import PROTOCOLS, Protocol, in_precision, with_steps
from rllava.data.benchmarks import BenchmarkSpec
from rllava.errors import UserError
from sweeps.options import AttackOptions, absolute, check_numbers, read_budgets
from sweeps.plan import Plan, check_inputs
from sweeps.presets import Candidate, Preset, benchmark_spec


@dataclass(frozen=True)
class Grid:
    """What every candidate is put through.

    Attributes:
        preset: with the options' numbers of samples.
        benchmarks: data, prompt, metric.
        budgets: in 1/255, rising.
        protocol: rounds of the attack.
    """

    preset: Preset
    benchmarks: tuple[BenchmarkSpec, ...]
    budgets: tuple[float, ...]
    protocol: Protocol


def read_grid(options: AttackOptions, preset: Preset) -> Grid:
    """Turns options into a grid, and refuses what cannot work.

    Args:
        options: from the command line.
        preset: gives what they do not name.

    Returns:
        The grid.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    if options.samples is not None:
        preset = replace(preset, samples=options.samples)
    if options.batch_size is not None:
        preset = replace(preset, batch_size=options.batch_size)
    budgets = read_budgets(options, preset.budgets)
    benchmarks = tuple(benchmark_spec(preset, name) for name in dict.fromkeys(options.benchmarks or preset.benchmarks))
    protocol = PROTOCOLS.get(options.protocol or preset.protocol)
    if options.attack_steps is not None:
        protocol = with_steps(protocol, options.attack_steps)
    if options.attack_precision is not None:
        protocol = in_precision(protocol, options.attack_precision)
    return Grid(preset, benchmarks, budgets, protocol)


def make_plan(options: AttackOptions, sweep: str, grid: Grid, candidates: Sequence[Candidate]) -> Plan:
    """The plan of a sweep.

    Args:
        options: from the command line.
        sweep: its name.
        grid: what every candidate is put through.
        candidates: rows of the grid.

    Returns:
        The plan.

    Raises:
        UserError: if two candidates have one name.
    """
    for name, count in Counter(candidate.name for candidate in candidates).items():
        if count > 1:
            raise UserError(f"{count} candidates would be called {name} in the records; rename a file or folder")
    return Plan(
        sweep,
        absolute(options.storage),
        grid.preset,
        tuple(candidates),
        grid.benchmarks,
        grid.budgets,
        grid.protocol,
        options.save_every,
        options.compile,
        options.first_samples,
    )


def run_plan(options: AttackOptions, plan: Plan, workers: int = 1) -> None:
    """Runs a plan on the machines that the options ask for, after a look at everything it reads.

    Args:
        options: from the command line.
        plan: of the sweep.
        workers: of each training.
    """
    plan = check_inputs(plan)
    # Ray takes seconds to import; what the look has found is told without it.
    from sweeps.runner import Machines, run, shut_down

    machines = Machines(options.address, workers, options.attack_workers, options.trials, options.gpus, options.memory)
    try:
        run(plan, machines)
    finally:
        shut_down()
