"""Checkpoints of LLaVAs made elsewhere: what one is, from its configuration and the hashes of its files.

Formats:

- ``original``: a folder of LLaVA 1 or 1.5, or of Robust-LLaVA with one or two towers: language model and projectors;
  the frozen towers are looked for where encoders are (:mod:`rllava.weights`).
- ``projector``: what stage 1 leaves: ``mm_projector.bin`` beside ``config.json``; the language model is another folder.
- ``hugging_face``: a folder of transformers' ``LlavaForConditionalGeneration``; the tower is inside.
- ``trained``: what a sweep trained, a folder below ``models/`` of its storage (:mod:`rllava.model.trained_format`).

:func:`rllava.model.checkpoint_loading.load_checkpoint` loads them.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rllava.encoders import EncoderSpec
from rllava.errors import UserError
from rllava.fingerprint import PinnedBy
from rllava.model.conversation import TEMPLATES
from rllava.model.original_format import LANGUAGE_MODELS, Slot, check_supported, encoder_of, slots
from rllava.weights import TOKENIZER_SETTINGS, TOKENIZERS, digest, files_of, find_weights, pin_weights, weights_path

if TYPE_CHECKING:
    from rllava.model.describe import Description

Format = Literal["original", "projector", "hugging_face", "trained"]

_LLAMAS = 32064
"""Vocabulary of Llama 1 and 2 and of Vicuna, with the tokens that LLaVA's checkpoints add."""

_LLAMAS_END = 2
"""Their end token; Phi-3, which xtuner stores as a Llama of as many tokens, has another one."""

_NO_VICUNA = re.compile(r"llama-?[23]|chat", re.IGNORECASE)

_VICUNAS = re.compile(r"ASSISTANT|\.upper\(\)|\| *upper")
"""In chat templates that write ``USER: … ASSISTANT: …``."""

PROJECTORS = "projectors.safetensors"
"""What a training stage leaves of the projectors."""

HUGGING_FACE_PROJECTOR = "multi_modal_projector"

_CROPS = "it looks at several crops of an image (anyres)"
_NOT_SUPPORTED = {
    "llava_next": _CROPS,
    "llava_next_video": _CROPS,
    "llava_onevision": _CROPS,
    "vipllava": "its projector takes the tokens of five layers at once, and a norm comes before it",
    "video_llava": "it has one tower for images and another for videos",
    "instructblip": "a Q-Former stands between its tower and its language model",
    "instructblipvideo": "a Q-Former stands between its tower and its language model",
    "blip-2": "a Q-Former stands between its tower and its language model",
}
"""Why models that are often taken for LLaVAs cannot be read, by ``model_type``."""


