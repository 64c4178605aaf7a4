"""Finds out what a checkpoint is, from its configuration and the hashes of its files."""

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from rllava.errors import UserError
from rllava.model.checkpoint.files import folders_of, located, read_config
from rllava.model.checkpoint.formats import checkpoint_digest
from rllava.model.checkpoint.hugging_face import hugging_face_spec
from rllava.model.checkpoint.original import LANGUAGE_MODELS, original_spec, used_slots
from rllava.model.checkpoint.projector import projector_spec, projectors_alone
from rllava.model.checkpoint.trained import last_stage, trained_spec
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.conversation import TEMPLATES

_LLAMAS = 32064
"""Vocabulary of Llama 1 and 2 and of Vicuna, with the tokens that LLaVA's checkpoints add."""

_LLAMAS_END = 2
"""Their end token; Phi-3, which xtuner stores as a Llama of as many tokens, has another one."""

_NO_VICUNA = re.compile(r"llama-?[23]|chat", re.IGNORECASE)

_VICUNAS = re.compile(r"ASSISTANT|\.upper\(\)|\| *upper")
"""In chat templates that write ``USER: … ASSISTANT: …``."""


def read_checkpoint(
    source: str,
    *,
    language_model: str | None = None,
    conversation: str | None = None,
    name: str | None = None,
    vision_tower: str | None = None,
) -> CheckpointSpec:
    """Finds out what a checkpoint is. No weights are loaded; files are hashed.

    Args:
        source: a folder, or ``ORG/NAME`` of the hub.
        language_model: folder or ``ORG/NAME`` of the language model, for a checkpoint of projectors alone.
        conversation: template for questions; None: ``vicuna_v1``, where the language model may be a Vicuna.
        name: of the checkpoint; None: that of its folder.
        vision_tower: of a folder in LLaVA's own format that holds a tower other than the one its configuration names:
            ``"own"`` or ``"named"``.

    Raises:
        UserError: if something is missing, unknown or not supported; the message says what and what to do.
    """
    weights, folder = located(source, "checkpoint")
    what = f"checkpoint {folder}"
    if vision_tower not in (None, "own", "named"):
        raise UserError(f"--vision-tower {vision_tower}: expected own or named")
    if (folder / "spec.json").exists():
        if vision_tower is not None:
            raise UserError(f"{what} was trained by a sweep, with encoders of its own; leave out --vision-tower")
        return _trained(folder, what, language_model, conversation, name)
    config = read_config(folder, what)
    _check_code_and_weights(config, what)
    if "text_config" in config or "vision_config" in config:
        spec = hugging_face_spec(config, folder, what)
    else:
        used = used_slots(config, folder, what)
        if projectors_alone(folder, used):
            spec = projector_spec(config, folder, what, used)
        else:
            spec = original_spec(config, folder, what, used, vision_tower)
    if vision_tower is not None and spec.format != "original":
        raise UserError(f"{what} has one vision tower to be read with; leave out --vision-tower {vision_tower}")
    parts = [weights]
    if spec.format == "projector":
        if language_model is None:
            before = config.get("_name_or_path")
            hint = f" (it was trained with {before})" if before else ""
            raise UserError(f"{what} holds projectors alone; give the folder of its language model{hint}")
        parts.append(located(language_model, "language model")[0])
    elif language_model is not None:
        raise UserError(f"{what} has a language model of its own; leave out {language_model}")
    template = conversation or _usual_conversation(config, folders_of(tuple(parts), what)[-1], what)
    template = TEMPLATES.get(template).name
    spec = replace(spec, name=name or Path(source).name, weights=tuple(parts), conversation=template)
    return replace(spec, sha256=checkpoint_digest(spec))


def _check_code_and_weights(config: dict[str, Any], what: str) -> None:
    """Refuses what is known from ``config.json`` never to load, whatever the model is."""
    if config.get("model_type") not in ("llava", *LANGUAGE_MODELS) and config.get("auto_map"):
        code = ", ".join(sorted(map(str, config["auto_map"].values())))
        raise UserError(
            f"{what}: model_type '{config.get('model_type')}' is computed by code that comes with it ({code}), which "
            "is not run; convert it to LlavaForConditionalGeneration"
        )
    if described := config.get("quantization_config"):
        raise UserError(
            f"{what}: its weights are quantised ({described.get('quant_method', 'in a way that is not named')}), so "
            "gradients of it would not be the model's; give the unquantised checkpoint"
        )


def _trained(
    folder: Path, what: str, language_model: str | None, conversation: str | None, name: str | None
) -> CheckpointSpec:
    if language_model is not None:
        raise UserError(f"{what} has a language model of its own; leave out {language_model}")
    spec = trained_spec(folder, what)
    template = TEMPLATES.get(conversation or spec.conversation).name
    last = last_stage(folder)
    parts = (str(last), str(last / "language_model"))
    spec = replace(spec, name=name or folder.name, weights=parts, conversation=template)
    return replace(spec, sha256=checkpoint_digest(spec))


def _usual_conversation(config: dict[str, Any], folder: Path, what: str) -> str:
    """Vicuna's template where the language model may be one: nothing in a checkpoint says how it was trained."""
    own = read_config(folder, f"language model {folder}") if "mm_vision_tower" in config else config
    described = own.get("text_config") or own
    kind = LANGUAGE_MODELS.get(str(described.get("model_type", "llama")), str(described.get("model_type", "llama")))
    names = " ".join(str(entry.get("_name_or_path", "")) for entry in (config, own, described))
    may_be = kind == "llama" and described.get("vocab_size", _LLAMAS) <= _LLAMAS and not _NO_VICUNA.search(names)
    if may_be and described.get("eos_token_id", _LLAMAS_END) == _LLAMAS_END and not _chats_otherwise(folder):
        return "vicuna_v1"
    known = f" ({' '.join(names.split())})" if names.strip() else ""
    raise UserError(
        f"{what}: say which conversation template it was trained with (--conversation {', '.join(TEMPLATES)}); its "
        f"language model is a {kind} of {described.get('vocab_size')} tokens{known}"
    )


def _chats_otherwise(folder: Path) -> bool:
    """Whether a tokenizer has a chat template, and it is not Vicuna's: that of Phi-3 as a Llama, of Zephyr, ...."""
    found = [file.read_text() for file in (folder / "chat_template.jinja",) if file.exists()]
    with contextlib.suppress(OSError, ValueError, AttributeError):  # reported where the tokenizer is read
        found.append(json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template"))
    return any(template and not _VICUNAS.search(str(template)) for template in found)
