"""The attack worker: a loaded LLaVA that turns shards of a benchmark into records. This file knows no Ray.

Shapes: B batch, C channel, H/W image.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rllava.attacks.common import PIXEL, LossFunction
from rllava.attacks.worst_case import Outcome, round_to_8_bits, worst_case
from rllava.data.benchmarks import BenchmarkSpec
from rllava.data.images import encode_png
from rllava.evaluation.samples import Sample
from rllava.metrics.metric import Metric, MetricState
from rllava.model.llava import Llava
from rllava.records import RECORD_SCHEMA
from rllava.specs import EvalSpec

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Answered:
    """Clean images, answers and scores of a batch, shared by all budgets."""

    samples: list[Sample]
    pixels_BCHW: Tensor
    predictions: list[str]
    scores: list[float]


def labels_of(sample: Sample, task: str) -> list[str]:
    """The texts whose loss a protocol's untargeted rounds maximise.

    Args:
        sample: whose.
        task: ``captioning``: its captions in order; ``vqa``: its distinct answers, the most common first.

    Returns:
        At least one text.
    """
    if task == "captioning":
        return list(sample.references)
    return [answer for answer, _ in Counter(sample.references).most_common()]


class AttackWorker:
    """A loaded model that attacks, answers and scores.

    Args:
        llava: frozen, in float32.
        device: to run on.
    """

    def __init__(self, llava: Llava, device: torch.device) -> None:
        self.device = device
        self._models = {"float32": llava.to(device)}

    def model(self, precision: str) -> Llava:
        """The model in a precision; copies in half precision are made once.

        Args:
            precision: ``float32``, ``float16`` or ``bfloat16``.

        Returns:
            The model.
        """
        if precision not in self._models:
            self._models[precision] = copy.deepcopy(self._models["float32"]).to(HALF[precision])
        return self._models[precision]

    def answer(
        self, pixels_BCHW: Tensor, samples: Sequence[Sample], benchmark: BenchmarkSpec, metric: Metric,
        state: MetricState, precision: str,
    ) -> tuple[list[str], list[float]]:  # fmt: skip
        """Greedy answers and their scores.

        Args:
            pixels_BCHW: images in [0, 1], on any device.
            samples: whose.
            benchmark: gives the answer's length.
            metric: scores.
            state: of the metric.
            precision: of the model.

        Returns:
            Predictions and scores.
        """
        llava = self.model(precision)
        prompts = [llava.tokens(sample.prompt) for sample in samples]
        texts = llava.generate(pixels_BCHW.to(self.device), prompts, benchmark.max_new_tokens)
        predictions = [metric.clean(text) for text in texts]
        scores = [
            metric.score(prediction, sample.references, state)
            for prediction, sample in zip(predictions, samples, strict=True)
        ]
        return predictions, scores

    def clean(
        self, samples: list[Sample], benchmark: BenchmarkSpec, metric: Metric, state: MetricState, precision: str
    ) -> Answered:
        """Answers a batch's clean images.

        Args:
            samples: without errors.
            benchmark: gives the answer's length.
            metric: scores.
            state: of the metric.
            precision: of the clean pass: that of the protocol's first round.

        Returns:
            What all budgets share.
        """
        stacked = np.stack([sample.pixels_HWC for sample in samples if sample.pixels_HWC is not None])
        pixels_BCHW = torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2).float() * PIXEL
        predictions, scores = self.answer(pixels_BCHW, samples, benchmark, metric, state, precision)
        return Answered(samples, pixels_BCHW, predictions, scores)

    def attack(self, spec: EvalSpec, batch: Answered, metric: Metric, state: MetricState) -> list[dict[str, Any]]:
        """Runs the protocol on a batch at one budget.

        Args:
            spec: candidate, benchmark, protocol, budget.
            batch: clean images and answers.
            metric: scores.
            state: of the metric.

        Returns:
            One record per sample.
        """
        benchmark, task = spec.benchmark, spec.benchmark.task
        if spec.epsilon == 0:
            pngs = [encode_png(to_uint8(image_CHW)) for image_CHW in batch.pixels_BCHW]
            return [
                {**record_head(spec, sample), **clean_fields(batch, b), "clean_png": pngs[b]}
                for b, sample in enumerate(batch.samples)
            ]

        def loss_of(who: Sequence[int], texts: Sequence[str], targeted: bool, precision: str) -> LossFunction:
            llava = self.model(precision)
            tokens = [llava.tokens(batch.samples[b].prompt, text) for b, text in zip(who, texts, strict=True)]
            sign = -1.0 if targeted else 1.0

            def loss(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
                return sign * llava.answer_loss(pixels_BCHW, [tokens[i] for i in index_B.tolist()])

            return loss

        def judge(images_BCHW: Tensor, who: Sequence[int], precision: str) -> tuple[list[str], list[float]]:
            return self.answer(images_BCHW, [batch.samples[b] for b in who], benchmark, metric, state, precision)

        outcomes = worst_case(
            spec.protocol.rounds(task),
            batch.pixels_BCHW,
            [labels_of(sample, task) for sample in batch.samples],
            batch.predictions,
            batch.scores,
            epsilon=spec.epsilon,
            loss_of=loss_of,
            judge=judge,
            dropped=benchmark.drops,
        )
        rows = [
            {**record_head(spec, sample), **clean_fields(batch, b), **attack_fields(outcomes[b], batch.pixels_BCHW[b])}
            for b, sample in enumerate(batch.samples)
        ]
        attacked = [b for b, outcome in enumerate(outcomes) if outcome.steps]
        if attacked:
            worst_BCHW = torch.stack([outcomes[b].image_CHW for b in attacked])
            rounded_BCHW = round_to_8_bits(worst_BCHW, batch.pixels_BCHW[attacked], spec.epsilon)
            answers, scores = judge(rounded_BCHW, attacked, "float32")
            for place, b in enumerate(attacked):
                rows[b] |= {"prediction_8bit": answers[place], "score_8bit": scores[place]}
                rows[b]["adversarial_png"] = encode_png(to_uint8(rounded_BCHW[place]))
        return rows


def to_uint8(image_CHW: Tensor) -> np.ndarray:
    """An 8-bit image.

    Args:
        image_CHW: in [0, 1], multiples of 1/255.

    Returns:
        uint8 [H, W, 3].
    """
    pixels: np.ndarray = (image_CHW / PIXEL).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def record_head(spec: EvalSpec, sample: Sample) -> dict[str, Any]:
    """The columns every record has.

    Args:
        spec: of the evaluation.
        sample: of the record.

    Returns:
        Part of a record.
    """
    return {
        "candidate": spec.candidate,
        "benchmark": spec.benchmark.name,
        "sample_id": sample.sample_id,
        "protocol": spec.protocol.label,
        "epsilon": spec.epsilon,
        "prompt": sample.prompt,
        "references": list(sample.references),
        "error": sample.error,
    }


def clean_fields(batch: Answered, b: int) -> dict[str, Any]:
    """The clean answer of a sample, as what it is until an attack does worse.

    Args:
        batch: answered.
        b: place in it.

    Returns:
        Part of a record.
    """
    prediction, score = batch.predictions[b], batch.scores[b]
    return {
        "clean_prediction": prediction,
        "prediction": prediction,
        "clean_score": score,
        "score": score,
        "prediction_8bit": prediction,
        "score_8bit": score,
        "linf": 0.0,
        "steps": 0,
        "rounds": [],
        "best_round": "clean",
    }


def attack_fields(outcome: Outcome, clean_CHW: Tensor) -> dict[str, Any]:
    """What an attack did to a sample.

    Args:
        outcome: of the protocol.
        clean_CHW: clean image.

    Returns:
        Part of a record.
    """
    return {
        "prediction": outcome.prediction,
        "score": outcome.score if outcome.error is None else None,  # a broken attack proves no robustness
        "linf": float((outcome.image_CHW - clean_CHW).abs().max()) / PIXEL,
        "steps": outcome.steps,
        "rounds": outcome.rounds,
        "best_round": outcome.best_round,
        "loss_clean": outcome.loss_clean,
        "loss_best": outcome.loss_best,
        "loss_last_rise": outcome.loss_last_rise,
        "zero_gradient_share": outcome.zero_gradient_share,
        "error": outcome.error,
    }


def evaluate_shard(
    worker: AttackWorker, samples: list[Sample], specs: Sequence[EvalSpec], metric: Metric, state: MetricState
) -> Iterator[tuple[EvalSpec, pa.Table]]:
    """Records of a shard at every budget, one clean pass for all of them.

    Args:
        worker: with the candidate's model.
        samples: of the shard.
        specs: evaluations of this benchmark that still lack this shard.
        metric: of the benchmark.
        state: of the metric.

    Yields:
        Per spec, the shard's records in the order of its samples.
    """
    batch_size = specs[0].batch_size
    whole = [sample for sample in samples if sample.error is None]
    precision = specs[0].protocol.rounds(specs[0].benchmark.task)[0].precision
    batches = [
        worker.clean(whole[first : first + batch_size], specs[0].benchmark, metric, state, precision)
        for first in range(0, len(whole), batch_size)
    ]
    for spec in specs:
        scored = {row["sample_id"]: row for batch in batches for row in worker.attack(spec, batch, metric, state)}
        rows = [scored.get(sample.sample_id, record_head(spec, sample)) for sample in samples]
        yield spec, pa.Table.from_pylist(rows, schema=RECORD_SCHEMA)
