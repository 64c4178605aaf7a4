"""The attack worker: a loaded LLaVA that turns shards of a benchmark into records. This file knows no Ray.

Shapes: B batch, N some of its samples, C channel, H/W image.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rllava.attacks.common import PIXEL, loss_and_gradient
from rllava.attacks.memory import Batches, cuda_free_bytes, cuda_peak, samples_that_fit
from rllava.data.benchmarks import BenchmarkSpec
from rllava.evaluation.checking import CHECKED_PER_SHARD
from rllava.evaluation.in_flight import Keeping
from rllava.evaluation.rows import attacked_as_clean, record_head
from rllava.evaluation.samples import Sample
from rllava.metrics.metric import Metric, MetricState
from rllava.model.causal_lm import copy_in_precision, layers
from rllava.model.conversation import Tokens
from rllava.model.llava import Llava, Prefix
from rllava.records import RECORD_SCHEMA
from rllava.specs import EvalSpec

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}

PRECISIONS = {torch.float32: "float32", **{dtype: name for name, dtype in HALF.items()}}

RUN_AS = b"rllava.run_as"

TARGETS_AT_A_TIME = 32
"""Decoys ranked in one pass: each needs a copy of the prompt's keys and values (LLaVA-1.5-7B in float32: 0.7 GB)."""


