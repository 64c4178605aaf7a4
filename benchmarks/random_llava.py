"""A LLaVA with random weights, of any size: for measurements of speed, where what it says does not matter.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from rllava.encoders.base import CLIP_MEAN, CLIP_STD, Encoder, EncoderSpec, build_encoder
from rllava.model.language import TINY_LLAMA, LanguageModelSpec
from rllava.model.llava import Connector, Llava, build_projector
from rllava.pinned import Pinned
from rllava.recipes import PRESETS
from rllava.specs import ModelSpec
from rllava.weights import weights_of, weights_path

TOWER_LAYERS = 12
"""Depth of the vision tower, ViT-B's."""

HEAD_WIDTH = 64
"""Of one attention head, in both transformers."""

LANGUAGE_STD = 0.06
"""Of the language model's initial weights: three times the usual, or its answers would hardly depend on the image."""

SHY = 0.1
"""Factor on the output rows of tokens that answers should not contain; see :func:`random_language_model`."""


@dataclass(frozen=True)
class Size:
    """Of a LLaVA with random weights. The default: about 100M parameters.

    Attributes:
        image_size: in pixels.
        patch: side of the patch that becomes a visual token, in pixels.
        tower_width: of the vision tower, a ViT of 12 layers.
        width: of the language model, shaped like a Llama.
    """

    image_size: int = 224
    patch: int = 16
    tower_width: int = 512
    width: int = 512
    layers: int = 9
    vocabulary: int = 32000


class RandomViT(Encoder):
    """CLIP's vision transformer with 12 layers; the class token is dropped, as LLaVA does.

    Args:
        spec: its image size, tokens and width.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        config = transformers.CLIPVisionConfig(
            hidden_size=spec.width,
            intermediate_size=4 * spec.width,
            num_hidden_layers=TOWER_LAYERS,
            num_attention_heads=spec.width // HEAD_WIDTH,
            image_size=spec.image_size,
            patch_size=spec.image_size // math.isqrt(spec.tokens),
            hidden_act="gelu",
        )
        self.tower = transformers.CLIPVisionModel(config)

    def features(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class.

        Returns:
            [B, P, D].
        """
        tokens_BPD: Tensor = self.tower(normalised_BCHW).last_hidden_state[:, 1:]
        return tokens_BPD


def build(spec: EncoderSpec) -> RandomViT:
    """Builder of the tower."""
    return RandomViT(spec)


def tower_spec(size: Size, seed: int = 0) -> EncoderSpec:
    """The tower as an encoder."""
    return EncoderSpec(
        name="random-vit",
        builder="benchmarks.random_llava:build",
        weights=None,
        image_size=size.image_size,
        tokens=(size.image_size // size.patch) ** 2,
        width=size.tower_width,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        training="none: random weights",
        seed=seed,
    )


def random_language_model(size: Size, tokenizer: Any) -> Any:
    """A causal language model shaped like a Llama, whose greedy answers are words that its tokenizer knows.

    The embedded tokenizer is smaller than the vocabulary. Output rows of all tokens but the tokenizer's words are made
    small, so that one of the words has the highest logit; the cost of a pass stays that of the whole vocabulary.
    """
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=math.ceil(size.width * 8 / 3 / 32) * 32,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // HEAD_WIDTH,
        initializer_range=LANGUAGE_STD,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    language_model = transformers.LlamaForCausalLM(config)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    shy = torch.full((size.vocabulary, 1), SHY)
    shy[[token for token, text in enumerate(texts) if text.startswith(" ") and text[1:].isalpha()]] = 1.0
    with torch.no_grad():
        language_model.lm_head.weight.mul_(shy.to(language_model.lm_head.weight))
    return language_model


def random_llava(size: Size, seed: int = 0) -> tuple[Llava, ModelSpec]:
    """A LLaVA with random weights, the same ones for the same size and seed.

    Returns:
        The frozen model in evaluation mode, float32, on the default device, and a spec that describes it.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(weights_path(weights_of(TINY_LLAMA) or "")))
    spec = tower_spec(size, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = build_projector("mlp2x_gelu", size.tower_width, size.width)
        connector = Connector([projector], random_language_model(size, tokenizer))
    llava = Llava([build_encoder(spec)], connector, tokenizer, "vicuna_v1_short").requires_grad_(False).eval()
    language_model = LanguageModelSpec("random-llama", Pinned(f"random weights, seed {seed}", f"seed {seed}"))
    return llava, replace(PRESETS.get("tiny").model, encoders=(spec,), language_model=language_model)


def parameters(module: nn.Module) -> int:
    """Counts parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
