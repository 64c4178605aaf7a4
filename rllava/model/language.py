"""Language models: any causal LM of transformers with its fast tokenizer, from a folder, the hub, a GGUF file."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rllava.errors import UserError
from rllava.model.causal_lm import check_language_model
from rllava.weights import check_weights, pin_weights

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files that make a tokenizer; one of them has to be there."""


@dataclass(frozen=True)
class LanguageModelSpec:
    """Which language model.

    Attributes:
        name: readable.
        weights: a folder in Hugging Face format, ``hub:ORG/NAME``, ``asset:NAME`` for one shipped with the package, or
            a GGUF file (see :mod:`rllava.weights`).
        sha256: of the weights; None: :func:`rllava.weights.pin_weights` fills it in before a sweep.
        origin: where the weights can be had.
    """

    name: str
    weights: str
    sha256: str | None = None
    origin: str = ""

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"language model '{self.name}'"


TINY_LLAMA = pin_weights(LanguageModelSpec("tiny-llama", "asset:tiny-llama"))
"""The embedded language model, made by ``sweeps/pretrain_language_model.py``."""


def load_language_model(spec: LanguageModelSpec, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Loads a causal language model and its tokenizer.

    Pickled weights are opened by ``torch.load(weights_only=True)``, as transformers does.

    Args:
        spec: which one.
        dtype: of its weights.

    Returns:
        The transformers model in evaluation mode, and its tokenizer.

    Raises:
        UserError: if there is no such model here, it has another hash, or it cannot be read.
    """
    path = check_weights(spec)
    assert path is not None
    try:
        if path.is_dir() and not any((path / name).exists() for name in TOKENIZERS):
            raise ValueError("it has no tokenizer")  # transformers would make an empty one
        if path.suffix == ".gguf":
            model, tokenizer = _from_gguf(path, dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(
            f"{spec.label}: cannot load {path} ({reason}); give the path of a folder with config.json, "
            "model.safetensors and tokenizer.json, or of a GGUF file (which needs pip install 'rllava[small]')"
        ) from error
    check_language_model(model.eval())
    return model, tokenizer


def _from_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
    # The reader marks its model as quantised, which then refuses to be trained in parts or saved; its weights are not.
    config = read.config
    with contextlib.suppress(AttributeError):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
