"""Compiles the one DeepSpeed operator that training on CPUs uses, so that no run has to wait for it.

Run as ``DS_ACCELERATOR=cpu python -m cluster.prebuild``. The result stays in PyTorch's cache of extensions, in a
folder of this environment's own.
"""

import os
import time


def build_cpu_operator() -> float:
    """Builds DeepSpeed's shared-memory communication operator and returns the seconds that took."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator import get_accelerator

    from rllava.training.extensions import extensions_at_hand

    started = time.monotonic()
    with extensions_at_hand():
        get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)
    return time.monotonic() - started


if __name__ == "__main__":
    build_cpu_operator()