@dataclass(frozen=True)
class CheckpointSpec:
    """A trained LLaVA that was made elsewhere.

    Attributes:
        name: readable.
        format: see the module.
        weights: where it is: a folder or ``hub:ORG/NAME``; after it, where the language model is a folder of its
            own, that folder.
        sha256: of all files that are read: configuration, weights, tokenizer; checked whenever they are.
        encoders: that it was trained with.
        projectors: name of each encoder's projector in the weights.
        projector: kind of projector.
        conversation: template for questions.
    """

    name: str
    format: Format
    weights: Annotated[tuple[str, ...], PinnedBy("sha256")]
    sha256: str
    encoders: tuple[EncoderSpec, ...]
    projectors: tuple[str, ...]
    projector: str
    conversation: str

    def versions(self) -> Mapping[str, int]:
        """Of the conversation template."""
        return {"conversation": TEMPLATES.get(self.conversation).version}

    def describe(
        self, encoders: Sequence[EncoderSpec] | None = None, text_tokens: int = 64, answer_tokens: int = 8
    ) -> "Description":
        """Parameters, visual tokens, bytes and floating-point operations, without weights.

        Args:
            encoders: to use; None: those it was trained with.
            text_tokens: of prompt and answer, in the passes that are counted.
            answer_tokens: labelled ones among them.

        Returns:
            What it costs; printed as a table.

        Raises:
            UserError: if its files do not fit each other or the encoders, or cannot be read.
        """
        from rllava.model.checkpoint_loading import bare_connector  # imports transformers' models
        from rllava.model.describe import counted

        used = self.encoders if encoders is None else encoders
        connector, _, _ = bare_connector(self, used)
        return counted(used, connector.to("meta"), text_tokens, answer_tokens)


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

    Returns:
        The spec.

    Raises:
        UserError: if something is missing, unknown or not supported; the message says what and what to do.
    """
    weights, folder = _located(source, "checkpoint")
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
        spec = _hugging_face(config, folder, what)
    else:
        spec = _original(config, folder, what, vision_tower)
    if vision_tower is not None and spec.format != "original":
        raise UserError(f"{what} has one vision tower to be read with; leave out --vision-tower {vision_tower}")
    parts = [weights]
    if spec.format == "projector":
        if language_model is None:
            before = config.get("_name_or_path")
            hint = f" (it was trained with {before})" if before else ""
            raise UserError(f"{what} holds projectors alone; give the folder of its language model{hint}")
        parts.append(_located(language_model, "language model")[0])
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
    from rllava.model.trained_format import trained_spec  # imports all specs

    if language_model is not None:
        raise UserError(f"{what} has a language model of its own; leave out {language_model}")
    spec = trained_spec(folder, what)
    template = TEMPLATES.get(conversation or spec.conversation).name
    parts = (str(folder / "stage2"), str(folder / "stage2/language_model"))
    spec = replace(spec, name=name or folder.name, weights=parts, conversation=template)
    return replace(spec, sha256=checkpoint_digest(spec))


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """The configuration of a folder.

    Args:
        folder: of a checkpoint.
        what: for messages.

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
        weights: see :class:`CheckpointSpec`.
        what: for messages.

    Returns:
        Their folders.

    Raises:
        UserError: if one is not here.
    """
    return [_located(part, what)[1] for part in weights]


def _located(source: str, what: str) -> tuple[str, Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path.resolve()), path.resolve()
    hub = source if source.startswith("hub:") else f"hub:{source}"
    if path.is_absolute() or source.startswith(".") or hub.count("/") != 1:
        raise UserError(f"{what} {source}: there is no such folder")
    found = find_weights(hub)
    if found is None:
        raise UserError(
            f"{what} {source}: there is no such folder, and the hub cannot be reached or has no such model; copy its "
            f"files (config.json, weights, tokenizer) to {weights_path(hub)}"
        )
    return hub, found


def read_files(spec: CheckpointSpec) -> list[Path]:
    """Every file that decides what a checkpoint computes, its encoders' excluded.

    Args:
        spec: of the checkpoint.

    Returns:
        Existing files.

    Raises:
        UserError: if weights or tokenizer are missing.
    """
    what = f"checkpoint '{spec.name}'"
    folders = folders_of(spec.weights, what)
    tokenizer = [folders[-1] / file for file in TOKENIZERS if (folders[-1] / file).exists()]
    if not tokenizer:
        raise UserError(
            f"{what}: {folders[-1]} has no tokenizer; copy tokenizer.json, or tokenizer.model and "
            "tokenizer_config.json, from the language model it was made of"
        )
    settings = sorted(file for pattern in TOKENIZER_SETTINGS for file in folders[-1].glob(pattern))
    configs = [folder / "config.json" for folder in (folders[-1:] if spec.format == "trained" else folders)]
    return [*configs, *settings, *tokenizer, *weights_files(spec)]


def weights_files(spec: CheckpointSpec) -> list[Path]:
    """The files with the weights, projectors' first where they have their own.

    Args:
        spec: of the checkpoint.

    Returns:
        Their paths.
    """
    folders = folders_of(spec.weights, f"checkpoint '{spec.name}'")
    own = []
    if spec.format == "projector":
        own = [folders[0] / f"{projector}.bin" for projector in spec.projectors]
    elif spec.format == "trained":
        own = [folders[0] / PROJECTORS]
    return [*own, *files_of(folders[-1])]


def checkpoint_digest(spec: CheckpointSpec) -> str:
    """Hash of the names and contents of :func:`read_files`.

    Args:
        spec: its own ``sha256`` is not looked at.

    Returns:
        Hexadecimal sha256.
    """
    return hashlib.sha256("\n".join(f"{file.name} {digest(file)}" for file in read_files(spec)).encode()).hexdigest()


def _original(config: dict[str, Any], folder: Path, what: str, vision_tower: str | None) -> CheckpointSpec:
    check_supported(config, what)
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{what} holds LoRA weights; merge them first (LLaVA scripts/merge_lora_weights.py)")
    used = slots(config, what)
    if config.get("image_aspect_ratio") != "pad":
        logging.getLogger(__name__).warning(
            "%s was trained with images cropped to a square (image_aspect_ratio is not pad); here they are padded", what
        )
    own = [folder / f"{slot.projector}.bin" for slot in used]
    alone = any(file.exists() for file in own) and not any(folder.glob("*.safetensors")) and not any(
        file not in own and file.name.startswith("pytorch_model") for file in folder.glob("*.bin")
    )  # fmt: skip
    if alone and (missing := [file.name for file in own if not file.exists()]):
        raise UserError(f"{what}: {', '.join(missing)} is missing; the flags of config.json ask for it")
    encoders = [encoder_of(slot, config, what) for slot in used]
    if not alone:
        encoders = _with_towers(used, encoders, config, folder, what, vision_tower)
    return CheckpointSpec(
        name="",
        format="projector" if alone else "original",
        weights=(),
        sha256="",
        encoders=tuple(encoders),
        projectors=tuple(slot.projector for slot in used),
        projector=config.get("mm_projector_type", "linear"),
        conversation="",
    )


def _with_towers(
    used: Sequence[Slot], encoders: Sequence[EncoderSpec], config: dict[str, Any], folder: Path, what: str,
    choice: str | None,
) -> list[EncoderSpec]:  # fmt: skip
    """The encoders of a checkpoint, its CLIP being the one within it where that is meant."""
    from rllava.model.inner_tower import chosen_tower  # imports transformers' towers

    trained = bool(config.get("unfreeze_mm_vision_tower"))
    return [
        encoder if slot.encoder else chosen_tower(encoder, folder, what, choice, trained)
        for slot, encoder in zip(used, encoders, strict=True)
    ]


def _hugging_face(config: dict[str, Any], folder: Path, what: str) -> CheckpointSpec:
    from rllava.model.inner_tower import inner_tower_spec  # imports transformers' towers

    if config.get("model_type") != "llava":
        reason = _NOT_SUPPORTED.get(str(config.get("model_type")))
        raise UserError(
            f"{what}: unknown model_type '{config.get('model_type')}'{f' ({reason})' if reason else ''}; known: llava "
            f"(LlavaForConditionalGeneration), and folders in LLaVA's own format: {', '.join(sorted(LANGUAGE_MODELS))}"
        )
    act, bias = config.get("projector_hidden_act", "gelu"), config.get("multimodal_projector_bias", True)
    if act != "gelu" or not bias:
        raise UserError(f"{what}: a projector with {act} and bias={bias} is not supported; gelu with bias is")
    return CheckpointSpec(
        name="",
        format="hugging_face",
        weights=(),
        sha256="",
        encoders=(inner_tower_spec(config, folder, what),),
        projectors=(HUGGING_FACE_PROJECTOR,),
        projector="mlp2x_gelu",
        conversation="",
    )


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


def pin_checkpoint(spec: CheckpointSpec) -> CheckpointSpec:
    """A spec that means one set of weights, its encoders' included.

    Args:
        spec: of a checkpoint.

    Returns:
        The spec with its encoders' hashes.

    Raises:
        UserError: if an encoder's weights are missing.
    """
    return replace(spec, encoders=tuple(pin_weights(encoder) for encoder in spec.encoders))
