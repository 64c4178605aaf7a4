"""The work on a shard of a benchmark: from samples and a victim to records. This file knows no Ray.

Shapes: B batch, N some of its samples, C channel, H/W image.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from rllava.attacks.memory import Batches
from rllava.attacks.rounds import Start
from rllava.evaluation.in_flight import Saving
from rllava.evaluation.rows import attacked_as_clean, record_head
from rllava.evaluation.samples import Sample
from rllava.evaluation.shard_checks import CHECKED_PER_SHARD
from rllava.evaluation.victim import Scoring, Victim
from rllava.metrics.metric import Metric, MetricState
from rllava.records import RECORD_SCHEMA
from rllava.specs import EvalSpec

RUN_AS = b"rllava.run_as"


@dataclass(frozen=True)
class Answered:
    """Clean images, answers and scores of a shard, shared by all conditions."""

    samples: list[Sample]
    pixels_BCHW: Tensor
    predictions: list[str]
    scores: list[float]

    @property
    def seeds(self) -> list[int]:
        """One per sample."""
        return [seed_of(sample.sample_id) for sample in self.samples]


def seed_of(sample_id: str) -> int:
    """A sample's seed, whatever shard or worker it is in.

    Returns:
        Below 2^32.
    """
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:4], "big")


def answer_clean(
    victim: Victim, samples: list[Sample], scoring: Scoring, precision: str, batches: Batches,
    known: Mapping[str, tuple[str, float]] | None = None,
) -> Answered:  # fmt: skip
    """Answers the clean images of a shard.

    Args:
        samples: without errors, at least one.
        precision: of the clean pass: that of the protocol's first round.
        known: answers and their scores by sample, from an earlier pass; if one is missing, all are made.
    """
    victim.forget()  # the shard before
    pixels_BCHW = victim.pixels([sample.pixels_HWC for sample in samples if sample.pixels_HWC is not None])
    found = [(known or {}).get(sample.sample_id) for sample in samples]
    if all(found):
        texts, scores = zip(*(answer for answer in found if answer is not None), strict=True)
        return Answered(samples, pixels_BCHW, list(texts), list(scores))
    answered = batches.run(
        lambda part: victim.answer(pixels_BCHW[part], [samples[b] for b in part], scoring, precision),
        list(range(len(samples))),
    )
    predictions = [prediction for part, _ in answered for prediction in part]
    return Answered(samples, pixels_BCHW, predictions, [score for _, part in answered for score in part])


@dataclass(frozen=True)
class ShardWork:
    """What a condition makes the records of a shard with.

    Attributes:
        shard: clean images and answers of the samples without errors.
        saving: where an attack is kept while it is in flight; None: nowhere.
        others: images that other evaluations found, by the start that they are, [B, 3, H, W]; None: there are none.
    """

    spec: EvalSpec
    victim: Victim
    shard: Answered
    scoring: Scoring
    batches: Batches
    saving: Saving | None = None
    others: Mapping[Start, Tensor] | None = None

    def clean_rows(self) -> list[dict[str, Any]]:
        """Per sample, the record of its clean answer, until an attack does worse."""
        return [
            row | attacked_as_clean(prediction, score)
            for b, (prediction, score) in enumerate(zip(self.shard.predictions, self.shard.scores, strict=True))
            for row in self.rows_of(b)
        ]

    def rows_of(self, b: int) -> list[dict[str, Any]]:
        """A sample's records, one per part of the condition, with its clean answer and nothing else yet."""
        clean = {"clean_prediction": self.shard.predictions[b], "clean_score": self.shard.scores[b]}
        parts = self.spec.condition.parts
        return [record_head(self.spec, self.shard.samples[b], part) | clean for part in parts]

    def answer(self, images: Sequence[np.ndarray]) -> tuple[list[str], list[float]]:
        """Answers to other images of the samples, in the precision of the clean ones.

        Args:
            images: one per sample, uint8 [H, W, 3] in the encoder's input space.
        """
        samples, precision = self.shard.samples, self.spec.precisions[0]

        def of(part: Sequence[int]) -> tuple[list[str], list[float]]:
            pixels_NCHW = self.victim.pixels([images[b] for b in part])
            return self.victim.answer(pixels_NCHW, [samples[b] for b in part], self.scoring, precision)

        answered = self.batches.run(of, list(range(len(samples))))
        return [text for texts, _ in answered for text in texts], [score for _, part in answered for score in part]


def evaluate_shard(
    victim: Victim, samples: list[Sample], specs: Sequence[EvalSpec], metric: Metric, state: MetricState,
    *, bank: Sequence[str] = (), saving: Saving | None = None, checked: int = CHECKED_PER_SHARD,
    others: Callable[[EvalSpec, Sequence[Sample]], Mapping[Start, Tensor]] | None = None,
    known: Mapping[str, tuple[str, float]] | None = None,
) -> Iterator[tuple[EvalSpec, pa.Table]]:  # fmt: skip
    """Records of a shard in several evaluations, one clean pass for all of them.

    Args:
        specs: evaluations of this benchmark that still lack this shard; their clean answers have one precision.
        bank: answers to other samples of the benchmark, for protocols that aim at wrong ones.
        saving: where attacks are kept while they are in flight; None: nowhere.
        checked: samples that the attack checks look at.
        others: gives the images that attacks on other models found, for protocols that start from them.
        known: clean answers and their scores by sample, from an earlier pass; if one is missing, all are made.

    Yields:
        Per spec, the shard's records in the order of its samples; the schema's metadata says how they were computed
        (:func:`run_as`).

    Raises:
        UserError: if the task cannot be evaluated so (:meth:`rllava.tasks.task.Task.check`).
    """
    first = specs[0]
    first.benchmark.task.check(attacked=any(spec.condition.epsilon for spec in specs))
    scoring = Scoring(first.benchmark, metric, state, tuple(bank), checked)
    whole = [sample for sample in samples if sample.error is None]
    precision = first.precisions[0]
    for other in (other for spec in specs for other in spec.precisions):
        victim.model(other)  # before any memory is measured or shared out
    shard: Answered | None = None
    if whole:
        batches = victim.batches(whole, first.batch_size, precision)
        shard = answer_clean(victim, whole, scoring, precision, batches, known)
    for spec in specs:
        made: dict[str, list[dict[str, Any]]] = {}
        parts = spec.condition.parts
        if shard is not None:
            found = None if others is None else others(spec, shard.samples)
            for row in spec.condition.run(ShardWork(spec, victim, shard, scoring, batches, saving, found)):
                made.setdefault(row["sample_id"], []).append(row)
        table = [
            row
            for sample in samples
            for row in made.get(sample.sample_id) or [record_head(spec, sample, part) for part in parts]
        ]
        how = {} if shard is None else {"batch_size": batches.limit, "compiled": spec.compiled}
        schema = RECORD_SCHEMA.with_metadata({**(RECORD_SCHEMA.metadata or {}), RUN_AS: json.dumps(how)})
        yield spec, pa.Table.from_pylist(table, schema=schema)


def run_as(schema: pa.Schema) -> dict[str, Any]:
    """What a part says of its making, beside what its evaluation's spec asked for: it may differ in rounding alone.

    Returns:
        ``batch_size``, what fitted in the end, and ``compiled``; nothing of a part no sample of which was answered.
    """
    how: dict[str, Any] = json.loads((schema.metadata or {}).get(RUN_AS, b"{}"))
    return how
