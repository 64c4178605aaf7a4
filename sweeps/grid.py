"""What options mean for a recipe: the grid that every candidate is put through, its plan, and how it is run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rllava.attacks.protocols import PROTOCOLS, Protocol, in_precision, with_steps
from rllava.conditions.attack import within
from rllava.conditions.clean import Clean
from rllava.conditions.condition import Condition, Setting, read_condition
from rllava.conditions.corruption import Corruption
from rllava.data.benchmarks import BenchmarkSpec
from rllava.data.corruptions import CORRUPTIONS, SMALLEST_SIDE, all_corruptions, check_library, known_fit
from rllava.errors import UserError
from rllava.metrics.judges.judge import read_judge
from sweeps.options import AttackOptions, CandidateOptions, SweepOptions, absolute, check_numbers, read_budgets
from sweeps.plan import Plan, check_inputs
from sweeps.presets import Candidate, Preset, benchmark_spec, parse_candidate


@dataclass(frozen=True)
class Grid:
    """What every candidate is put through.

    Attributes:
        preset: with the options' numbers of samples.
        benchmarks: data and tasks.
        conditions: what models are shown, clean images first.
    """

    preset: Preset
    benchmarks: tuple[BenchmarkSpec, ...]
    conditions: tuple[Condition, ...]


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
    budgets = read_budgets(options, preset.budgets)
    protocol = PROTOCOLS.get(options.protocol or preset.protocol)
    if options.attack_steps is not None:
        protocol = with_steps(protocol, options.attack_steps)
    if options.attack_precision is not None:
        protocol = in_precision(protocol, options.attack_precision)
    return grid_of(options, preset, attack_conditions(protocol, budgets))


def attack_conditions(protocol: Protocol, budgets: Sequence[float]) -> tuple[Condition, ...]:
    """Clean images, answered as the protocol does, and attacks.

    Args:
        protocol: of the attacks.
        budgets: in 1/255; 0 stands for the clean image.

    Returns:
        The conditions, budgets rising.
    """
    return tuple(within(protocol, size) for size in sorted(budgets))


def corruption_conditions(
    preset: Preset, names: Sequence[str], side: int | None = None, fit: str = "inside"
) -> tuple[Condition, ...]:
    """Clean images and corrupted ones, answered in the precision of the recipe's clean answers.

    Args:
        preset: of the sweep.
        names: of corruptions; none: all.
        side: size at which images are corrupted, in pixels; None: the recipe's.
        fit: how they get that size, see ``rllava.data.corruptions.Fit``.

    Returns:
        The conditions.

    Raises:
        UserError: if a corruption is unknown, a number senseless, or the library that corrupts is not here.
    """
    if side is not None and side < SMALLEST_SIDE:
        raise UserError(f"--corrupted-at {side}: expected at least {SMALLEST_SIDE} pixels")
    if not known_fit(fit):
        raise UserError(f"--fit {fit}: expected inside or squash")
    for name in names:
        CORRUPTIONS.get(name)
    check_library()
    precision = PROTOCOLS.get(preset.protocol).clean_precision
    chosen = dict.fromkeys(names or all_corruptions())
    size = side or preset.corrupted_at
    return (Clean(precision), *(Corruption(name, size, fit, precision) for name in chosen))  # type: ignore[arg-type]


def grid_of(options: SweepOptions, preset: Preset, conditions: Sequence[Condition]) -> Grid:
    """A recipe's grid with other conditions.

    Args:
        options: from the command line.
        preset: gives what they do not name.
        conditions: what models are shown.

    Returns:
        The grid.

    Raises:
        UserError: if a benchmark or condition is unknown.
    """
    if options.samples is not None:
        preset = replace(preset, samples=options.samples)
    if options.batch_size is not None:
        preset = replace(preset, batch_size=options.batch_size)
    names = dict.fromkeys(options.benchmarks or preset.benchmarks)
    clean, named = beside(options.conditions, preset, conditions)
    shown = tuple(dict.fromkeys((*clean, *conditions, *named)))
    return Grid(preset, tuple(benchmark_spec(preset, name) for name in names), shown)


def beside(
    names: Sequence[str], preset: Preset, conditions: Sequence[Condition]
) -> tuple[list[Condition], list[Condition]]:
    """The conditions that a command line names beside those of the sweep.

    Args:
        names: as given, e.g. ``corruption:fog``.
        preset: of the sweep.
        conditions: of the sweep.

    Returns:
        The clean image, with which they are compared, and them, answered in the same precision; nothing if none is
        named.

    Raises:
        UserError: if a name is not understood.
    """
    if not names:
        return [], []
    clean = next((condition for condition in conditions if isinstance(condition, Clean)), None)
    asked = clean or Clean(PROTOCOLS.get(preset.protocol).clean_precision)
    setting = Setting(asked.precision, preset.corrupted_at)
    return [asked], [read_condition(name, setting) for name in names]


def candidates_of(options: CandidateOptions, preset: Preset) -> tuple[Candidate, ...]:
    """Whom a sweep compares.

    Args:
        options: from the command line.
        preset: gives whom they do not name.

    Returns:
        Rows of the grid, each once, seed by seed.

    Raises:
        UserError: if a name is not understood, or a seed is no such number.
    """
    names, seeds = dict.fromkeys(options.encoders or preset.candidates), dict.fromkeys(options.seeds)
    for seed in seeds:
        if not 0 <= seed < 1 << 31:
            raise UserError(f"--seeds {seed}: expected numbers from 0 to {(1 << 31) - 1}")
    if not seeds:
        raise UserError("--seeds: give at least one")
    return tuple(parse_candidate(name, preset, seed) for seed in seeds for name in names)


def in_portions(preset: Preset, micro_batch: int | None) -> Preset:
    """A recipe with another micro-batch in all stages.

    Args:
        preset: to change.
        micro_batch: samples per forward pass of a worker; None: the recipe's own.

    Returns:
        The recipe.

    Raises:
        UserError: if it does not divide a global batch.
    """
    if micro_batch is None:
        return preset
    for number, stage in enumerate(preset.stages, start=1):
        if micro_batch < 1 or stage.global_batch % micro_batch:
            raise UserError(
                f"--micro-batch {micro_batch}: stage {number} has a global batch of {stage.global_batch}; give a "
                "number that divides it"
            )
    return replace(preset, stages=tuple(replace(stage, micro_batch=micro_batch) for stage in preset.stages))


def make_plan(options: SweepOptions, sweep: str, grid: Grid, candidates: Sequence[Candidate]) -> Plan:
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
    for name, count in Counter(candidate.trial for candidate in candidates).items():
        if count > 1:
            raise UserError(f"{count} candidates would be called {name} in the records; rename a file or folder")
    return Plan(
        sweep,
        absolute(options.storage),
        grid.preset,
        tuple(candidates),
        grid.benchmarks,
        grid.conditions,
        options.save_every,
        options.compile,
        options.first_samples,
        judges=tuple(map(read_judge, dict.fromkeys(options.judges))),
    )


def run_plan(options: SweepOptions, plan: Plan, workers: int = 1) -> None:
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
