"""What a training stage minimises; the registry of it.

An objective sees a portion of a worker's samples and the model as a function of them. It is one file here, or an entry
point of another package; a stage names it.

Shapes: B samples of a portion, C channel, H/W image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rllava.model.conversation import Tokens
from rllava.registry import Registry


@dataclass(frozen=True)
class Portion:
    """Samples of one forward pass, on the device.

    Attributes:
        pixels_BCHW: in [0, 1], in the encoders' input space; black for a conversation without image.
        tokens: per sample; without labels where its image is damaged.
        max_length: in tokens, visual ones included; what is longer is cut.
        seeds: one per sample, from its place in the stage's endless stream: whatever is drawn for it is drawn by this,
            and so is the same on any number of workers.
    """

    pixels_BCHW: Tensor
    tokens: Sequence[Tokens]
    max_length: int
    seeds: Sequence[int]


Model = Callable[[Tensor, Sequence[Tokens], int], tuple[Tensor, Tensor]]
"""``model(pixels_BCHW, tokens, max_length) -> (loss_B, count_B)``: summed cross-entropy over each sample's labelled
tokens, and their number. Differentiable in what the stage trains, and in the pixels if they want a gradient."""


@dataclass(frozen=True)
class Objective:
    """One objective.

    Attributes:
        loss: of a portion, a scalar; its gradients are summed over portions and averaged over workers.
        version: raised when any loss is another one.
    """

    loss: Callable[[Model, Portion], Tensor]
    version: int = 1


OBJECTIVES: Registry[Objective] = Registry("objective", "rllava.objectives")


def llava_loss(model: Model, portion: Portion) -> Tensor:
    """Mean cross-entropy over the labelled tokens of a portion, as LLaVA's trainer has it.

    Returns:
        A scalar; 0 if nothing is labelled.
    """
    loss_B, count_B = model(portion.pixels_BCHW, portion.tokens, portion.max_length)
    mean: Tensor = loss_B.sum() / count_B.sum().clamp(min=1)
    return mean


OBJECTIVES.register("llava", Objective(llava_loss))
