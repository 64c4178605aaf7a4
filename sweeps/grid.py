"""What options mean for a grid, its plan, and how it is run."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from rllava.attacks.protocols import PROTOCOLS, Protocol, in_precision, with_steps
from rllava.conditions.attack import at_budgets
from rllava.conditions.clean import Clean
from rllava.conditions.condition import Condition, Setting, read_conditions
from rllava.conditions.corruption import Corruption
from rllava.data.benchmarks import BENCHMARKS
from rllava.data.corruptions import CORRUPTIONS, SMALLEST_SIDE, all_corruptions, check_library, known_fit
from rllava.encoders import check_swap, check_together, encoder_spec
from rllava.errors import UserError
from rllava.metrics.judges.judge import read_judge
from rllava.model.checkpoint import read_checkpoint
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.recipes import PRESETS, Candidate, Grid, named
from rllava.specs import ModelSpec, Stage
from sweeps.options import (
    AttackOptions,
    CandidateOptions,
    CheckpointOptions,
    ProtocolOptions,
    QuestionOptions,
    SweepOptions,
    absolute,
    check_numbers,
    read_budgets,
)
from sweeps.plan import Plan, check_inputs

Variants = Callable[[ModelSpec], Iterable[tuple[str, ModelSpec]]]
"""From a candidate's model to others, each with a name."""


def read_grid(options: AttackOptions, grid: Grid) -> Grid:
    """A grid under the attacks that options ask for.

    Args:
        grid: gives what they do not name.

    Raises:
        UserError: naming the option and the remedy.
    """
    check_numbers(options)
    budgets = read_budgets(options, grid.budgets)
    return grid_of(options, grid, at_budgets(protocol_of(options, grid), budgets))


def protocol_of(options: ProtocolOptions, grid: Grid) -> Protocol:
    """The protocol that options ask for, or a grid's.

    Raises:
        UserError: if there is none of that name, or the number of steps or the precision makes no sense.
    """
    protocol = PROTOCOLS.get(options.protocol) if options.protocol else grid.protocols[0]
    if options.attack_steps is not None:
        protocol = with_steps(protocol, options.attack_steps)
    if options.attack_precision is not None:
        protocol = in_precision(protocol, options.attack_precision)
    return protocol


