"""A model under attack, and a line of progress.

Shapes: B batch, C channel, H/W image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.models import random_tokens
from benchmarks.gpu.options import Options
from benchmarks.gpu.shapes import Shapes
from rllava.attacks.apgd import apgd
from rllava.attacks.common import LossFunction, NonFiniteLossError
from rllava.errors import SweepError
from rllava.model.llava import Llava

EPSILON = 4.0


@dataclass(frozen=True)
class Bench:
    """A model that is attacked, and how."""

    llava: Llava
    shapes: Shapes
    options: Options

    def loss(self, count: int) -> LossFunction:
        """What an attack maximises.

        Returns:
            Loss of random answers to random prompts.
        """
        tokens = random_tokens(self.shapes, count, self.options.prompt_tokens, self.options.answer_tokens)
        return lambda pixels_BCHW, _: self.llava.answer_loss(pixels_BCHW, tokens)

    def images(self, count: int) -> Tensor:
        """Random images, float32.

        Returns:
            [B, C, H, W] in [0, 1].
        """
        side = self.shapes.image_size
        return torch.rand(count, 3, side, side, device=self.options.device, dtype=torch.float32)

    def attack(self, loss: LossFunction, images_BCHW: Tensor, steps: int) -> None:
        """An APGD attack.

        Args:
            loss: see :meth:`loss`.

        Raises:
            SweepError: if a loss or gradient is not finite; the time of such an attack says nothing.
        """
        try:
            failed = bool(apgd(loss, images_BCHW, epsilon=EPSILON, steps=steps).failed_B.any())
        except NonFiniteLossError:
            failed = True
        if failed:
            raise SweepError("the loss or its gradient is not finite; try --precision float32")


def say(line: str) -> None:
    """Prints at once, since the next line may take minutes."""
    print(line, flush=True)
