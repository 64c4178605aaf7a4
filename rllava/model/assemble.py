"""Builds, saves and loads LLaVAs from specs.

A trained LLaVA in storage:

    stage1/projectors.safetensors        what the first stage has learnt, e.g. feature alignment
    stage2/projectors.safetensors        and the next one, e.g. instruction tuning
    stage2/language_model/               Hugging Face folder with tokenizer; of the last stage, and of those that have
                                         trained it
    stage2/encoders/0.safetensors        where a stage has trained them
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
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

LANGUAGE_MODEL, ENCODERS = "language_model", "encoders"
"""Folders of a stage."""


def build_connector(
    spec: ModelSpec,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    after: Path | None = None,
) -> tuple[Connector, Any]:
    """Projectors and language model, as a stage finds them.

    Args:
        spec: of the model; its seed and each encoder's index decide the projectors' initial weights.
        dtype: of the language model; projectors are float32.
        device: where to; the language model's weights go straight there.
        after: what the stage before has left; None: before any training.
    """
    start = spec.language_model
    if after is not None and (after / LANGUAGE_MODEL).exists():
        start = LanguageModelSpec(start.name, Pinned(str(after / LANGUAGE_MODEL)))
    language_model, tokenizer = load_language_model(start, dtype, device)
    width = embedding_width(language_model)
    projectors = []
    for index, encoder in enumerate(spec.encoders):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed * 1000 + index)
            projectors.append(build_projector(spec.projector, encoder.width, width).to(device))
    connector = Connector(projectors, language_model)
    if after is not None:
        load_projectors(connector, after)
    return connector, tokenizer


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


def save_stage(
    spec: ModelSpec, number: int, connector: Connector, state: dict[str, torch.Tensor], tokenizer: Any, folder: Path
) -> None:
    """Writes what a stage leaves: projectors; encoders and language model as far as they have been trained; of the last
    stage the language model in any case.

    Args:
        number: of the stage, from 1.
        connector: gives the language model's configuration.
        state: full weights, as gathered from all workers.
        folder: made if need be.
    """
    save_projectors(state, folder)
    for index in range(len(spec.encoders)):
        encoder = _below(state, f"encoders.{index}.")
        if encoder:
            (folder / ENCODERS).mkdir(exist_ok=True)
            save_file(encoder, folder / ENCODERS / f"{index}.safetensors")
    trained = any(stage.rates.language_model is not None for stage in spec.stages[:number])
    if not trained and number < len(spec.stages):
        return
    language_state = _below(state, "language_model.")
    cast(Any, connector.language_model).save_pretrained(folder / LANGUAGE_MODEL, state_dict=language_state)
    tokenizer.save_pretrained(folder / LANGUAGE_MODEL)


def carry_encoders(before: Path, folder: Path) -> None:
    """Hands on encoders that an earlier stage has trained and this one has not: later, only its folder is read."""
    if (before / ENCODERS).exists() and not (folder / ENCODERS).exists():
        shutil.copytree(before / ENCODERS, folder / ENCODERS)


def _below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value.contiguous() for key, value in state.items() if key.startswith(prefix)}


def load_trained_encoders(encoders: Sequence[Encoder], folder: Path) -> None:
    """Reads encoders that a stage has trained; those that it has not stay as they are."""
    for index, encoder in enumerate(encoders):
        file = folder / ENCODERS / f"{index}.safetensors"
        if file.exists():
            encoder.load_state_dict(load_file(file))


def load_llava(
    spec: ModelSpec,
    filesystem: Any,
    path: str,
    encoders: Sequence[EncoderSpec],
    conversation: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    build: Callable[[EncoderSpec], Encoder] = build_encoder,
) -> Llava:
    """Loads a trained LLaVA, with its own encoders or with others plugged in.

    Args:
        filesystem: fsspec file system of the storage.
        path: of the model artifact in it.
        encoders: to use; ``spec.own_encoders`` or stand-ins of the same widths and token counts.
        conversation: template for questions; None: the last stage's.

    Returns:
        The model, frozen, in evaluation mode.
    """
    with _on_disk(filesystem, f"{path}/stage{len(spec.stages)}") as last:
        language_model, tokenizer = load_language_model(
            LanguageModelSpec(spec.language_model.name, Pinned(str(last / LANGUAGE_MODEL))), dtype, device
        )
        width = embedding_width(language_model)
        projectors = [build_projector(spec.projector, encoder.width, width) for encoder in spec.encoders]
        connector = Connector(projectors, language_model)
        load_projectors(connector, last)
    connector.projectors.to(device, dtype)
    built: list[Encoder] = [build(encoder).to(device, dtype) for encoder in encoders]
    llava = Llava(built, connector, tokenizer, conversation or spec.conversation)
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