def corruption_conditions(
    grid: Grid, names: Sequence[str], side: int | None = None, fit: str = "inside"
) -> tuple[Condition, ...]:
    """Clean images and corrupted ones, answered in the precision of the grid's clean answers.

    Args:
        names: of corruptions; none: all.
        side: size at which images are corrupted, in pixels; None: the grid's.
        fit: how they get that size, see ``rllava.data.corruptions.Fit``.

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
    precision = grid.clean.precision
    chosen = dict.fromkeys(names or all_corruptions())
    size = side or grid.corrupted_at
    return (Clean(precision), *(Corruption(name, size, fit, precision) for name in chosen))  # type: ignore[arg-type]


def grid_of(options: SweepOptions, grid: Grid, conditions: Sequence[Condition]) -> Grid:
    """A grid with other conditions, and with the benchmarks, samples and batches that options ask for.

    Args:
        options: from the command line; the conditions that they name stand beside the others.
        grid: gives what they do not name.
        conditions: what models are shown, clean images among them.

    Raises:
        UserError: if a benchmark or condition is unknown.
    """
    benchmarks = grid.benchmarks
    if options.benchmarks:
        own, first = {spec.name: spec for spec in benchmarks}, benchmarks[0]
        benchmarks = tuple(
            own.get(name) or replace(BENCHMARKS.get(name), samples=first.samples, rows_per_shard=first.rows_per_shard)
            for name in dict.fromkeys(options.benchmarks)
        )
    if options.samples is not None:
        benchmarks = tuple(replace(spec, samples=options.samples) for spec in benchmarks)
    changed = replace(grid, benchmarks=benchmarks, conditions=tuple(conditions))
    setting = Setting(changed.clean.precision, grid.corrupted_at, changed.attacks)
    beside = tuple(found for name in options.conditions for found in read_conditions(name, setting))
    return replace(
        changed,
        conditions=tuple(dict.fromkeys((*conditions, *beside))),
        batch_size=grid.batch_size if options.batch_size is None else options.batch_size,
    )


def candidates_of(options: CandidateOptions, grid: Grid) -> tuple[Candidate, ...]:
    """Whom a sweep compares: each once, seed by seed.

    Args:
        grid: gives whom they do not name, and how those whom they name are trained.

    Raises:
        UserError: if a name is not understood, a seed is no such number, or the micro-batch divides no global batch.
    """
    seeds = dict.fromkeys(options.seeds)
    for seed in seeds:
        if not 0 <= seed < 1 << 31:
            raise UserError(f"--seeds {seed}: expected numbers from 0 to {(1 << 31) - 1}")
    if not seeds:
        raise UserError("--seeds: give at least one")
    names = tuple(dict.fromkeys(options.encoders))
    found = named(grid.model, *names) if names else grid.candidates

    def with_seed(model: ModelSpec | CheckpointSpec, seed: int) -> ModelSpec | CheckpointSpec:
        if not isinstance(model, ModelSpec):
            return model
        return replace(model, seed=seed, stages=in_portions(model.stages, options.micro_batch))

    every = (replace(entry, model=with_seed(entry.model, seed)) for seed in seeds for entry in found)
    return tuple(dict.fromkeys(every))  # a checkpoint from elsewhere has no seed


def checkpoints_of(options: CheckpointOptions, encoders: Sequence[str]) -> tuple[Candidate, ...]:
    """Every checkpoint with its own encoders, and with each of some others plugged in.

    Args:
        encoders: names of the others; for an ensemble a+b.

    Raises:
        UserError: if none is named, a checkpoint cannot be read, or an encoder does not fit its projectors.
    """
    if not options.model:
        raise UserError("--model: give at least one checkpoint, a folder or ORG/NAME of the hub")
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
        for text in dict.fromkeys(encoders):
            used = tuple(encoder_spec(name) for name in text.split("+"))
            check_together(used, f"--encoders {text}")
            check_swap(used, checkpoint.encoders, f"--encoders {text}, {checkpoint.name}")
            plugged = "+".join(spec.name for spec in used)
            found.append(replace(own, name=f"{plugged}@{checkpoint.name}", used=used))
    return tuple(found)


def plan_question(options: QuestionOptions, sweep: str, variants: Variants | None = None) -> Plan:
    """The plan of a question that attacks a preset's candidates, or those that options name.

    Args:
        sweep: its name.
        variants: of the model of every candidate whose LLaVA is trained, by name: the candidates are then those, called
            ``NAME:VARIANT``.

    Raises:
        UserError: naming the option and the remedy.
    """
    grid = read_grid(options, PRESETS.get(options.preset))
    candidates = candidates_of(options, grid)
    if variants is not None:
        candidates = tuple(
            replace(candidate, name=f"{candidate.name}:{name}", model=model)
            for candidate in candidates
            if isinstance(candidate.model, ModelSpec)
            for name, model in variants(candidate.model)
        )
    return make_plan(options, sweep, replace(grid, candidates=candidates))


def in_portions(stages: Sequence[Stage], micro_batch: int | None) -> tuple[Stage, ...]:
    """Stages with another micro-batch.

    Args:
        micro_batch: samples per forward pass of a worker; None: each stage's own.

    Raises:
        UserError: if it does not divide a global batch.
    """
    if micro_batch is None:
        return tuple(stages)
    for number, stage in enumerate(stages, start=1):
        if micro_batch < 1 or stage.global_batch % micro_batch:
            raise UserError(
                f"--micro-batch {micro_batch}: stage {number} has a global batch of {stage.global_batch}; give a "
                "number that divides it"
            )
    return tuple(replace(stage, micro_batch=micro_batch) for stage in stages)


def make_plan(options: SweepOptions, sweep: str, grid: Grid) -> Plan:
    """The plan of a sweep.

    Raises:
        UserError: if two candidates have one name.
    """
    for name, count in Counter(candidate.trial for candidate in grid.candidates).items():
        if count > 1:
            raise UserError(f"{count} candidates would be called {name} in the records; rename a file or folder")
    names = tuple(dict.fromkeys(candidate.name for candidate in grid.candidates))
    conditions = dict.fromkeys(found for condition in grid.conditions for found in condition.over(names))
    grid = replace(grid, conditions=tuple(conditions))
    return Plan(
        sweep,
        absolute(options.storage),
        grid,
        options.save_every,
        options.compile,
        options.first_samples,
        judges=tuple(map(read_judge, dict.fromkeys(options.judges))),
    )


def run_plan(options: SweepOptions, plan: Plan) -> None:
    """Runs a plan on the machines that the options ask for, after a look at everything it reads; or prints it."""
    if options.plan is not None:
        from sweeps.planning import print_plan

        print_plan(options, plan)
        return
    plan = check_inputs(plan)
    # Ray takes seconds to import; what the look has found is told without it.
    from sweeps.runner import machines_of, run, shut_down

    try:
        run(plan, machines_of(options))
    finally:
        shut_down()
