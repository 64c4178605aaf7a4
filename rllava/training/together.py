"""What data-parallel workers do together; without a process group, one worker does it alone."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Of this worker."""
    return dist.get_rank() if dist.is_initialized() else 0


def workers() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average(value: Tensor) -> Tensor:
    """Mean over the workers, in place."""
    if workers() > 1:
        dist.all_reduce(value)
        value /= workers()
    return value


def gather(value_B: Tensor) -> Tensor:
    """The rows of all workers, worker by worker.

    Its gradient is the sum of what all workers want of a row. If every worker computes the same loss of all rows, the
    average of their gradients is therefore that of the loss, as if one worker had all rows.
    """
    if workers() == 1:
        return value_B
    gathered: Tensor = _Gather.apply(value_B)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_B: Tensor) -> Tensor:
        shares = [torch.empty_like(value_B) for _ in range(workers())]
        dist.all_gather(shares, value_B.contiguous())
        return torch.cat(shares)

    @staticmethod
    def backward(ctx: Any, gradient_B: Tensor) -> Tensor:
        gradient_B = gradient_B.contiguous()
        dist.all_reduce(gradient_B)
        return gradient_B.chunk(workers())[rank()]
