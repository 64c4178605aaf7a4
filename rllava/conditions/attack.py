"""Images found by attacking the model white-box, each within a budget around its clean image.

Shapes: B samples of a shard, N some of them, C channel, H/W image.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rllava.attacks.engine import Aim, AnswerLoss, Attacked, Engine, Judge
from rllava.attacks.outcome import GRID_VERSION, Outcome, round_to_8_bits
from rllava.attacks.protocols import Protocol
from rllava.attacks.rounds import Round
from rllava.conditions.clean import Clean
from rllava.conditions.condition import CONDITIONS, Condition, Passes, Setting
from rllava.data.benchmarks import BenchmarkSpec
from rllava.errors import UserError
from rllava.evaluation.in_flight import ResumableAttack
from rllava.evaluation.rows import attack_fields, image_fields
from rllava.evaluation.samples import Sample
from rllava.evaluation.shard import ShardWork
from rllava.evaluation.shard_checks import CHECKED_PER_SHARD, FEWER_STEPS, SQUARE_QUERIES, check_shard
from rllava.evaluation.victim import Victim
from rllava.tasks.decoys import DECOYS_VERSION


@dataclass(frozen=True)
class Budget:
    """How far an image may go from the clean one.

    Attributes:
        size: in 1/255, above 0.
        norm: in which it is measured.
    """

    size: float
    norm: Literal["linf", "l2"] = "linf"

    def __post_init__(self) -> None:
        if not self.size > 0:
            raise ValueError(f"size: a budget is above 0, got {self.size}; the clean image is a condition of its own")


@dataclass(frozen=True)
class ByProtocol(Condition):
    """A condition under which the rounds of a protocol are run."""

    searches: ClassVar[bool] = True
    protocol: Protocol

    def precisions(self, task: str) -> tuple[str, ...]:
        """Of the rounds, in order; the clean image is answered as in the first."""
        return tuple(dict.fromkeys(entry.precision for entry in self.protocol.rounds(task)))

    def versions_for(self, task: str) -> Mapping[str, int]:
        """Of the grid of stored images, and of the bank of wrong answers if any round aims at one."""
        return {"grid": GRID_VERSION, **({"decoys": DECOYS_VERSION} if self.aims_at_decoys(task) else {})}

    def aims_at_decoys(self, task: str) -> bool:
        """Whether any round does."""
        return any(entry.label.of == "decoy" for entry in self.protocol.rounds(task))


@dataclass(frozen=True)
class Attack(ByProtocol):
    """The worst answer that a protocol finds within a budget."""

    kind: ClassVar[str] = "attack"
    budget: Budget

    def __post_init__(self) -> None:
        if self.budget.norm != "linf":
            raise ValueError(f"budget: the rounds of protocols keep to L-inf, not to {self.budget.norm}")

    @classmethod
    def named(cls, what: str, setting: Setting) -> "Attack":
        """Attacks have options of their own."""
        raise UserError("condition attack: attacks are asked for by --protocol and --budgets")

    @property
    def label(self) -> str:
        """The protocol's."""
        return self.protocol.label

    @property
    def short(self) -> str:
        """The budget; the fingerprint beside it tells protocols apart."""
        return f"eps{self.budget.size:g}"

    @property
    def phrase(self) -> str:
        """The budget."""
        return f"at {self.budget.size:g}/255"

    @property
    def epsilon(self) -> float:
        """The budget's size."""
        return self.budget.size

    @property
    def targeted(self) -> bool:
        """Whether every round aims at a text that the model shall say."""
        return self.protocol.targeted

    def passes(self, benchmark: BenchmarkSpec, labels: float) -> tuple[Passes, ...]:
        """Every round that a sample has a label for, to its last step; checks of some samples; the 8-bit answer."""
        rounds = self.protocol.rounds(benchmark.task.kind)
        found: dict[tuple[str, bool], Passes] = {}

        def add(precision: str, tokens: bool, steps: float, looks: float, answers: float) -> None:
            before = found.get((precision, tokens), Passes(precision, encoders_only=tokens))
            found[precision, tokens] = Passes(
                precision, before.steps + steps, before.looks + looks, before.answers + answers, tokens
            )

        for entry in rounds:
            numbered = entry.label.of == "reference"
            share = min(1.0, max(0.0, labels - (entry.label.number or 0))) if numbered else 1.0
            answers = entry.judged + len(entry.answers)
            add(entry.precision, entry.label.of == "tokens", share * entry.steps, share, share * answers)
        checked = min(1.0, CHECKED_PER_SHARD / benchmark.rows_per_shard)
        last = rounds[-1]
        fewer = min(last.steps // 2, FEWER_STEPS)
        tokens = last.label.of == "tokens"
        add(last.precision, tokens, checked * fewer, checked * (SQUARE_QUERIES + _CHECK_LOOKS), checked)
        add(self.precisions(benchmark.task.kind)[0], False, 0.0, 0.0, 1.0)
        return tuple(found.values())

    def run(self, work: ShardWork) -> list[dict[str, Any]]:
        """Attacks, checks some of the attacks, and answers the found images again in 8 bits."""
        shard, victim, epsilon = work.shard, work.victim, self.epsilon
        rows, clean_BCHW = work.clean_rows(), shard.pixels_BCHW
        resumable = ResumableAttack(self._engine(work), work.spec, work.saving)
        outcomes = resumable.run()
        attacked = [b for b, outcome in enumerate(outcomes) if outcome.rounds]
        for b in attacked:
            rows[b] |= attack_fields(outcomes[b], clean_BCHW[b])
            rows[b] |= image_fields(outcomes[b].image_CHW, clean_BCHW[b], epsilon)

        def in_8_bits(part: Sequence[int]) -> tuple[Sequence[int], tuple[list[str], list[float]]]:
            worst_NCHW = torch.stack([outcomes[b].image_CHW for b in part])
            rounded_NCHW = round_to_8_bits(worst_NCHW, clean_BCHW[part], epsilon)
            samples = [shard.samples[b] for b in part]
            return part, victim.answer(rounded_NCHW, samples, work.scoring, victim.finest)

        for part, (answers, scores) in work.batches.run(in_8_bits, attacked):
            for b, answer, score in zip(part, answers, scores, strict=True):
                rows[b] |= {"prediction_8bit": answer, "score_8bit": score}
        for b, names in self._findings(work, outcomes, resumable).items():
            rows[b] |= {"checked": True, "findings": names}
        return rows

    def _engine(self, work: ShardWork) -> Engine:
        return Engine(
            self._rounds(work),
            attacked_in(work),
            epsilon=self.epsilon,
            answer_loss=answer_loss(work.victim, work.shard.samples, work.shard.pixels_BCHW),
            judge=judge_of(work),
            dropped=dropped_by(self.protocol, work.spec.benchmark),
            in_flight=work.spec.batch_size or work.batches.limit,
            batches=work.batches,
        )

    def _findings(
        self, work: ShardWork, outcomes: Sequence[Outcome], resumable: ResumableAttack[Outcome]
    ) -> dict[int, list[str]]:
        dropped = dropped_by(self.protocol, work.spec.benchmark)
        solved = [dropped(outcome.score) for outcome in outcomes]
        return findings_of(work, outcomes, self.epsilon, solved, resumable)

    def _rounds(self, work: ShardWork) -> tuple[Round, ...]:
        return self.protocol.rounds(work.spec.benchmark.task.kind)


CONDITIONS.register(Attack.kind, Attack)

_CHECK_LOOKS = 12
"""Passes of the checks of an attack that follow its gradient in small steps, about."""


def within(protocol: Protocol, size: float) -> Condition:
    """The condition that a budget of an L-inf protocol stands for.

    Args:
        size: in 1/255; 0: the clean image, answered as the protocol does.
    """
    return Attack(protocol, Budget(size)) if size > 0 else Clean(protocol.clean_precision)


def at_budgets(protocol: Protocol, sizes: Iterable[float]) -> tuple[Condition, ...]:
    """Conditions :func:`within` several budgets, which rise."""
    return tuple(within(protocol, size) for size in sorted(sizes))


def attacked_in(work: ShardWork, floors: Sequence[float] | None = None) -> Attacked:
    """The samples of a shard, as an engine attacks them.

    Args:
        floors: per sample, the score below which nothing is left to attack; None: no such.
    """
    shard, samples = work.shard, work.shard.samples
    return Attacked(
        images_BCHW=shard.pixels_BCHW,
        labels=[work.spec.benchmark.task.labels(sample.references) for sample in samples],
        predictions=shard.predictions,
        scores=shard.scores,
        seeds=shard.seeds,
        decoys=lambda b, image_CHW: work.victim.decoys(image_CHW[None], samples[b], work.scoring),
        others=work.others,
        floors=floors,
    )


def judge_of(work: ShardWork) -> Judge:
    """Answers of the victim, and their scores."""

    def judge(images_NCHW: Tensor, who: Sequence[int], precision: str) -> tuple[list[str], list[float]]:
        return work.victim.answer(images_NCHW, [work.shard.samples[b] for b in who], work.scoring, precision)

    return judge


def findings_of(
    work: ShardWork,
    outcomes: Sequence[Outcome],
    epsilon: float,
    solved: Sequence[bool],
    resumable: ResumableAttack[Any],
) -> dict[int, list[str]]:
    """What the attack checks find in some of the attacks on a shard, at one budget.

    Args:
        solved: per sample, whether nothing is left to attack.
        resumable: keeps what was found so far.

    Returns:
        Per checked sample, the names of the checks that were raised.
    """
    shard, judge = work.shard, judge_of(work)
    return check_shard(
        outcomes,
        shard.pixels_BCHW,
        shard.predictions,
        epsilon=epsilon,
        clean_precision=work.spec.precisions[0],
        seeds=shard.seeds,
        solved=solved,
        answer_loss=answer_loss(work.victim, shard.samples, shard.pixels_BCHW),
        answer=lambda images_NCHW, who, precision: judge(images_NCHW, who, precision)[0],
        most=work.batches.limit,
        count=work.scoring.checked,
        known=resumable.known,
        save=resumable.found,
    )


def answer_loss(victim: Victim, samples: Sequence[Sample], clean_BCHW: Tensor) -> AnswerLoss:
    """The loss that attacks on some samples raise.

    Args:
        clean_BCHW: their images, whose visual tokens are computed when a task first asks for tokens.

    Returns:
        A function of images, what is attacked of whom, and the model's precision.
    """
    known: dict[str, list[Tensor]] = {}

    def tokens_loss(pixels_NCHW: Tensor, who: list[int], precision: str) -> Tensor:
        if precision not in known:
            with torch.no_grad():
                known[precision] = victim.features(clean_BCHW, precision)
        return victim.token_loss(pixels_NCHW, [tokens_BPD[who] for tokens_BPD in known[precision]], precision)

    def loss(pixels_NCHW: Tensor, aims: Sequence[Aim], precision: str) -> Tensor:
        texts = [aim.text for aim in aims]
        if texts[0] is None:
            return tokens_loss(pixels_NCHW, [aim.sample for aim in aims], precision)
        tokens = [victim.tokens(samples[aim.sample].prompt, aim.text) for aim in aims]
        return victim.loss(pixels_NCHW, tokens, precision)

    return loss


def dropped_by(protocol: Protocol, benchmark: BenchmarkSpec) -> Callable[[float], bool]:
    """Which scores leave nothing to attack.

    Returns:
        A function of a score.
    """
    rules: dict[str, Callable[[float], bool]] = {
        "threshold": benchmark.task.drops,
        "floor": lambda score: score <= 0,
        "never": lambda score: False,
    }
    return rules[protocol.drops]
