"""LLaVAs that a sweep trained, as checkpoints: folders ``models/NAME-FINGERPRINT`` of its storage.

spec.json                            what it was trained by
COMPLETE                             that it was
stage2/projectors.safetensors        of the last stage
stage2/language_model/               Hugging Face folder with tokenizer
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rllava.errors import UserError
from rllava.model.checkpoint.layout import Layout, own_language_model
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.pinned import MadeBy
from rllava.snapshot import MARKER
from rllava.specs import ModelSpec

PROJECTORS = "projectors.safetensors"
"""What a training stage leaves of the projectors."""


def trained_spec(folder: Path, what: str) -> CheckpointSpec:
    """What the folder of a trained LLaVA says about itself.

    Returns:
        The spec, with the last stage's conversation template; place and hash are left open.

    Raises:
        UserError: if its training is not done, or its description cannot be read.
    """
    _require(folder, what, MARKER)
    try:
        spec = TypeAdapter(ModelSpec).validate_json((folder / "spec.json").read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} has no readable spec.json ({reason}); copy the whole folder") from error
    for name in (PROJECTORS, "language_model/config.json"):
        _require(folder, what, f"stage{len(spec.stages)}/{name}")
    for encoder in spec.own_encoders:
        if isinstance(encoder.weights, MadeBy):
            raise UserError(
                f"{what}: its encoder {encoder.name} was made by a step of its sweep; evaluate it there, by the "
                "sweep's own command"
            )
    return CheckpointSpec(
        name="",
        format="trained",
        weights=(),
        sha256="",
        encoders=spec.encoders,
        projectors=tuple(f"projectors.{index}" for index in range(len(spec.encoders))),
        projector=spec.projector,
        conversation=spec.conversation,
    )


def last_stage(folder: Path) -> Path:
    """Where the weights of a trained LLaVA lie in its folder: what its last stage has left.

    Args:
        folder: of the model, whose description can be read.
    """
    spec = json.loads((folder / "spec.json").read_bytes())
    return folder / f"stage{len(spec['stages'])}"


def _require(folder: Path, what: str, name: str) -> None:
    if not (folder / name).exists():
        raise UserError(f"{what} lacks {name}; run the sweep that trains it again, or copy the whole folder")


def _name_of(name: str, spec: CheckpointSpec, language_model: Any) -> str:
    return name if name.startswith("projectors.") else f"language_model.{name}"


LAYOUT = Layout(own_language_model, _name_of, lambda spec, folder: [folder / PROJECTORS], configured=False)
