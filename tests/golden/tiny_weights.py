"""Weights that any environment re-creates to the bit from their names and shapes."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

SCALE = 0.4


def tiny_weight(name: str, shape: Sequence[int]) -> Tensor:
    """Float32 weights: around 1 for norms, around 0 for all others.

    Args:
        name: seeds the draw; the same name in another model means the same weights.
    """
    draws = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
    is_norm = "norm" in name and name.endswith("weight")
    fan_in = shape[-1] if len(shape) == 2 else int(np.prod(shape[1:])) or 1
    scale = 0.1 if len(shape) < 2 else 2 * SCALE / fan_in**0.5
    return torch.from_numpy(draws * np.float32(scale) + np.float32(is_norm))


def tiny_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights of a model."""
    return {name: tiny_weight(name, shape) for name, shape in shapes.items()}


def tiny_pixels(count: int, side: int) -> Tensor:
    """Images.

    Args:
        side: in pixels.

    Returns:
        [count, 3, side, side], float32 in [0, 1).
    """
    return torch.from_numpy(np.random.RandomState(7).random_sample((count, 3, side, side)).astype(np.float32))
