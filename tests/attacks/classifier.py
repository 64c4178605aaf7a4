"""A small float64 classifier whose weights come from NumPy's frozen generator, so that golden numbers keep meaning."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Classifier(torch.nn.Module):
    """One convolution, GELU, one linear layer; five classes of 8 x 8 RGB images."""

    def __init__(self) -> None:
        super().__init__()
        generator = np.random.RandomState(7)
        self.kernel = torch.from_numpy(generator.randn(8, 3, 3, 3) * 6.0)
        self.weight = torch.from_numpy(generator.randn(5, 8 * 36) * 0.3)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        kernel, weight = self.kernel.to(pixels_BCHW.dtype), self.weight.to(pixels_BCHW.dtype)
        return F.gelu(F.conv2d(pixels_BCHW, kernel)).flatten(1) @ weight.T


def images(count: int) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] (some pixels exactly 0 or 1) and their labels."""
    generator = np.random.RandomState(11)
    pixels = np.clip(generator.rand(count, 3, 8, 8) * 1.2 - 0.1, 0, 1)
    return torch.from_numpy(pixels), torch.from_numpy(generator.randint(0, 5, count))


def start_points(pixels_BCHW: Tensor, epsilon: float, norm: str) -> Tensor:
    """Points on the budget's surface, in [0, 1]."""
    noise = torch.from_numpy(np.random.RandomState(13).randn(*pixels_BCHW.shape))
    flat = noise.flatten(1)
    size = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
    return (pixels_BCHW + noise / size[:, None, None, None] * epsilon / 255).clamp(0, 1)
