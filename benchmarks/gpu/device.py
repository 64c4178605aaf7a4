"""The device that is measured on: its name, its clock and its memory."""

import gc
import platform
import statistics
import time
from collections.abc import Callable

import torch

GIB = 1 << 30


def machine_name(device: torch.device) -> str:
    """The GPU and its memory, or the processor."""
    if device.type != "cuda":
        return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    memory = torch.cuda.get_device_properties(device).total_memory
    return f"{torch.cuda.get_device_name(device)}, {memory / GIB:.4g} GiB"


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Wall-clock time of some warmed-up work, the device's part included.

    Args:
        repeats: timings of which the median counts.
    """
    times = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Gives memory that nothing holds back to the device, so that the next peak is its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
