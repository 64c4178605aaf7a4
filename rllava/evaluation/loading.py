"""Loads the model of a candidate from storage, on the machine that attacks it."""

import functools
import os
from collections.abc import Iterable
from typing import Any

import torch

from rllava.encoders import EncoderSpec
from rllava.evaluation.victim import HALF, Victim
from rllava.made import build_at_hand
from rllava.model.assemble import load_llava
from rllava.model.checkpoint import load_checkpoint
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.specs import ModelSpec
from rllava.store import Store


def dtype_of(precisions: Iterable[str]) -> torch.dtype:
    """In which precision a model is loaded that is to run in some.

    Returns:
        float32, or the one half precision that is used.
    """
    used = set(precisions)
    return HALF[used.pop()] if len(used) == 1 and "float32" not in used else torch.float32


def load_victim(
    store: Store, model: ModelSpec | CheckpointSpec, path: str, encoders: tuple[EncoderSpec, ...], dtype: torch.dtype,
    compiled: bool = False,
) -> Victim:  # fmt: skip
    """Loads a LLaVA that was trained here or elsewhere, onto the GPU if there is one.

    Args:
        path: of the trained LLaVA in the storage; not looked at for a checkpoint from elsewhere.
        compiled: whether it goes through torch.compile.
    """
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    how: dict[str, Any] = {"device": device, "dtype": dtype, "build": functools.partial(build_at_hand, store=store)}
    if isinstance(model, CheckpointSpec):
        llava = load_checkpoint(model, encoders, **how)
    else:
        llava = load_llava(model, store.filesystem, path, encoders, **how)
    return Victim(llava, device, "inductor" if compiled else None)
