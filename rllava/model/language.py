"""Language models: any causal LM of transformers with its fast tokenizer, from a folder, the hub, or the package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rllava.encoders.weights import weights_path
from rllava.errors import UserError
from rllava.model.causal_lm import check_language_model


@dataclass(frozen=True)
class LanguageModelSpec:
    """Which language model.

    Attributes:
        name: readable.
        source: a folder in Hugging Face format, a hub name, or ``asset:NAME`` for one shipped with the package.
        revision: of a hub model (a commit, so that the fingerprint means one set of weights).
    """

    name: str
    source: str
    revision: str | None = None


TINY_LLAMA = LanguageModelSpec("tiny-llama", "asset:tiny-llama", revision="2")
"""The embedded language model, made by ``sweeps/pretrain_language_model.py``. The revision names its weights."""


def load_language_model(spec: LanguageModelSpec, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Loads a causal language model and its tokenizer.

    Weights are read from safetensors only; no pickle is opened.

    Args:
        spec: which one.
        dtype: of its weights.

    Returns:
        The transformers model in evaluation mode, and its tokenizer.

    Raises:
        UserError: if there is no such model here, or it cannot be read.
    """
    shipped = spec.source.startswith("asset:")
    source = str(weights_path(spec.source)) if shipped or Path(spec.source).is_dir() else spec.source
    revision = None if shipped else spec.revision
    try:
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(
            f"language model '{spec.name}': cannot load {spec.source} ({reason}); give the path of a folder with "
            "config.json, model.safetensors and tokenizer.json"
        ) from error
    check_language_model(model.eval())
    return model, tokenizer
