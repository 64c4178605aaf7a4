"""Shapes of language models: configurations from their files or, where those are not here, as published.

Nothing is fetched, and no file of weights is opened.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from rllava.model.language import LanguageModelSpec
from rllava.weights import HUB, weights_of, weights_path


@dataclass(frozen=True)
class Published:
    """A configuration that stands in for a file that is not here.

    Attributes:
        arguments: of ``LlamaConfig``.
        source: where it was read.
    """

    arguments: Mapping[str, Any]
    source: str


PUBLISHED = {
    "vicuna-7b-v1.5": Published(
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
        },
        "config.json of the hub's lmsys/vicuna-7b-v1.5 (Llama 2 7B)",
    ),
    "smollm2-135m-instruct": Published(
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
        "config.json of the hub's HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


@dataclass(frozen=True)
class Shape:
    """A language model's configuration.

    Attributes:
        source: where it comes from, for people.
    """

    config: Any
    source: str


def local_path(spec: LanguageModelSpec) -> Path | None:
    """Where a language model's files lie on this machine; nothing is fetched.

    Returns:
        A folder or GGUF file; None if they are not here.
    """
    weights = weights_of(spec)
    if weights is None:
        return None
    path = weights_path(weights)
    if path.exists():
        # What a sweep has trained holds its language model in a folder of the last stage that has one.
        inside = sorted(path.glob("stage*/language_model")) or sorted(path.glob("language_model"))
        return inside[-1] if inside and not (path / "config.json").exists() else path
    if weights.startswith(HUB):
        cached = huggingface_hub.try_to_load_from_cache(weights.removeprefix(HUB), "config.json")
        return Path(cached).parent if isinstance(cached, str) else None
    return None


@functools.cache
def shape_of(spec: LanguageModelSpec) -> Shape | None:
    """The configuration of a language model.

    Returns:
        From its files if they are here, else the published one; None if neither is known.
    """
    path = local_path(spec)
    if path is not None and path.suffix == ".gguf":
        return Shape(AutoConfig.from_pretrained(path.parent, gguf_file=path.name), str(path.name))
    if path is not None and (path / "config.json").exists():
        return Shape(_read_config(path / "config.json"), f"config.json of {path.name}")
    published = PUBLISHED.get(spec.name)
    return None if published is None else llama(published.arguments, published.source)


def llama(arguments: Mapping[str, Any], source: str) -> Shape:
    """A Llama of some size."""
    return Shape(LlamaConfig(**arguments), source)


def _read_config(file: Path) -> Any:
    """The language model's part of a config.json, be it of a LLaVA in one format or another."""
    described: dict[str, Any] = json.loads(file.read_text())
    kind = str(described.get("model_type", "llama"))
    if "text_config" in described:
        described = described["text_config"]
        kind = str(described.get("model_type", "llama"))
    elif kind.startswith("llava"):  # the original code's: a Llama's fields, and its own beside
        kind = "llama"
    return AutoConfig.for_model(kind, **{key: value for key, value in described.items() if key != "model_type"})


def bare_language_model(config: Any, layers: int | None = None) -> Any:
    """A language model on the meta device.

    Args:
        layers: how many it has; None: the configuration's.
    """
    own = type(config).from_dict(config.to_dict())
    if layers is not None:
        own.num_hidden_layers = layers
        if getattr(own, "layer_types", None) is not None:
            own.layer_types = own.layer_types[:layers]
    own._attn_implementation = "sdpa"
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(own)
    return model.requires_grad_(False).eval()
