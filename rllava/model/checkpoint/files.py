"""Folders of checkpoints: where they are on this machine, and their configuration."""

import json
from pathlib import Path
from typing import Any

from rllava.errors import UserError
from rllava.weights import HUB, find_weights, weights_path


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """The configuration of a folder.

    Returns:
        ``config.json``.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{what} has no readable config.json; copy the whole folder") from error
    if not isinstance(config, dict):
        raise UserError(f"{what}: config.json is no object; copy the whole folder")
    return config


def folders_of(weights: tuple[str, ...], what: str) -> list[Path]:
    """Where the parts of a checkpoint are on this machine.

    Args:
        weights: see :class:`rllava.model.checkpoint_spec.CheckpointSpec`.

    Raises:
        UserError: if one is not here.
    """
    return [located(part, what)[1] for part in weights]


def located(source: str, what: str) -> tuple[str, Path]:
    """Where a folder is, given by its path or by its name on the hub.

    Args:
        source: a folder, ``ORG/NAME`` of the hub or ``hub:ORG/NAME``.

    Returns:
        How a spec names it, and the folder on this machine.

    Raises:
        UserError: if it is not here.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path.resolve()), path.resolve()
    hub = source if source.startswith(HUB) else f"{HUB}{source}"
    if path.is_absolute() or source.startswith(".") or hub.count("/") != 1:
        raise UserError(f"{what} {source}: there is no such folder")
    found = find_weights(hub)
    if found is None:
        raise UserError(
            f"{what} {source}: there is no such folder, and the hub cannot be reached or has no such model; copy its "
            f"files (config.json, weights, tokenizer) to {weights_path(hub)}"
        )
    return hub, found
