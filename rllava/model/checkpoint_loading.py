"""Loads checkpoints made elsewhere (see :mod:`rllava.model.checkpoint`): weights go straight to the device, in its
precision, shard by shard.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rllava.encoders import EncoderSpec, build_encoder
from rllava.errors import UserError
from rllava.model.causal_lm import check_language_model, embedding_width
from rllava.model.checkpoint import CheckpointSpec, checkpoint_digest, folders_of, read_config, weights_files
from rllava.model.conversation import TEMPLATES, stop_ids
from rllava.model.language import load_tokenizer
from rllava.model.llava import Connector, Llava, build_projector
from rllava.model.original_format import LANGUAGE_MODELS, SLOTS
from rllava.model.weight_stream import Stored, bare, contents, matched, stream

_NOT_READ = re.compile(r"(^|\.)\w*_tower\.|\.rotary_emb\.inv_freq$")
"""Keys beside a language model's: frozen towers, and buffers of older releases."""

_FACTS = r"architectures$|model_type$|_name_or_path$|transformers_version$|torch_dtype$|dtype$"
_GENERAL = re.compile(rf"^({_FACTS})")
"""Entries of ``config.json`` that say nothing about the architecture."""

_MULTI_MODAL = re.compile(rf"^(mm_|use_mm_|use_\w+_encoder$|tune_mm|freeze_mm|unfreeze_mm|tokenizer_|image_|{_FACTS})")
"""Entries of ``config.json`` that are not the language model's."""


def load_checkpoint(
    spec: CheckpointSpec,
    encoders: Sequence[EncoderSpec] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Llava:
    """Loads a LLaVA, with its own encoders or with others plugged in.

    Args:
        spec: see :func:`rllava.model.checkpoint.read_checkpoint`.
        encoders: to use; None: those it was trained with.
        device: where to.
        dtype: of all weights.

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
    built = [build_encoder(encoder).to(device, dtype) for encoder in encoders]
    llava = Llava(built, connector, tokenizer, spec.conversation)  # which checks that they fit
    stream(connector, stored, device, dtype, what)
    language_model.tie_weights()
    check_language_model(language_model)
    return llava.requires_grad_(False).eval()


def check_checkpoint(spec: CheckpointSpec, encoders: Sequence[EncoderSpec]) -> None:
    """Opens the files of a LLaVA without reading weights: do they fit each other?

    Args:
        spec: of the checkpoint.
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
        spec: of the checkpoint.
        encoders: as many as it has projectors.
        dtype: of the parameters.

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
            build_projector(spec.projector, _input_width(stored, place, encoder.width), width)
            for place, encoder in enumerate(encoders)
        ]
        connector = Connector(projectors, language_model)
    matched(connector, stored, what)
    return connector, stored, load_tokenizer(folders[-1], what, config=language_model.config)


def _language_model(spec: CheckpointSpec, folders: Sequence[Path], dtype: torch.dtype) -> Any:
    config = read_config(folders[-1], f"checkpoint '{spec.name}'")
    kind = str(config.get("model_type"))
    if spec.format == "hugging_face":
        described = dict(config.get("text_config") or {})
        kind = described.pop("model_type", "llama")
        if config.get("tie_word_embeddings"):
            described["tie_word_embeddings"] = True
    else:
        # A language model's own folder is left as it is.
        left_out = _MULTI_MODAL if spec.format == "original" else _GENERAL
        described = {key: value for key, value in config.items() if not left_out.match(key)}
        kind = LANGUAGE_MODELS[kind] if spec.format == "original" else kind
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
    translators = {"hugging_face": _hugging_face_names, "trained": _trained_names}
    translate = translators.get(spec.format, _original_names)
    found = {}
    for name, entry in contents(weights_files(spec), what).items():
        translated = translate(name, spec, language_model)
        if translated is not None:
            found[translated] = entry
    return found


def _original_names(name: str, spec: CheckpointSpec, language_model: Any) -> str | None:
    for place, projector in enumerate(spec.projectors):
        head, _, rest = name.partition(f"{projector}.")
        if rest and head in ("model.", ""):
            return f"projectors.{place}.{rest}"
    unused = tuple(f"model.{slot.projector}." for slot in SLOTS)
    return None if _NOT_READ.search(name) or name.startswith(unused) else f"language_model.{name}"


def _trained_names(name: str, spec: CheckpointSpec, language_model: Any) -> str:
    return name if name.startswith("projectors.") else f"language_model.{name}"


def _hugging_face_names(name: str, spec: CheckpointSpec, language_model: Any) -> str | None:
    plain = name.removeprefix("model.")
    if plain.startswith("vision_tower.") or _NOT_READ.search(name):
        return None
    if plain.startswith("multi_modal_projector."):
        place = {"linear_1": "0", "linear_2": "2"}
        _, part, rest = plain.split(".", 2)
        return f"projectors.0.{place.get(part, part)}.{rest}"
    head = next(
        key for key, module in language_model.named_modules() if module is language_model.get_output_embeddings()
    )
    if plain.removeprefix("language_model.").startswith("lm_head."):
        return f"language_model.{head}.{plain.rpartition('lm_head.')[2]}"
    if plain.startswith("language_model."):
        base, rest = language_model.base_model_prefix, plain.removeprefix("language_model.")
        before = f"{base}." if rest.startswith(f"{base}.") else "model."  # the prefix of older files, if there is one
        return f"language_model.{base}.{rest.removeprefix(before)}"
    return f"language_model.{name}"


def _input_width(stored: Mapping[str, Stored], place: int, default: int) -> int:
    for name in (f"projectors.{place}.0.weight", f"projectors.{place}.weight"):
        if name in stored and len(stored[name].shape) == 2:
            return stored[name].shape[1]
    return default
