"""What stage 1 of LLaVA leaves: ``mm_projector.bin`` beside ``config.json``; the language model is another folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rllava.errors import UserError
from rllava.model.checkpoint.layout import Layout, own_language_model
from rllava.model.checkpoint.original import Slot, described, encoder_of, name_of
from rllava.model.checkpoint_spec import CheckpointSpec


def projectors_alone(folder: Path, used: Sequence[Slot]) -> bool:
    """Whether a folder in LLaVA's own format has projectors and no language model.

    Returns:
        Whether it is of this format.
    """
    own = _files(folder, [slot.projector for slot in used])
    return any(file.exists() for file in own) and not any(folder.glob("*.safetensors")) and not any(
        file not in own and file.name.startswith("pytorch_model") for file in folder.glob("*.bin")
    )  # fmt: skip


def projector_spec(config: dict[str, Any], folder: Path, what: str, used: Sequence[Slot]) -> CheckpointSpec:
    """What a folder of projectors says about itself.

    Returns:
        The spec; name, place, template and hash are left open.

    Raises:
        UserError: if a projector is missing, or a tower is unknown.
    """
    missing = [file.name for file in _files(folder, [slot.projector for slot in used]) if not file.exists()]
    if missing:
        raise UserError(f"{what}: {', '.join(missing)} is missing; the flags of config.json ask for it")
    return replace(described(used, [encoder_of(slot, config, what) for slot in used], config), format="projector")


def _files(folder: Path, projectors: Sequence[str]) -> list[Path]:
    return [folder / f"{projector}.bin" for projector in projectors]


LAYOUT = Layout(own_language_model, name_of, lambda spec, folder: _files(folder, spec.projectors))
