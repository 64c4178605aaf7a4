"""An objective: LLaVA's loss on images with random noise of up to 8/255, drawn for each sample by its own seed."""

from collections.abc import Callable

import torch
from torch import Tensor

from rllava.training.objectives import Model, Objective, Portion, llava_loss


def on_noise(model: Model, portion: Portion) -> Tensor:
    noise = [
        torch.rand(pixels_CHW.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        for pixels_CHW, seed in zip(portion.pixels_BCHW, portion.seeds, strict=True)
    ]
    noisy_BCHW = portion.pixels_BCHW + torch.stack(noise).to(portion.pixels_BCHW) * 8 / 255
    changed = Portion(noisy_BCHW.clamp(0, 1), portion.tokens, portion.max_length, portion.seeds)
    return llava_loss(model, changed)


def add(register: Callable[[str, Objective], Objective]) -> None:
    register("llava_on_noise", Objective(on_noise, version=1))
