"""Lets torchvision, and so timm and transformers, be imported beside a CPU build of torch.

The torchvision wheels of the package index are CUDA builds. Beside a CPU build of torch their operator library does not
load, and ``import torchvision`` then stops at the first operator it wants to describe (``torchvision::nms does not
exist``). The operators themselves (box suppression) are not needed here; their schemas are enough.
"""

import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def declare_missing_operators() -> bool:
    """Declares the schemas of torchvision's operators if its own library cannot be loaded.

    Must run before the first import of torchvision, timm or transformers in a process; calling it again does nothing.

    Returns:
        Whether the schemas had to be declared.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return False
    fragment = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        fragment.define(schema)  # type: ignore[no-untyped-call]
    _alive.append(fragment)
    return True


_alive: list[torch.library.Library] = []  # a library's definitions go when it is collected
