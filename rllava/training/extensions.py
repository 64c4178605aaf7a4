"""PyTorch's cache of compiled extensions: a folder for each environment, and no locks of processes that were killed.

DeepSpeed compiles an operator through ``torch.utils.cpp_extension``. That compiles again whenever the paths of the
environment are not those of the last one, into the same folder: two environments on one machine would undo each other's
work, and one that loads the file while the other writes it fails. It compiles by the first ``ninja`` on the path, two
versions of which do not believe each other's logs: the machine's own and the environment's would compile in turn. And
it guards the folder by a file named ``lock`` and waits for that file to vanish, for ever: a process that is killed
meanwhile would keep every later training from starting.
"""

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.cpp_extension import get_default_build_root

STALE_S = 180.0
"""Nobody holds a lock for so long: the operator takes half a minute to compile."""


def extensions_folder() -> Path:
    """Where this environment keeps compiled extensions.

    Returns:
        ``$TORCH_EXTENSIONS_DIR``, or a folder of its own in PyTorch's cache.
    """
    if chosen := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(chosen)
    digest = hashlib.sha256(f"{torch.__file__} {torch.__version__}".encode()).hexdigest()
    return Path(get_default_build_root()) / f"rllava-{digest[:12]}"


def operator_is_built() -> bool:
    """Whether DeepSpeed's operator for CPUs lies in the cache, so that no compiler is needed.

    Returns:
        True if it was compiled before.
    """
    return any(extensions_folder().glob("**/deepspeed_shm_comm*.so"))


@contextlib.contextmanager
def extensions_at_hand(stale_s: float = STALE_S, every_s: float = 1.0) -> Iterator[None]:
    """A stretch of code that may compile or load extensions: in :func:`extensions_folder`, from which stale locks are
    removed meanwhile, by this environment's programs. From then on PyTorch looks there in this process.

    Args:
        stale_s: age from which on a lock has no owner any more.
        every_s: seconds between two looks.

    Yields:
        Nothing.
    """
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions_folder())
    programs, path = str(Path(sys.executable).parent), os.environ.get("PATH", "").split(os.pathsep)
    if path[0] != programs:
        os.environ["PATH"] = os.pathsep.join([programs, *filter(None, path)])
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
