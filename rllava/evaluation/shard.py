"""The work on a shard of a benchmark: from samples and a victim to records. This file knows no Ray.

Shapes: B batch, N some of its samples, C channel, H/W image.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from rllava.attacks.memory import Batches
from rllava.attacks.rounds import Start
from rllava.conditions.condition import SHOWN
from rllava.data.images import encode_png
from rllava.evaluation.in_flight import Saving
from rllava.evaluation.rows import attacked_as_clean, record_head
from rllava.evaluation.samples import Sample
from rllava.evaluation.shard_checks import CHECKED_PER_SHARD
from rllava.evaluation.victim import Scoring, Victim, seed_of
from rllava.metrics.metric import Metric, MetricState
from rllava.records import RECORD_SCHEMA
from rllava.specs import EvalSpec
from rllava.tasks.task import without_image

RUN_AS = b"rllava.run_as"


@dataclass(frozen=True)
class Answered:
    """Clean images, answers and scores of a shard, shared by all conditions.

    Attributes:
        pixels_BCHW: black for a sample without image.
    """

    samples: list[Sample]
    pixels_BCHW: Tensor
    predictions: list[str]
    scores: list[float]

    @property
    def seeds(self) -> list[int]:
        """One per sample."""
        return [seed_of(sample.sample_id) for sample in self.samples]

    def with_images(self) -> "Answered":
        """The samples that have an image."""
        kept = [b for b, sample in enumerate(self.samples) if sample.pixels_HWC is not None]
        if len(kept) == len(self.samples):
            return self
        return Answered(
            [self.samples[b] for b in kept],
            self.pixels_BCHW[kept],
            [self.predictions[b] for b in kept],
            [self.scores[b] for b in kept],
        )


Known = Mapping[tuple[str, int], tuple[str, float]]
"""Clean answers with their scores, by sample and draw."""


def answer_clean(
    victim: Victim, samples: list[Sample], scoring: Scoring, precision: str, batches: Batches,
    known: Known | None = None,
) -> Answered:  # fmt: skip
    """Answers the clean images of a shard; a sample without image is asked without.

    Args:
        samples: without errors, at least one.
        scoring: whose draw it is.
        precision: of the clean pass: that of the protocol's first round.
        known: from an earlier pass; if an answer is missing, all are made.
    """
    pixels_BCHW = victim.pixels([sample.pixels_HWC for sample in samples])
    found = [(known or {}).get((sample.sample_id, scoring.draw)) for sample in samples]
    if all(found):
        texts, scores = zip(*(answer for answer in found if answer is not None), strict=True)
        return Answered(samples, pixels_BCHW, list(texts), list(scores))

    def of(part: Sequence[int]) -> tuple[list[str], list[float]]:
        own = [samples[b] for b in part]
        unseen = [sample.pixels_HWC is None for sample in own]
        return victim.answer(pixels_BCHW[part], own, scoring, precision, unseen)

    answered = batches.run(of, list(range(len(samples))))
    predictions = [prediction for part, _ in answered for prediction in part]
    return Answered(samples, pixels_BCHW, predictions, [score for _, part in answered for score in part])


@dataclass(frozen=True)
class ShardWork:
    """What a condition makes the records of a shard with.

    Attributes:
        shard: clean images and answers of the samples without errors.
        saving: where an attack is kept while it is in flight; None: nowhere.
        others: images that other evaluations found, by the start that they are, [B, 3, H, W]; None: there are none.
        stored: 8-bit images that an evaluation found for some samples, as it stored them, uint8 [H, W, 3]; None where
            it attacked none.
        image: from a :class:`rllava.image_spec.ImageSpec` to the :class:`rllava.evaluation.universal_image.MadeImage`.
    """

    spec: EvalSpec
    victim: Victim
    shard: Answered
    scoring: Scoring
    batches: Batches
    saving: Saving | None = None
    others: Mapping[Start, Tensor] | None = None
    image: Callable[[Any], Any] | None = None
    stored: Callable[[EvalSpec, Sequence[Sample]], list[np.ndarray | None]] | None = None

    def clean_rows(self) -> list[dict[str, Any]]:
        """Per sample, the record of its clean answer, until an attack does worse."""
        return [
            row | attacked_as_clean(prediction, score)
            for b, (prediction, score) in enumerate(zip(self.shard.predictions, self.shard.scores, strict=True))
            for row in self.rows_of(b, unseen=self.shard.samples[b].pixels_HWC is None)
        ]

    def show(self, image_HWC: np.ndarray | None, **more: Any) -> list[dict[str, Any]]:
        """Records of a condition of one part that shows every sample the same image, beside the clean answers.

        Args:
            image_HWC: uint8 in the encoder's input space; None: none is shown.
            more: columns that all of them have.
        """
        texts, scores = self.answer(image_HWC)
        rows = []
        for b, sample in enumerate(self.shard.samples):
            (row,) = self.rows_of(b, unseen=image_HWC is None)
            row |= {"prediction": texts[b], "score": scores[b], **more}
            if image_HWC is not None and sample.row < SHOWN:
                row["shown_png"] = encode_png(image_HWC)
            rows.append(row)
        return rows

    def rows_of(self, b: int, unseen: bool = False) -> list[dict[str, Any]]:
        """A sample's records, one per part of the condition, with its clean answer and nothing else yet.

        Args:
            unseen: whether it is asked without an image.
        """
        own: dict[str, Any] = {"clean_prediction": self.shard.predictions[b], "clean_score": self.shard.scores[b]}
        sample, parts = self.shard.samples[b], self.spec.condition.parts
        if unseen:
            own["prompt"] = without_image(sample.prompt)
        return [record_head(self.spec, sample, part, self.scoring.draw) | own for part in parts]

    def answer(
        self, images: Sequence[np.ndarray] | np.ndarray | None, who: Sequence[int] | None = None, precision: str = ""
    ) -> tuple[list[str], list[float]]:
        """Answers to other images of the samples.

        Args:
            images: one per sample, uint8 [H, W, 3] in the encoder's input space, or one for all, which is encoded once
                for each portion; None: they are asked without any.
            who: indices of the samples that are asked, as many as there are images; None: all.
            precision: empty: that of the clean answers.
        """
        whole, precision = self.shard.samples, precision or self.spec.precisions[0]
        asked = list(range(len(whole))) if who is None else list(who)
        samples = [whole[b] for b in asked]
        pixels_BCHW = self.shard.pixels_BCHW if who is None else self.shard.pixels_BCHW[asked]

        def of(part: Sequence[int]) -> tuple[list[str], list[float]]:
            own = [samples[b] for b in part]
            if images is None:
                return self.victim.answer(pixels_BCHW[part], own, self.scoring, precision, [True] * len(own))
            shown = [images] if isinstance(images, np.ndarray) else [images[b] for b in part]
            return self.victim.answer(self.victim.pixels(shown), own, self.scoring, precision)

        answered = self.batches.run(of, list(range(len(samples))))
        return [text for texts, _ in answered for text in texts], [score for _, part in answered for score in part]


def evaluate_shard(
    victim: Victim, samples: list[Sample], specs: Sequence[EvalSpec], metric: Metric, state: MetricState,
    *, bank: Sequence[str] = (), saving: Saving | None = None, checked: int = CHECKED_PER_SHARD,
    others: Callable[[EvalSpec, Sequence[Sample]], Mapping[Start, Tensor]] | None = None,
    known: Known | None = None, image: Callable[[Any], Any] | None = None,
    stored: Callable[[EvalSpec, Sequence[Sample]], list[np.ndarray | None]] | None = None,
) -> Iterator[tuple[EvalSpec, pa.Table]]:  # fmt: skip
    """Records of a shard in several evaluations, one clean pass (per draw of answers) for all of them.

    Args:
        specs: evaluations of this benchmark that still lack this shard; their clean answers have one precision.
        bank: answers to other samples of the benchmark, for protocols that aim at wrong ones.
        saving: where attacks are kept while they are in flight; None: nowhere.
        checked: samples that the attack checks look at.
        others: gives the images that attacks on other models found, for protocols that start from them.
        image: gives images that were made before, for conditions that show one.
        stored: gives images that were found before, for conditions that show those.
        known: clean answers from an earlier pass; if one of a draw is missing, all of it are made.

    Yields:
        Per spec, the shard's records in the order of its samples, draw by draw; the schema's metadata says how they
        were computed (:func:`run_as`).

    Raises:
        UserError: if the task cannot be evaluated so (:meth:`rllava.tasks.task.Task.check`).
    """
    first = specs[0]
    task = first.benchmark.task
    task.check(attacked=any(spec.condition.searches for spec in specs))
    scoring = Scoring(first.benchmark, metric, state, tuple(bank), checked)
    draws = [replace(scoring, draw=draw) for draw in range(task.decoding.draws)]
    whole = [sample for sample in samples if sample.error is None]
    precision = first.precisions[0]
    for other in (other for spec in specs for other in spec.precisions):
        victim.model(other)  # before any memory is measured or shared out
    answered: list[Answered] = []
    if whole:
        victim.forget()  # the shard before
        batches = victim.batches(whole, first.batch_size, precision)
        answered = [answer_clean(victim, whole, scored, precision, batches, known) for scored in draws]
    for spec in specs:
        made: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for scored, clean in zip(draws, answered, strict=False):  # none was answered where no sample is whole
            shard = clean.with_images() if spec.condition.needs_image else clean
            if shard.samples:
                found = others(spec, shard.samples) if others is not None and spec.condition.searches else None
                work = ShardWork(spec, victim, shard, scored, batches, saving, found, image, stored)
                for row in spec.condition.run(work):
                    made.setdefault((row["sample_id"], row["draw"]), []).append(row)
        table = [
            row
            for scored in draws
            for sample in samples
            for row in made.get((sample.sample_id, scored.draw)) or _errors(spec, sample, scored.draw)
        ]
        how = {"batch_size": batches.limit, "compiled": spec.compiled} if answered else {}
        schema = RECORD_SCHEMA.with_metadata({**(RECORD_SCHEMA.metadata or {}), RUN_AS: json.dumps(how)})
        yield spec, pa.Table.from_pylist(table, schema=schema)


def _errors(spec: EvalSpec, sample: Sample, draw: int) -> list[dict[str, Any]]:
    """Records of a sample that has no score."""
    why = sample.error or f"no image, and {spec.condition.kind} is about a sample's own"
    return [record_head(spec, sample, part, draw) | {"error": why} for part in spec.condition.parts]


def run_as(schema: pa.Schema) -> dict[str, Any]:
    """What a part says of its making, beside what its evaluation's spec asked for: it may differ in rounding alone.

    Returns:
        ``batch_size``, what fitted in the end, and ``compiled``; nothing of a part no sample of which was answered.
    """
    how: dict[str, Any] = json.loads((schema.metadata or {}).get(RUN_AS, b"{}"))
    return how
