"""The smallest budget of each sample beside a list of fixed ones: what each finds, and what it costs.

    python -m benchmarks.smallest_budgets --storage results

On LLaVAs that the ablation has trained, all in one process: the same samples, rounds, seeds and rule of who is
beaten. Fixed budgets are counted twice: each on its own, as a sweep over budgets runs them, and rising, with those left
out that a smaller one has beaten. Every attack ends as soon as its sample is beaten.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.bootstrap import Resampling, bca_interval, bootstrap_means
from benchmarks.common import ready_benchmark, trained_llava, write_sheet
from rllava.attacks.engine import Attacked, Engine
from rllava.attacks.memory import Batches
from rllava.attacks.protocols import PROTOCOLS, Protocol
from rllava.attacks.smallest import SmallestBudgets, ladder
from rllava.conditions.attack import answer_loss
from rllava.conditions.smallest_budget import beaten_by
from rllava.data.benchmarks import BENCHMARKS, BenchmarkSpec
from rllava.evaluation.shard import answer_clean
from rllava.evaluation.victim import Scoring, Victim
from rllava.tasks.decoys import most_common_answers
from sweeps.console import run_script


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        storage: results folder with trained LLaVAs of preset tiny.
        protocol: rounds of both.
        budgets: fixed ones, rising, in 1/255; the search looks up to the last.
        below: share of the clean score below which a sample is beaten.
        output: Markdown file to write.
    """

    storage: Path = Path("results")
    candidates: tuple[str, ...] = ("tiny-clip", "tiny-advxl")
    benchmarks: tuple[str, ...] = ("easy_vqa", "easy_captions")
    protocol: str = "paper_ensemble_10steps"
    budgets: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
    samples: int = 64
    smallest: float = 0.25
    per_octave: int = 4
    below: float = 0.5
    output: Path = Path("benchmarks/sheets/smallest_budgets.md")


@dataclass
class Cost:
    """What an attack took."""

    steps: int = 0
    forwards: int = 0
    answers: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Side:
    """Who is not beaten, [B, E] over the fixed budgets, and at what cost."""

    standing_BE: np.ndarray
    cost: Cost


@dataclass(frozen=True)
class Attack:
    """All that both sides share."""

    protocol: Protocol
    benchmark: BenchmarkSpec
    attacked: Attacked
    arguments: dict[str, Any]

    def counted(self, cost: Cost) -> dict[str, Any]:
        """Arguments of an engine whose answers are counted."""
        judge = self.arguments["judge"]

        def count(images_NCHW: Tensor, who: Sequence[int], precision: str) -> Any:
            cost.answers += len(who)
            return judge(images_NCHW, who, precision)

        return {**self.arguments, "judge": count}


def attack_on(victim: Victim, spec: BenchmarkSpec, options: Options) -> Attack:
    """Everything of a benchmark that both sides attack, after its clean answers."""
    samples, metric, state = ready_benchmark(spec, victim.image_size)
    bank = most_common_answers([sample.references for sample in samples])
    scoring = Scoring(spec, metric, state, bank)
    batches = Batches(32)
    clean = answer_clean(victim, samples, scoring, "float32", batches)

    def judge(images_NCHW: Tensor, who: Sequence[int], precision: str) -> tuple[list[str], list[float]]:
        return victim.answer(images_NCHW, [samples[b] for b in who], scoring, precision)

    attacked = Attacked(
        clean.pixels_BCHW,
        [spec.task.labels(sample.references) for sample in samples],
        clean.predictions,
        clean.scores,
        clean.seeds,
        decoys=lambda b, image_CHW: victim.decoys(image_CHW[None], samples[b], scoring),
        floors=[options.below * score for score in clean.scores],
    )
    arguments = {
        "answer_loss": answer_loss(victim, samples, clean.pixels_BCHW),
        "judge": judge,
        "dropped": beaten_by(spec),
        "in_flight": 32,
        "batches": batches,
    }
    return Attack(PROTOCOLS.get(options.protocol), spec, attacked, arguments)


def timed(run: Callable[[Cost], np.ndarray]) -> Side:
    """A side, with the seconds it took."""
    cost, started = Cost(), time.perf_counter()
    standing_BE = run(cost)
    cost.seconds = time.perf_counter() - started
    return Side(standing_BE, cost)


def searched(attack: Attack, options: Options) -> Side:
    """Smallest budgets."""

    def run(cost: Cost) -> np.ndarray:
        budgets = ladder(options.smallest, options.budgets[-1], options.per_octave)
        rounds = attack.protocol.rounds(attack.benchmark.task.kind)
        search = SmallestBudgets(rounds, attack.attacked, budgets=budgets, **attack.counted(cost))
        found = search.run()
        cost.steps, cost.forwards = sum(one.steps for one in found), sum(one.forwards for one in found)
        clean = [attack.arguments["dropped"](score) for score in attack.attacked.scores]
        at_B = [
            0.0 if wrong else np.inf if one.rung is None else budgets[one.rung]
            for one, wrong in zip(found, clean, strict=True)
        ]
        return np.array(at_B)[:, None] > np.array(options.budgets)[None]

    return timed(run)