@dataclass(frozen=True)
class Scoring:
    """How answers to a benchmark are scored.

    Attributes:
        benchmark: data, prompt and answer length.
        metric: scores.
        state: of the metric.
        bank: answers to other samples of the benchmark, from which decoys are taken.
        checked: samples of a shard that the attack checks look at.
    """

    benchmark: BenchmarkSpec
    metric: Metric
    state: MetricState
    bank: tuple[str, ...] = ()
    checked: int = CHECKED_PER_SHARD


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

    Args:
        sample_id: unique within its benchmark.

    Returns:
        Below 2^32.
    """
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:4], "big")


class AttackWorker:
    """A loaded model that attacks, answers and scores.

    Args:
        llava: frozen; in float32, or in half precision if no round needs another one.
        device: to run on.
        compiler: torch.compile's backend for encoders and language model, e.g. ``inductor``; None: not compiled.
            Answers may differ in rounding.
    """

    def __init__(self, llava: Llava, device: torch.device, compiler: str | None = None) -> None:
        self.device = device
        self._compiler = compiler
        self.finest = PRECISIONS[next(llava.parameters()).dtype]
        self._models = {self.finest: self._ready(llava.to(device))}
        self._prefixes: dict[tuple[str, tuple[int, ...]], Prefix] = {}
        self._tokens: dict[tuple[str, str | None], Tokens] = {}

    def _ready(self, llava: Llava) -> Llava:
        if self._compiler is not None:
            # Layer by layer: all layers of the language model share one compiled graph.
            for module in (*llava.encoders, *layers(llava.connector.language_model)):
                module.compile(backend=self._compiler, dynamic=True)
        return llava

    def model(self, precision: str) -> Llava:
        """The model in a precision; copies in half precision are made once.

        Args:
            precision: ``float32``, ``float16`` or ``bfloat16``.

        Returns:
            The model.
        """
        if precision not in self._models:
            assert self.finest == "float32", f"a model loaded in {self.finest} cannot run in {precision}"
            self._models[precision] = self._ready(copy_in_precision(self._models[self.finest], HALF[precision]))
        return self._models[precision]

    def tokens(self, prompt: str, text: str | None) -> Tokens:
        """A question and a labelled answer; tokenised once.

        Args:
            prompt: the user's turn.
            text: the answer; None ends the text where generation begins.

        Returns:
            Ids and labels.
        """
        if (prompt, text) not in self._tokens:
            self._tokens[prompt, text] = self._models[self.finest].tokens(prompt, text)
        return self._tokens[prompt, text]

    def loss(self, pixels_NCHW: Tensor, tokens: Sequence[Tokens], precision: str) -> Tensor:
        """Mean cross-entropy of each answer, the text before the images encoded once and for all.

        Args:
            pixels_NCHW: images in [0, 1].
            tokens: question and answer per image.
            precision: of the model.

        Returns:
            loss_N, float32.
        """
        llava = self.model(precision)
        # A graph that reads a cache is another one for every layer; without, all layers share one.
        prefix = None if self._compiler else self._prefix(llava, tokens[0], precision)
        if prefix is not None and any(sample.ids[: len(prefix.ids)] != prefix.ids for sample in tokens):
            prefix = None
        return llava.answer_loss(pixels_NCHW, tokens, prefix)

    def _prefix(self, llava: Llava, tokens: Tokens, precision: str) -> Prefix | None:
        for (kind, ids), known in self._prefixes.items():
            if kind == precision and tokens.ids[: len(ids)] == ids:
                return known
        prefix = llava.encode_prefix(tokens)
        if prefix is not None:
            self._prefixes[precision, prefix.ids] = prefix
        return prefix

    def answer(
        self, pixels_NCHW: Tensor, samples: Sequence[Sample], scoring: Scoring, precision: str
    ) -> tuple[list[str], list[float]]:
        """Greedy answers and their scores.

        Args:
            pixels_NCHW: images in [0, 1], on any device.
            samples: whose.
            scoring: metric and answer length.
            precision: of the model.

        Returns:
            Predictions and scores.
        """
        llava, metric = self.model(precision), scoring.metric
        prompts = [self.tokens(sample.prompt, None) for sample in samples]
        with torch.compiler.set_stance("force_eager"):  # decoding reads a cache, see loss
            texts = llava.generate(pixels_NCHW.to(self.device), prompts, scoring.benchmark.task.decoding.max_new_tokens)
        predictions = [metric.clean(text) for text in texts]
        scores = [
            metric.score(prediction, sample.references, scoring.state)
            for prediction, sample in zip(predictions, samples, strict=True)
        ]
        return predictions, scores

    def clean(
        self, samples: list[Sample], scoring: Scoring, precision: str, batches: Batches,
        known: Mapping[str, tuple[str, float]] | None = None,
    ) -> Answered:  # fmt: skip
        """Answers the clean images of a shard.

        Args:
            samples: without errors, at least one.
            scoring: metric and answer length.
            precision: of the clean pass: that of the protocol's first round.
            batches: splits the work.
            known: answers and their scores by sample, from an earlier pass; if one is missing, all are made.

        Returns:
            What all conditions share.
        """
        self._tokens.clear()  # of the shard before
        pixels_BCHW = self.pixels([sample.pixels_HWC for sample in samples if sample.pixels_HWC is not None])
        found = [(known or {}).get(sample.sample_id) for sample in samples]
        if all(found):
            texts, scores = zip(*(answer for answer in found if answer is not None), strict=True)
            return Answered(samples, pixels_BCHW, list(texts), list(scores))
        answered = batches.run(
            lambda part: self.answer(pixels_BCHW[part], [samples[b] for b in part], scoring, precision),
            list(range(len(samples))),
        )
        predictions = [prediction for part, _ in answered for prediction in part]
        return Answered(samples, pixels_BCHW, predictions, [score for _, part in answered for score in part])

    def pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images on the device.

        Args:
            images: uint8 [H, W, 3] each.

        Returns:
            [B, 3, H, W], float32 in [0, 1].
        """
        return torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).float() * PIXEL

    def decoys(self, image_1CHW: Tensor, sample: Sample, scoring: Scoring) -> list[str]:
        """Wrong answers to aim at: of those in the bank that score least, the likeliest for an image first.

        Args:
            image_1CHW: to start from.
            sample: whose.
            scoring: with a bank.

        Returns:
            Answers.
        """
        metric = scoring.metric
        scores = [metric.score(metric.clean(text), sample.references, scoring.state) for text in scoring.bank]
        worst = [text for text, score in zip(scoring.bank, scores, strict=True) if score == min(scores)]
        targets = [self.tokens(sample.prompt, text) for text in worst]
        llava = self.model(self.finest)
        with torch.no_grad():
            losses = Batches(TARGETS_AT_A_TIME).run(
                lambda part: llava.targets_loss(image_1CHW, [targets[place] for place in part]), range(len(targets))
            )
        order = torch.cat(losses).argsort(stable=True).tolist() if losses else []
        return [worst[place] for place in order]

    def batches(self, samples: Sequence[Sample], batch_size: int, precision: str) -> Batches:
        """How many samples go through the model at a time.

        Args:
            samples: of the shard.
            batch_size: so many; 0: as many as memory holds.
            precision: of the model.

        Returns:
            Batches of that size, which shrink if they do not fit.
        """
        say = logging.getLogger(__name__).warning
        if batch_size > 0 or self.device.type != "cuda":
            return Batches(batch_size or len(samples), say)
        tokens = [self.tokens(sample.prompt, max(sample.references, key=len, default="")) for sample in samples[:2]] * 2
        images = [sample.pixels_HWC for sample in samples[:2] if sample.pixels_HWC is not None]
        pixels_2CHW = self.pixels((images * 2)[:2])

        def one_pass(count: int) -> None:
            def loss(pixels_NCHW: Tensor, index_N: Tensor) -> Tensor:
                return self.loss(pixels_NCHW, tokens[:count], precision)

            loss_and_gradient(loss, pixels_2CHW[:count], torch.arange(count))

        one_pass(1)  # what is set up once must not count
        free = cuda_free_bytes(self.device)
        return Batches(samples_that_fit(cuda_peak(one_pass, self.device), free, len(samples)), say)


