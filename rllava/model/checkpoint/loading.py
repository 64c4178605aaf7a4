"""Loads checkpoints of every format (see :mod:`rllava.model.checkpoint`): weights go straight to the device, in its
precision, shard by shard.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rllava.encoders import Encoder, EncoderSpec, build_encoder
from rllava.errors import UserError
from rllava.model.causal_lm import check_language_model, embedding_width
from rllava.model.checkpoint.files import folders_of, read_config
from rllava.model.checkpoint.formats import LAYOUTS, checkpoint_digest, weights_files
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.conversation import TEMPLATES, stop_ids
from rllava.model.language import load_tokenizer
from rllava.model.llava import Connector, Llava, build_projector
from rllava.model.weight_stream import Stored, bare, contents, matched, stream


def load_checkpoint(
    spec: CheckpointSpec,
    encoders: Sequence[EncoderSpec] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    build: Callable[[EncoderSpec], Encoder] = build_encoder,
) -> Llava:
    """Loads a LLaVA, with its own encoders or with others plugged in.

    Args:
        spec: see :func:`rllava.model.checkpoint.reading.read_checkpoint`.
        encoders: to use; None: those it was trained with.

    Returns:
        The model, frozen, in evaluation mode.

    Raises:
        UserError: if its files changed, do not fit each other or the encoders, or cannot be read.
    """
    what = f"checkpoint '{spec.name}'"
    if checkpoint_digest(spec) != spec.sha256:
        raise UserError(f"{what}: its files changed since they were read; read it again, or restore them")
    encoders = spec.encoders if encoders is None else encoders
    device = torch.device(device)
    connector, stored, tokenizer = bare_connector(spec, encoders, dtype)
    language_model = cast(Any, connector.language_model)
    built = [build(encoder).to(device, dtype) for encoder in encoders]
    llava = Llava(built, connector, tokenizer, spec.conversation)  # which checks that they fit
    stream(connector, stored, device, dtype, what)
    language_model.tie_weights()
    check_language_model(language_model)
    return llava.requires_grad_(False).eval()


def check_checkpoint(spec: CheckpointSpec, encoders: Sequence[EncoderSpec]) -> None:
    """Opens the files of a LLaVA without reading weights: do they fit each other?

    Args:
        encoders: that it will be used with.

    Raises:
        UserError: if a file is missing or damaged, a key does not fit, or the tokenizer lacks a token.
    """
    _, _, tokenizer = bare_connector(spec, encoders)
    stop_ids(tokenizer, TEMPLATES.get(spec.conversation))


def bare_connector(
    spec: CheckpointSpec, encoders: Sequence[EncoderSpec], dtype: torch.dtype = torch.float32
) -> tuple[Connector, dict[str, Stored], Any]:
    """A checkpoint's projectors and language model without their weights, which are on the meta device.

    Args:
        encoders: as many as it has projectors.

    Returns:
        The connector; what is to be loaded into it, by its names; the tokenizer.

    Raises:
        UserError: if the files do not fit each other, or cannot be read.
    """
    what = f"checkpoint '{spec.name}'"
    if len(encoders) != len(spec.projectors):
        raise UserError(f"{what} has {len(spec.projectors)} projectors; give as many encoders, not {len(encoders)}")
    folders = folders_of(spec.weights, what)
    with bare():
        language_model = _language_model(spec, folders, dtype)
    stored = _stored(spec, language_model, what)
    with bare():
        width = embedding_width(language_model)
        projectors = [
            build_projector(spec.projector, _input_width(stored, index, encoder.width), width)
            for index, encoder in enumerate(encoders)
        ]
        connector = Connector(projectors, language_model)
    matched(connector, stored, what)
    return connector, stored, load_tokenizer(folders[-1], what, config=language_model.config)


def _language_model(spec: CheckpointSpec, folders: Sequence[Path], dtype: torch.dtype) -> Any:
    kind, described = LAYOUTS[spec.format].language_model(read_config(folders[-1], f"checkpoint '{spec.name}'"))
    try:
        built: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **described), dtype=dtype)
    except Exception as error:  # configurations are checked by several libraries
        reason = " ".join(str(error).split())  # the first line may only say that there is a second one
        raise UserError(
            f"checkpoint '{spec.name}': no language model of type '{kind}' can be built ({reason})"
        ) from error
    return built


def _stored(spec: CheckpointSpec, language_model: Any, what: str) -> dict[str, Stored]:
    """What the files hold, by the names of a :class:`Connector`."""
    found = {}
    for name, entry in contents(weights_files(spec), what).items():
        translated = LAYOUTS[spec.format].name_of(name, spec, language_model)
        if translated is not None:
            found[translated] = entry
    return found


def _input_width(stored: Mapping[str, Stored], index: int, default: int) -> int:
    for name in (f"projectors.{index}.0.weight", f"projectors.{index}.weight"):
        if name in stored and len(stored[name].shape) == 2:
            return stored[name].shape[1]
    return default
