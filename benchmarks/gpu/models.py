"""LLaVAs with random weights, made where they stay, and random conversations for them.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.shapes import Shapes, Tower
from rllava.encoders.base import Encoder, EncoderSpec
from rllava.model.conversation import IGNORE, IMAGE_TOKEN, Tokens
from rllava.model.llava import Connector, Llava, build_projector
from rllava.torchvision_shim import declare_missing_operators

declare_missing_operators()  # before transformers is imported

from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM  # noqa: E402

WEIGHT_STD = 0.02


class VisionTower(Encoder):
    """CLIP's vision transformer up to the wanted layer, with random weights."""

    def __init__(self, spec: EncoderSpec, model: nn.Module) -> None:
        super().__init__(spec)
        self.model = model

    def features(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class.

        Returns:
            [B, P, D], without the class token.
        """
        tokens_BPD: Tensor = self.model(pixel_values=normalised_BCHW).last_hidden_state[:, 1:]
        return tokens_BPD


@contextmanager
def _created(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Parameters made here are of this precision and on this device from the start: 7B in float32 fill a host."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(default)


@torch.no_grad()
def _randomised(model: nn.Module) -> Any:
    """Random matrices; gains and biases as they are, so that activations and gradients keep a sane size."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, WEIGHT_STD)
    return model.requires_grad_(False).eval()


def build_language_model(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama with random weights, made where it stays."""
    config = LlamaConfig(
        hidden_size=shapes.width,
        intermediate_size=shapes.mlp,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        num_key_value_heads=shapes.heads,
        vocab_size=shapes.vocabulary,
        max_position_embeddings=4096,
        attn_implementation="sdpa",
    )
    with _created(device, dtype):
        return _randomised(LlamaForCausalLM(config))


def build_llava(shapes: Shapes, tower: Tower, language_model: Any, dtype: torch.dtype, device: torch.device) -> Llava:
    """A LLaVA around a language model: a tower and LLaVA-1.5's projector, with random weights.

    Args:
        language_model: see :func:`build_language_model`.

    Returns:
        The frozen model, without tokenizer.
    """
    config = CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=tower.mlp,
        num_hidden_layers=tower.layers_run,
        num_attention_heads=tower.heads,
        image_size=shapes.image_size,
        patch_size=shapes.patch,
        hidden_act=tower.activation,
        attn_implementation="sdpa",
    )
    spec = EncoderSpec(tower.label, "", None, shapes.image_size, shapes.visual_tokens, tower.width)
    with _created(device, dtype):
        model = _randomised(CLIPVisionModel(config))
        projector = _randomised(build_projector("mlp2x_gelu", tower.width, shapes.width))
    encoder = VisionTower(spec, model)
    return Llava([encoder], Connector([projector], language_model), tokenizer=None, conversation="vicuna_v1").eval()


def random_tokens(shapes: Shapes, count: int, prompt_tokens: int, answer_tokens: int) -> list[Tokens]:
    """Prompts and answers of random words: a common text, an image, a question, an answer.

    Args:
        prompt_tokens: text tokens around the image; the common text before it has two thirds, as in LLaVA-1.5.
    """
    generator = torch.Generator().manual_seed(0)

    def words(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, shapes.vocabulary, (length,), generator=generator).tolist())

    before = words(prompt_tokens * 2 // 3)
    conversations = []
    for _ in range(count):
        prompt = (*before, IMAGE_TOKEN, *words(prompt_tokens - len(before)))
        answer = words(answer_tokens)
        conversations.append(Tokens((*prompt, *answer), (*[IGNORE] * len(prompt), *answer)))
    return conversations