def fixed(attack: Attack, options: Options, rising: bool) -> Side:
    """Each budget on its own; rising: without those whom a smaller one has beaten."""

    def run(cost: Cost) -> np.ndarray:
        columns = []
        standing = [True] * len(attack.attacked.scores)
        for budget in options.budgets:
            rounds = attack.protocol.rounds(attack.benchmark.task.kind)
            takes = [range(len(rounds)) if left else () for left in standing]
            engine = Engine(rounds, attack.attacked, epsilon=budget, takes=takes, **attack.counted(cost))
            outcomes = engine.run()
            cost.steps += sum(outcome.steps for outcome in outcomes)
            cost.forwards += sum(outcome.forwards for outcome in outcomes)
            lost = [engine.is_dropped(b, outcome.score) for b, outcome in enumerate(outcomes)]
            columns.append([left and not gone for left, gone in zip(standing, lost, strict=True)])
            if rising:
                standing = columns[-1]
        return np.array(columns).T

    return timed(run)


def interval(values_B: np.ndarray) -> tuple[float, float, float]:
    """Mean, in percent, with its 95 % interval over samples."""
    bootstrap = bootstrap_means(100 * values_B[:, None].astype(float), Resampling().draws, (0,))
    low_1, high_1 = bca_interval(bootstrap)
    return float(bootstrap.mean[0]), float(low_1[0]), float(high_1[0])


def shares(side: Side, column: int) -> str:
    """Share not beaten at a budget, with its interval."""
    mean, low, high = interval(side.standing_BE[:, column])
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def rows_of(name: str, search: Side, alone: Side, rising: Side, budgets: Sequence[float]) -> list[tuple[str, ...]]:
    """A row per fixed budget."""
    rows: list[tuple[str, ...]] = []
    for column, budget in enumerate(budgets):
        mean, low, high = interval(
            search.standing_BE[:, column].astype(float) - rising.standing_BE[:, column].astype(float)
        )
        beaten = search.standing_BE[:, column] != rising.standing_BE[:, column]
        only = int((beaten & rising.standing_BE[:, column]).sum())
        rows.append(
            (
                f"{name} {budget:g}/255", shares(search, column), shares(alone, column), shares(rising, column),
                f"{mean:+.1f} ({low:+.1f} to {high:+.1f})", str(only), str(int(beaten.sum()) - only),
            )
        )  # fmt: skip
    return rows


def cost_row(name: str, sides: Sequence[Side]) -> str:
    """Costs of the three sides, as a line of a table."""
    cells = [
        f"{side.cost.steps:,} steps, {side.cost.forwards:,} forwards, {side.cost.answers:,} answers, "
        f"{side.cost.seconds:.0f} s"
        for side in sides
    ]
    return f"| {name} | {' | '.join(cells)} |"


def joined(sides: Sequence[Side]) -> Side:
    """Several cells as one."""
    parts = [side.cost for side in sides]
    total = Cost(
        sum(part.steps for part in parts),
        sum(part.forwards for part in parts),
        sum(part.answers for part in parts),
        sum(part.seconds for part in parts),
    )
    return Side(np.concatenate([side.standing_BE for side in sides]), total)


def main(options: Options) -> None:
    """Runs all sides on every candidate and benchmark, and writes the sheet."""
    cells: list[tuple[str, list[Side]]] = []
    for candidate in options.candidates:
        llava, _ = trained_llava(options.storage, candidate)
        victim = Victim(llava, torch.device("cpu"))
        for benchmark in options.benchmarks:
            spec = replace(BENCHMARKS.get(benchmark), samples=options.samples)
            attack = attack_on(victim, spec, options)
            sides = [searched(attack, options), fixed(attack, options, False), fixed(attack, options, True)]
            cells.append((f"{candidate} {benchmark}", sides))
            print(cost_row(*cells[-1]), flush=True)
            victim.forget()
    whole = [joined([sides[index] for _, sides in cells]) for index in range(3)]
    cells.append(("all", whole))
    rows = [row for name, sides in cells for row in rows_of(name, sides[0], sides[1], sides[2], options.budgets)]
    costs = "\n".join(cost_row(*cell) for cell in cells)
    write_sheet(
        options.output,
        "Smallest budgets beside fixed ones",
        f"`python -m benchmarks.smallest_budgets`: {options.samples} samples of each benchmark, {options.protocol}, "
        f"one process, threads: {torch.get_num_threads()}.\nA sample is beaten below {options.below:g} of its clean "
        f"score. The search: {len(ladder(options.smallest, options.budgets[-1], options.per_octave))} budgets from "
        f"{options.smallest:g} to {options.budgets[-1]:g}/255. Fixed: {', '.join(f'{b:g}' for b in options.budgets)}"
        "/255.\nGradient steps, forward passes, answers and seconds, summed over samples:\n\n"
        "| | search | fixed budgets, each alone | fixed budgets, rising |\n| --- | --- | --- | --- |\n"
        f"{costs}\n\nSamples not beaten, in percent, with 95 % bootstrap intervals over samples; the difference is "
        "the search minus fixed, rising, on the same samples.",
        (
            "candidate, benchmark, budget", "search", "fixed, each alone", "fixed, rising", "difference",
            "beaten by the search alone", "by fixed alone",
        ),
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main, Options, __doc__)
