"""Vision encoders: a registry, and one file per family.

A new encoder is one small file in this folder (or one call of :func:`register` in any installed package that announces
itself under the entry-point group ``rllava.encoders``): it names a builder and the weights. Any model of timm or
open_clip and any checkpoint is an encoder without registration, see :mod:`rllava.encoders.names` and the README.
"""

import importlib
import pkgutil
from functools import cache

from rllava.torchvision_shim import declare_missing_operators

declare_missing_operators()  # before any family imports timm or transformers

from rllava.encoders.base import (  # noqa: E402
    Encoder,
    EncoderSpec,
    build_encoder,
    check_encoder,
    check_swap,
    check_together,
    encode,
    input_size,
    measured,
)
from rllava.encoders.names import parse_encoder  # noqa: E402
from rllava.registry import Registry, load_entry_points  # noqa: E402

__all__ = [
    "Encoder",
    "EncoderSpec",
    "build_encoder",
    "check_encoder",
    "check_swap",
    "check_together",
    "encode",
    "encoder_names",
    "encoder_spec",
    "input_size",
    "measured",
    "register",
]

_ENCODERS: Registry[EncoderSpec] = Registry("encoder")


def register(spec: EncoderSpec) -> EncoderSpec:
    """Adds an encoder under its name.

    Raises:
        ValueError: if the name is taken, or contains one of the characters with a meaning in names of candidates.
    """
    if any(character in spec.name for character in "+@/ :[],"):
        raise ValueError(f"encoder name '{spec.name}': + @ / : [ ] , and spaces have a meaning in candidate names")
    return _ENCODERS.register(spec.name, spec)


def encoder_spec(name: str) -> EncoderSpec:
    """The encoder of that name.

    Args:
        name: a registered one, ``timm:MODEL``, ``open_clip:MODEL/PRETRAINED`` or a path; with variants in brackets
            (see :mod:`rllava.encoders.names`).

    Raises:
        UserError: if there is none; the message names near matches.
    """
    _discover()
    return parse_encoder(name, _ENCODERS.get)


def encoder_names() -> list[str]:
    """All registered names, sorted."""
    _discover()
    return list(_ENCODERS)


@cache
def _discover() -> None:
    """Imports every file of this folder, and every announced package; each registers its encoders."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}").__dict__.get("register_encoders", lambda _: None)(register)
    load_entry_points("rllava.encoders", register)