@dataclass(frozen=True)
class ShardWork:
    """What a condition makes the records of a shard with.

    Attributes:
        spec: of the evaluation.
        worker: with the candidate's model.
        shard: clean images and answers of the samples without errors.
        scoring: metric and answer length.
        batches: splits the work.
        keeping: where an attack is kept while it is in flight; None: nowhere.
        others: images that attacks on other models found, by name [B, 3, H, W]; None: there are none.
    """

    spec: EvalSpec
    worker: AttackWorker
    shard: Answered
    scoring: Scoring
    batches: Batches
    keeping: Keeping | None = None
    others: Mapping[str, Tensor] | None = None

    def clean_rows(self) -> list[dict[str, Any]]:
        """Per sample, the record of its clean answer, until an attack does worse."""
        return [
            row | attacked_as_clean(prediction, score)
            for b, (prediction, score) in enumerate(zip(self.shard.predictions, self.shard.scores, strict=True))
            for row in self.rows_of(b)
        ]

    def rows_of(self, b: int) -> list[dict[str, Any]]:
        """A sample's records, one per part of the condition, with its clean answer and nothing else yet.

        Args:
            b: place of the sample.

        Returns:
            Records to fill in.
        """
        clean = {"clean_prediction": self.shard.predictions[b], "clean_score": self.shard.scores[b]}
        parts = self.spec.condition.parts
        return [record_head(self.spec, self.shard.samples[b], part) | clean for part in parts]

    def answer(self, images: Sequence[np.ndarray]) -> tuple[list[str], list[float]]:
        """Answers to other images of the samples, in the precision of the clean ones.

        Args:
            images: one per sample, uint8 [H, W, 3] in the encoder's input space.

        Returns:
            Predictions and scores.
        """
        samples, precision = self.shard.samples, self.spec.precisions[0]

        def of(part: Sequence[int]) -> tuple[list[str], list[float]]:
            pixels_NCHW = self.worker.pixels([images[b] for b in part])
            return self.worker.answer(pixels_NCHW, [samples[b] for b in part], self.scoring, precision)

        answered = self.batches.run(of, list(range(len(samples))))
        return [text for texts, _ in answered for text in texts], [score for _, part in answered for score in part]


def evaluate_shard(
    worker: AttackWorker, samples: list[Sample], specs: Sequence[EvalSpec], metric: Metric, state: MetricState,
    *, bank: Sequence[str] = (), keeping: Keeping | None = None, checked: int = CHECKED_PER_SHARD,
    others: Callable[[EvalSpec, Sequence[Sample]], Mapping[str, Tensor]] | None = None,
    known: Mapping[str, tuple[str, float]] | None = None,
) -> Iterator[tuple[EvalSpec, pa.Table]]:  # fmt: skip
    """Records of a shard in several evaluations, one clean pass for all of them.

    Args:
        worker: with the candidate's model.
        samples: of the shard.
        specs: evaluations of this benchmark that still lack this shard; their clean answers have one precision.
        metric: of the benchmark.
        state: of the metric.
        bank: answers to other samples of the benchmark, for protocols that aim at wrong ones.
        keeping: where attacks are kept while they are in flight; None: nowhere.
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
        worker.model(other)  # before any memory is measured or shared out
    shard: Answered | None = None
    if whole:
        batches = worker.batches(whole, first.batch_size, precision)
        shard = worker.clean(whole, scoring, precision, batches, known)
    for spec in specs:
        made: dict[str, list[dict[str, Any]]] = {}
        parts = spec.condition.parts
        if shard is not None:
            found = None if others is None else others(spec, shard.samples)
            for row in spec.condition.run(ShardWork(spec, worker, shard, scoring, batches, keeping, found)):
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

    Args:
        schema: of a part.

    Returns:
        ``batch_size``, what fitted in the end, and ``compiled``; nothing of a part no sample of which was answered.
    """
    how: dict[str, Any] = json.loads((schema.metadata or {}).get(RUN_AS, b"{}"))
    return how
