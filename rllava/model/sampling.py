"""Drawing answers: one random stream per sample, so that an answer does not depend on the rest of its batch.

Shapes: B batch, T sequence, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rllava.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        seeds: one per sample. A sample's answer is what transformers draws for it alone after
            ``torch.manual_seed(seed)``.
        top_p: smallest share of probability that the kept tokens hold together; 1: all.
        top_k: tokens kept at most; 0: all. 50 is what transformers keeps unless told otherwise, and so what published
            evaluations by ``model.generate(temperature=...)`` kept.
    """

    seeds: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature {self.temperature}: give a positive number, or no Sampling for greedy ones")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}: give a share above 0 and up to 1")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k}: give a number of tokens, or 0 for all")


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws each sample's token from its own stream and leaves only that one possible.

    Greedy decoding behind it then takes what was drawn.

    Args:
        sampling: temperature, what is cut off, and seeds.
        device: of the logits; the streams live there, as transformers' does.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in sampling.seeds]
        # The order of transformers' own list.
        self._warpers = LogitsProcessorList()
        if sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k > 0:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draws.

        Args:
            input_ids: so far, [B, T].
            scores: logits, [B, V].

        Returns:
            [B, V]: zero at each sample's token, minus infinity elsewhere.
        """
        probability_BV = torch.softmax(self._warpers(input_ids, scores), dim=-1)
        drawn: Sequence[Tensor] = [
            torch.multinomial(probability_V, 1, generator=generator)
            for probability_V, generator in zip(probability_BV, self._generators, strict=True)
        ]
        return torch.full_like(scores, -torch.inf).scatter(1, torch.stack(list(drawn)), 0.0)
