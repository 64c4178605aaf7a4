"""Locks that a killed process left in PyTorch's cache of compiled extensions.

DeepSpeed compiles an operator through ``torch.utils.cpp_extension``, which guards it by a file named ``lock`` and waits
for that file to vanish, for ever: a process that is killed meanwhile would keep every later training from starting.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

STALE_S = 180.0
"""Nobody holds a lock for so long: the operator takes half a minute to compile."""


def extensions_folder() -> Path:
    """Where PyTorch keeps compiled extensions.

    Returns:
        ``$TORCH_EXTENSIONS_DIR``, or PyTorch's own choice.
    """
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def operator_is_built() -> bool:
    """Whether DeepSpeed's operator for CPUs lies in the cache, so that no compiler is needed.

    Returns:
        True if it was compiled before.
    """
    return any(extensions_folder().glob("**/deepspeed_shm_comm*.so"))


@contextlib.contextmanager
def stale_locks_removed(stale_s: float = STALE_S, every_s: float = 1.0) -> Iterator[None]:
    """A stretch of code during which locks of that age are removed.

    Args:
        stale_s: age from which on a lock has no owner any more.
        every_s: seconds between two looks.

    Yields:
        Nothing.
    """
    over = threading.Event()
    watching = threading.Thread(target=_watch, args=(over, stale_s, every_s), daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def _watch(over: threading.Event, stale_s: float, every_s: float) -> None:
    while True:
        for lock in extensions_folder().glob("**/lock"):
            with contextlib.suppress(OSError):  # its owner was quicker
                if time.time() - lock.stat().st_mtime > stale_s:
                    lock.unlink()
        if over.wait(every_s):
            return
