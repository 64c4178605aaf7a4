"""What a format says to whoever opens its files; every format's module has one :class:`Layout`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rllava.model.checkpoint_spec import CheckpointSpec

FACTS = r"architectures$|model_type$|_name_or_path$|transformers_version$|torch_dtype$|dtype$"
_GENERAL = re.compile(rf"^({FACTS})")
"""Entries of ``config.json`` that say nothing about the architecture."""


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint of one format keeps what is read of it.

    Attributes:
        language_model: family and configuration of the language model, from ``config.json`` of the last folder.
        name_of: a stored weight's name in a :class:`rllava.model.llava.Connector`, given the spec and the language
            model; None: it is not read.
        projectors: files of the projectors' weights in the first folder, where they are not among the others.
        configured: whether the first folder has a ``config.json`` that decides what the checkpoint computes, beside the
            last one's.
    """

    language_model: Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]
    name_of: Callable[[str, CheckpointSpec, Any], str | None]
    projectors: Callable[[CheckpointSpec, Path], list[Path]] = lambda spec, folder: []
    configured: bool = True


def own_language_model(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A language model in a folder of its own, which is left as it is."""
    return str(config.get("model_type")), {key: value for key, value in config.items() if not _GENERAL.match(key)}
