"""The smallest budget at which each sample is beaten, found by a search of its own.

Shapes: N some samples of a shard, C channel, H/W image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from rllava.attacks.outcome import round_to_8_bits
from rllava.attacks.smallest import Descent, SmallestBudgets, ladder, warm
from rllava.conditions.attack import Attack, Budget, ByProtocol, answer_loss, attacked_in, findings_of, judge_of
from rllava.conditions.condition import CONDITIONS, Passes, Setting
from rllava.data.benchmarks import BenchmarkSpec
from rllava.errors import UserError
from rllava.evaluation.in_flight import ResumableAttack
from rllava.evaluation.rows import image_fields, loss_fields, norm_of
from rllava.evaluation.shard import ShardWork
from rllava.records import SMALLEST


@dataclass(frozen=True)
class SmallestBudget(ByProtocol):
    """The smallest L-inf budget of a ladder at which a protocol's rounds beat a sample.

    A sample is beaten when its score is 0, below the benchmark's drop threshold, or below a share of its own clean
    score. One whose clean score is 0 or below the threshold is beaten at 0.

    Attributes:
        largest: budget, in 1/255, beyond which nothing is looked for; the top of the ladder.
        smallest: no rung is below it.
        per_octave: rungs to a factor of two: with 4, a budget is known to 19 %.
        below: share of the clean score.
    """

    kind: ClassVar[str] = SMALLEST
    largest: float
    smallest: float = 0.25
    per_octave: int = 4
    below: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= self.largest <= 255:
            raise ValueError(
                f"smallest: expected budgets 0 < smallest <= largest <= 255 (units of 1/255), got {self.smallest:g} "
                f"and {self.largest:g}"
            )
        if not 1 <= self.per_octave <= 32:
            raise ValueError(f"per_octave: expected 1 to 32 budgets to a factor of two, got {self.per_octave}")
        if not 0 <= self.below <= 1:
            raise ValueError(f"below: expected a share of the clean score, 0 to 1, got {self.below:g}")
        if self.protocol.targeted:
            raise ValueError(f"protocol {self.protocol.name} wants a text said, and lowers no score; give another one")
        if self.protocol.after:
            raise ValueError(
                f"protocol {self.protocol.name} starts from what others found at one budget, of which a search over "
                "budgets has none; give another one"
            )

    @classmethod
    def named(cls, what: str, setting: Setting) -> "SmallestBudget":
        """Searches have a sweep of their own."""
        raise UserError("condition smallest_budget: smallest budgets are asked for by sweeps/budgets.py")

    @property
    def label(self) -> str:
        """The protocol's, within its kind's."""
        return f"smallest[{self.protocol.label}]-v{self.version}"

    @property
    def short(self) -> str:
        """Kind and largest budget; the fingerprint beside it tells the rest apart."""
        return f"smallest{self.largest:g}"

    @property
    def phrase(self) -> str:
        """The largest budget."""
        return f"searched up to {self.largest:g}/255"

    @property
    def epsilon(self) -> float:
        """The largest budget, which every image keeps."""
        return self.largest

    @property
    def budgets(self) -> tuple[float, ...]:
        """The ladder, rising."""
        return ladder(self.smallest, self.largest, self.per_octave)

    def passes(self, benchmark: BenchmarkSpec, labels: float) -> tuple[Passes, ...]:
        """All rounds twice, at the largest budget and below the one that is found, and the probes of the bisection.

        A probe answers a projected image and may take a share of a round's steps (``attacks.smallest.warm``). Where
        the rounds below succeed, the search goes on from there, which is not counted.
        """
        once = Attack(self.protocol, Budget(self.largest)).passes(benchmark, labels)
        probes = math.ceil(math.log2(len(self.budgets) + 1))
        steps = max(warm(entry).steps for entry in self.protocol.rounds(benchmark.task.kind))
        first, *others = (replace(entry, steps=2 * entry.steps, answers=2 * entry.answers) for entry in once)
        first = replace(first, steps=first.steps + probes * steps, answers=first.answers + probes * 2)
        return (first, *others)

    def run(self, work: ShardWork) -> list[dict[str, Any]]:
        """Searches, checks some of the attacks at the largest budget, and answers the found images again in 8 bits."""
        rows, shard = work.clean_rows(), work.shard
        search = self._search(work)
        resumable = ResumableAttack(search, work.spec, work.saving)
        resumable.run()
        dropped = beaten_by(work.spec.benchmark)
        attacked = [b for b, found in enumerate(search.searches) if found.rounds]
        for b, found in enumerate(search.searches):
            rows[b] |= {"beaten_at": 0.0} if dropped(shard.scores[b]) else self._fields(found)
        for b in attacked:
            found = search.searches[b]
            rows[b] |= loss_fields(search.largest[b].evidence)
            rows[b] |= {"linf": norm_of(found.image_CHW, shard.pixels_BCHW[b])}
            rows[b] |= image_fields(found.image_CHW, shard.pixels_BCHW[b], self._budget(found))
        self._answer_in_8_bits(work, search.searches, attacked, rows)
        solved = [found.rung is not None for found in search.searches]
        for b, names in findings_of(work, search.largest, self.largest, solved, resumable).items():
            rows[b] |= {"checked": True, "findings": names}
        return rows

    def _budget(self, found: Descent) -> float:
        return self.largest if found.rung is None else self.budgets[found.rung]

    def _fields(self, found: Descent) -> dict[str, Any]:
        """What the search of a sample did."""
        # Rounds that failed prove no robustness: neither at the largest budget nor below the one that was found.
        error = found.error
        return {
            "beaten_at": None if found.rung is None or error else self._budget(found),
            "prediction": found.prediction,
            "score": found.score if error is None else None,
            "steps": found.steps,
            "rounds": found.rounds,
            "round_epsilons": [self.budgets[rung] for rung in found.rungs],
            "round_predictions": found.round_predictions,
            "round_scores": found.round_scores,
            "best_round": found.best_round,
            "zero_gradient_share": found.zero_gradient_share,
            "error": error,
        }

    def _search(self, work: ShardWork) -> SmallestBudgets:
        shard = work.shard
        return SmallestBudgets(
            self.protocol.rounds(work.spec.benchmark.task.kind),
            attacked_in(work, floors=[self.below * score for score in shard.scores]),
            budgets=self.budgets,
            answer_loss=answer_loss(work.victim, shard.samples, shard.pixels_BCHW),
            judge=judge_of(work),
            dropped=beaten_by(work.spec.benchmark),
            in_flight=work.spec.batch_size or work.batches.limit,
            batches=work.batches,
        )

    def _answer_in_8_bits(
        self, work: ShardWork, searches: Sequence[Descent], attacked: Sequence[int], rows: list[dict[str, Any]]
    ) -> None:
        def of(part: Sequence[int]) -> tuple[Sequence[int], tuple[list[str], list[float]]]:
            images_NCHW = torch.stack([searches[b].image_CHW for b in part])
            budgets = [self._budget(searches[b]) for b in part]
            rounded_NCHW = round_to_8_bits(images_NCHW, work.shard.pixels_BCHW[list(part)], budgets)
            samples = [work.shard.samples[b] for b in part]
            return part, work.victim.answer(rounded_NCHW, samples, work.scoring, work.victim.finest)

        for part, (answers, scores) in work.batches.run(of, attacked):
            for b, answer, score in zip(part, answers, scores, strict=True):
                rows[b] |= {"prediction_8bit": answer, "score_8bit": score}


CONDITIONS.register(SmallestBudget.kind, SmallestBudget)


def beaten_by(benchmark: BenchmarkSpec) -> Callable[[float], bool]:
    """At which scores a sample is beaten, whatever its clean score: 0, and below the benchmark's threshold.

    Returns:
        A function of a score.
    """
    return lambda score: score <= 0 or benchmark.task.drops(score)
