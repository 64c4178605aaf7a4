"""The victim: a loaded LLaVA that is attacked, answers, and is scored.

Shapes: B batch, N some of its samples, C channel, H/W image, P visual tokens, D width.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rllava.attacks.common import PIXEL, loss_and_gradient
from rllava.attacks.losses import token_distance
from rllava.attacks.memory import Batches, cuda_free_bytes, cuda_peak, samples_that_fit
from rllava.data.benchmarks import BenchmarkSpec
from rllava.encoders.base import encode
from rllava.evaluation.samples import Sample
from rllava.evaluation.shard_checks import CHECKED_PER_SHARD
from rllava.metrics.metric import Metric, MetricState
from rllava.model.causal_lm import copy_in_precision, layers
from rllava.model.conversation import Tokens
from rllava.model.llava import Llava, Prefix
from rllava.model.sampling import Sampling
from rllava.tasks.task import without_image

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}

PRECISIONS = {torch.float32: "float32", **{dtype: name for name, dtype in HALF.items()}}

TARGETS_AT_A_TIME = 32
"""Decoys ranked in one pass: each needs a copy of the prompt's keys and values (LLaVA-1.5-7B in float32: 0.7 GB)."""


@dataclass(frozen=True)
class Scoring:
    """How answers to a benchmark are scored.

    Attributes:
        benchmark: data, prompt and answer length.
        bank: answers to other samples of the benchmark, from which decoys are taken.
        checked: samples of a shard that the attack checks look at.
        draw: number of the answer, where answers are drawn.
    """

    benchmark: BenchmarkSpec
    metric: Metric
    state: MetricState
    bank: tuple[str, ...] = ()
    checked: int = CHECKED_PER_SHARD
    draw: int = 0

    def sampling(self, samples: Sequence[Sample]) -> Sampling | None:
        """How answers to some samples are drawn: each by its own seed, whatever batch it is in; None: greedily."""
        decoding = self.benchmark.task.decoding
        if decoding.greedy:
            return None
        seeds = tuple(seed_of(sample.sample_id, self.draw) for sample in samples)
        return Sampling(seeds, decoding.temperature, top_k=decoding.top_k)


def seed_of(sample_id: str, draw: int = 0) -> int:
    """A sample's seed, whatever shard or worker it is in.

    Args:
        draw: number of an answer; each has another seed.

    Returns:
        Below 2^32.
    """
    key = sample_id if draw == 0 else f"{sample_id}#{draw}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")


