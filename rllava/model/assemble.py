"""Builds, saves and loads LLaVAs from specs.

A trained LLaVA in storage:

    stage1/projectors.safetensors        what feature alignment learnt
    stage2/projectors.safetensors        and instruction tuning
    stage2/language_model/               Hugging Face folder with tokenizer
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from rllava.encoders import Encoder, EncoderSpec, build_encoder
from rllava.errors import UserError
from rllava.filesystem import copy_folder
from rllava.model.causal_lm import embedding_width
from rllava.model.checkpoint.trained import PROJECTORS
from rllava.model.language import LanguageModelSpec, load_language_model
from rllava.model.llava import Connector, Llava, build_projector
from rllava.pinned import Pinned
from rllava.specs import ModelSpec


def build_connector(
    spec: ModelSpec, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Connector, Any]:
    """The trainable part before any training: fresh projectors, pretrained language model.

    Args:
        spec: of the model; its seed and each encoder's place decide the projectors' initial weights.
        dtype: of the language model; projectors are float32.
        device: where to; the language model's weights go straight there.

    Returns:
        Connector and tokenizer.
    """
    language_model, tokenizer = load_language_model(spec.language_model, dtype, device)
    width = embedding_width(language_model)
    projectors = []
    for place, encoder in enumerate(spec.encoders):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed * 1000 + place)
            projectors.append(build_projector(spec.projector, encoder.width, width).to(device))
    return Connector(projectors, language_model), tokenizer


def save_projectors(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes the projectors of a connector's state.

    Args:
        state: of a :class:`Connector`; other keys are left out.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {key: value.float().contiguous() for key, value in state.items() if key.startswith("projectors.")}
    save_file(wanted, folder / PROJECTORS)


def load_projectors(connector: Connector, folder: Path) -> None:
    """Reads what :func:`save_projectors` wrote.

    Args:
        connector: to load into.
        folder: of a stage.

    Raises:
        UserError: if the file is missing, damaged or of another shape.
    """
    path = folder / PROJECTORS
    try:
        state = {key.removeprefix("projectors."): value for key, value in load_file(path).items()}
        connector.projectors.load_state_dict(state)
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(f"projectors {path}: {reason}; delete this model's folder and run again") from error


def save_stage2(connector: Connector, state: dict[str, torch.Tensor], tokenizer: Any, folder: Path) -> None:
    """Writes projectors and language model.

    Args:
        connector: gives the language model's configuration.
        state: full weights, as gathered from all workers.
        tokenizer: of the language model.
        folder: made if need be.
    """
    save_projectors(state, folder)
    prefix = "language_model."
    language_state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    cast(Any, connector.language_model).save_pretrained(folder / "language_model", state_dict=language_state)
    tokenizer.save_pretrained(folder / "language_model")


def load_llava(
    spec: ModelSpec,
    filesystem: Any,
    path: str,
    encoders: Sequence[EncoderSpec],
    conversation: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Llava:
    """Loads a trained LLaVA, with its own encoders or with others plugged in.

    Args:
        spec: it was trained by.
        filesystem: fsspec file system of the storage.
        path: of the model artifact in it.
        encoders: to use; ``spec.encoders`` or stand-ins of the same widths and token counts.
        conversation: template for questions; None: stage 2's.
        device: where to.
        dtype: of all weights.

    Returns:
        The model, frozen, in evaluation mode.
    """
    with _on_disk(filesystem, f"{path}/stage2") as stage2:
        language_model, tokenizer = load_language_model(
            LanguageModelSpec(spec.language_model.name, Pinned(str(stage2 / "language_model"))), dtype, device
        )
        width = embedding_width(language_model)
        projectors = [build_projector(spec.projector, encoder.width, width) for encoder in spec.encoders]
        connector = Connector(projectors, language_model)
        load_projectors(connector, stage2)
    connector.projectors.to(device, dtype)
    built: list[Encoder] = [build_encoder(encoder).to(device, dtype) for encoder in encoders]
    llava = Llava(built, connector, tokenizer, conversation or spec.stage2.conversation)
    return llava.requires_grad_(False).eval()


@contextlib.contextmanager
def _on_disk(filesystem: Any, path: str) -> Iterator[Path]:
    """A folder of the storage as one of this machine: itself, or a copy."""
    if "file" in filesystem.protocol:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="rllava-model-") as folder:
        copy_folder(filesystem, path, Path(folder) / "copy")
        yield Path(folder) / "copy"
