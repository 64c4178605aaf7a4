"""How many samples fit: batches that shrink when memory runs out, and a first guess from what one sample needs."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")

SPARE = 0.9
"""Share of the free memory to plan with; the rest is for what the allocator cannot use."""


class Batches:
    """Splits work on samples into parts that fit into memory.

    Args:
        limit: most samples of a part, to begin with.
        say: told when the limit falls.
    """

    def __init__(self, limit: int, say: Callable[[str], None] = lambda _: None) -> None:
        assert limit >= 1
        self.limit = limit
        self.say = say

    def run(self, call: Callable[[Sequence[int]], T], rows: Sequence[int]) -> list[T]:
        """Calls with parts of the rows, in order. A part that runs out of memory is tried again in halves.

        Nothing is lost by that, as long as a call changes nothing before it returns.

        Args:
            call: ``call(part) -> result``.
            rows: all rows; none: no call.

        Returns:
            The results of the parts.

        Raises:
            torch.OutOfMemoryError: if not even one sample fits.
        """
        results: list[T] = []
        first = 0
        while first < len(rows):
            part = rows[first : first + self.limit]
            try:
                results.append(call(part))
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise torch.OutOfMemoryError(
                        "not even one sample fits into memory; use a device with more, or a smaller model"
                    ) from error
                full = True
            else:
                full = False
            # Outside the handler: the exception held on to the tensors of the failed pass.
            if full:
                self.limit = len(part) // 2
                self.say(f"out of memory with {len(part)} samples at a time; going on with {self.limit}")
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            first += len(part)
        return results


def samples_that_fit(peak_bytes: Callable[[int], int], free_bytes: int, most: int) -> int:
    """How many samples fit, from the peaks of passes over one and over two.

    Args:
        peak_bytes: ``peak_bytes(samples)``: memory that one pass over so many takes on top of what lies there.
        free_bytes: memory there is for it.

    Returns:
        From 1 to ``most``.
    """
    if most == 1:
        return 1
    one = peak_bytes(1)
    try:
        two = peak_bytes(2)
    except torch.OutOfMemoryError:
        return 1
    each = max(two - one, 1)
    fixed = max(one - each, 0)
    return max(1, min(most, int((free_bytes * SPARE - fixed) // each)))


def cuda_peak(call: Callable[[int], object], device: torch.device) -> Callable[[int], int]:
    """Measures what a call takes on a CUDA device.

    Args:
        call: ``call(samples)``: one pass.

    Returns:
        ``peak_bytes`` for :func:`samples_that_fit`.
    """

    def peak_bytes(samples: int) -> int:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call(samples)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    return peak_bytes


def cuda_free_bytes(device: torch.device) -> int:
    """Memory that PyTorch can still take on a CUDA device.

    Returns:
        What the device has free, and what the allocator holds without using it.
    """
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