class Victim:
    """A loaded model that is attacked, answers and is scored.

    Args:
        llava: frozen; in float32, or in half precision if no round needs another one.
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
        """
        if precision not in self._models:
            assert self.finest == "float32", f"a model loaded in {self.finest} cannot run in {precision}"
            self._models[precision] = self._ready(copy_in_precision(self._models[self.finest], HALF[precision]))
        return self._models[precision]

    @property
    def image_size(self) -> int:
        """Side of the square that it sees, in pixels."""
        return self._models[self.finest].image_size

    def tokens(self, prompt: str, text: str | None) -> Tokens:
        """A question and a labelled answer; tokenised once.

        Args:
            text: the answer; None ends the text where generation begins.
        """
        if (prompt, text) not in self._tokens:
            self._tokens[prompt, text] = self._models[self.finest].tokens(prompt, text)
        return self._tokens[prompt, text]

    def loss(self, pixels_NCHW: Tensor, tokens: Sequence[Tokens], precision: str) -> Tensor:
        """Mean cross-entropy of each answer, the text before the images encoded once and for all.

        Args:
            pixels_NCHW: images in [0, 1].
            tokens: question and answer per image.

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
        self, pixels_NCHW: Tensor, samples: Sequence[Sample], scoring: Scoring, precision: str,
        unseen: Sequence[bool] | None = None,
    ) -> tuple[list[str], list[float]]:  # fmt: skip
        """Answers and their scores.

        Args:
            pixels_NCHW: images in [0, 1], on any device; one for each sample, or one for all.
            unseen: of each sample, whether it is asked without its image; None: none is.
        """
        llava, metric = self.model(precision), scoring.metric
        asked = [sample.prompt for sample in samples]
        if unseen is not None:
            asked = [without_image(text) if hidden else text for text, hidden in zip(asked, unseen, strict=True)]
        prompts = [self.tokens(text, None) for text in asked]
        length = scoring.benchmark.task.decoding.max_new_tokens
        with torch.compiler.set_stance("force_eager"):  # decoding reads a cache, see loss
            texts = llava.generate(pixels_NCHW.to(self.device), prompts, length, scoring.sampling(samples))
        predictions = [metric.clean(text) for text in texts]
        scores = [
            metric.score(prediction, sample.references, scoring.state)
            for prediction, sample in zip(predictions, samples, strict=True)
        ]
        return predictions, scores

    def forget(self) -> None:
        """Drops the tokens of questions and answers, which are those of one shard."""
        self._tokens.clear()

    def features(self, pixels_NCHW: Tensor, precision: str) -> list[Tensor]:
        """Visual tokens of images in [0, 1], [N, P, D] per encoder."""
        return encode(self.model(precision).encoders, pixels_NCHW)  # type: ignore[arg-type]  # a module list

    def token_loss(self, pixels_NCHW: Tensor, clean: Sequence[Tensor], precision: str) -> Tensor:
        """How far the visual tokens of images in [0, 1] are from others (:meth:`features`), on average over encoders.

        Returns:
            loss_N, float32.
        """
        pairs = zip(self.features(pixels_NCHW, precision), clean, strict=True)
        return torch.stack([token_distance(tokens_NPD, clean_NPD) for tokens_NPD, clean_NPD in pairs]).mean(0)

    def pixels(self, images: Sequence[np.ndarray | None]) -> Tensor:
        """Images on the device.

        Args:
            images: uint8 [H, W, 3] each; None: there is none, and a black one stands in its place.

        Returns:
            [B, 3, H, W], float32 in [0, 1].
        """
        black_HWC = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        stacked_BHWC = np.stack([black_HWC if image_HWC is None else image_HWC for image_HWC in images])
        return torch.from_numpy(stacked_BHWC).to(self.device).permute(0, 3, 1, 2).float() * PIXEL

    def decoys(self, image_1CHW: Tensor, sample: Sample, scoring: Scoring) -> list[str]:
        """Wrong answers to aim at: of those in the bank that score least, the likeliest for an image first."""
        metric = scoring.metric
        scores = [metric.score(metric.clean(text), sample.references, scoring.state) for text in scoring.bank]
        worst = [text for text, score in zip(scoring.bank, scores, strict=True) if score == min(scores)]
        targets = [self.tokens(sample.prompt, text) for text in worst]
        llava = self.model(self.finest)
        with torch.no_grad():
            losses = Batches(TARGETS_AT_A_TIME).run(
                lambda part: llava.targets_loss(image_1CHW, [targets[row] for row in part]), range(len(targets))
            )
        order = torch.cat(losses).argsort(stable=True).tolist() if losses else []
        return [worst[row] for row in order]

    def batches(self, samples: Sequence[Sample], batch_size: int, precision: str) -> Batches:
        """How many samples go through the model at a time.

        Args:
            batch_size: so many; 0: as many as memory holds.

        Returns:
            Batches of that size, which shrink if they do not fit.
        """
        say = logging.getLogger(__name__).warning
        if batch_size > 0 or self.device.type != "cuda":
            return Batches(batch_size or len(samples), say)
        tokens = [self.tokens(sample.prompt, max(sample.references, key=len, default="")) for sample in samples[:2]] * 2
        pixels_2CHW = self.pixels(([sample.pixels_HWC for sample in samples[:2]] * 2)[:2])

        def one_pass(count: int) -> None:
            def loss(pixels_NCHW: Tensor, index_N: Tensor) -> Tensor:
                return self.loss(pixels_NCHW, tokens[:count], precision)

            loss_and_gradient(loss, pixels_2CHW[:count], torch.arange(count))

        one_pass(1)  # what is set up once must not count
        free = cuda_free_bytes(self.device)
        return Batches(samples_that_fit(cuda_peak(one_pass, self.device), free, len(samples)), say)
