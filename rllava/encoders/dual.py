"""Dual encoders: an image tower and a small text tower with a joint space, in which encoders are trained and judged.

Shapes: B batch, C channel, H/W image, K classes (captions), E joint embedding, P visual tokens, D width, V words.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rllava.attacks import apgd
from rllava.data.pairs import Pairs
from rllava.encoders.base import Encoder
from rllava.encoders.tiny import EMBEDDING, TinyConvEncoder, tiny_spec

TEMPERATURE = "text.log_scale"
"""What a file of weights calls it."""


class TextTower(nn.Module):
    """Embeds a caption as the mean of its words' embeddings through an MLP.

    Args:
        vocabulary: known words; others are ignored.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.index = {word: row for row, word in enumerate(vocabulary)}
        self.words = nn.Embedding(len(vocabulary), EMBEDDING)
        self.mlp = nn.Sequential(nn.Linear(EMBEDDING, 2 * EMBEDDING), nn.GELU(), nn.Linear(2 * EMBEDDING, EMBEDDING))

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Embeds captions.

        Returns:
            Unit vectors, [K, E].
        """
        counts_KV = self.words.weight.new_zeros(len(captions), len(self.index))
        for row, caption in enumerate(captions):
            for word in caption.lower().replace(".", "").split():
                if word in self.index:
                    counts_KV[row, self.index[word]] += 1
        mean_KE = counts_KV @ self.words.weight / counts_KV.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(self.mlp(mean_KE), dim=-1)


class DualEncoder(nn.Module):
    """Image and text towers with a joint space.

    Args:
        vocabulary: words of the text side.
    """

    def __init__(self, encoder: Encoder, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.spec.width, EMBEDDING)
        self.text = TextTower(vocabulary)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def embed(self, pixels_BCHW: Tensor) -> Tensor:
        """Image embedding before normalisation (the one FARE keeps in place).

        Args:
            pixels_BCHW: RGB in [0, 1].

        Returns:
            [B, E].
        """
        embedding_BE: Tensor = self.head(self.encoder(pixels_BCHW).mean(1))
        return embedding_BE

    def similarity(self, image_BE: Tensor, text_KE: Tensor) -> Tensor:
        """Scaled cosine similarities [B, K] of image embeddings and unit text embeddings."""
        return self.log_scale.exp().clamp(max=100) * F.normalize(image_BE, dim=-1) @ text_KE.T

    def logits(self, pixels_BCHW: Tensor, text_KE: Tensor) -> Tensor:
        """:meth:`similarity` of images in [0, 1] to unit text embeddings, [B, K]."""
        return self.similarity(self.embed(pixels_BCHW), text_KE)


def vocabulary_of(pairs: Pairs) -> tuple[str, ...]:
    """Sorted words of all captions."""
    texts = (caption for wordings in pairs.captions for caption in wordings)
    return tuple(sorted({word for text in texts for word in text.lower().replace(".", "").split()}))


def untrained(name: str, seed: int, pairs: Pairs) -> DualEncoder:
    """The embedded architecture with random weights, and words for some captions."""
    torch.manual_seed(seed)
    return DualEncoder(TinyConvEncoder(tiny_spec(name)), vocabulary_of(pairs))


def save_dual(dual: DualEncoder, path: Path) -> None:
    """Writes safetensors: the encoder's own keys without prefix, the heads under ``head.`` and ``text.``."""
    state = {key.removeprefix("encoder."): value.contiguous() for key, value in dual.state_dict().items()}
    state[TEMPERATURE] = state.pop("log_scale")
    save_file(state, path)
    os.chmod(path, 0o644)


def load_dual(path: Path, name: str, pairs: Pairs) -> DualEncoder:
    """Reads what :func:`save_dual` wrote, in evaluation mode."""
    state = load_file(path)
    state["log_scale"] = state.pop(TEMPERATURE)
    heads = ("head.", "text.", "log_scale")
    dual = untrained(name, 0, pairs)
    dual.load_state_dict({key if key.startswith(heads) else f"encoder.{key}": value for key, value in state.items()})
    return dual.eval()


def zero_shot_accuracy(dual: DualEncoder, pairs: Pairs, epsilon: float, steps: int = 10) -> float:
    """Zero-shot accuracy, clean or under APGD on the label loss.

    Args:
        epsilon: budget in 1/255; 0: clean.

    Returns:
        Share of right answers, in [0, 1].
    """
    dual = dual.eval().requires_grad_(False)
    text_KE = dual.text([wordings[0] for wordings in pairs.captions])
    right = 0
    for start in range(0, len(pairs.class_N), 250):
        pixels_BCHW = torch.from_numpy(pairs.images_NHWC[start : start + 250]).permute(0, 3, 1, 2).float() / 255.0
        class_B = torch.from_numpy(pairs.class_N[start : start + 250]).long()

        def label_loss(pixels: Tensor, index_B: Tensor, class_B: Tensor = class_B) -> Tensor:
            return F.cross_entropy(dual.logits(pixels, text_KE), class_B[index_B], reduction="none")

        if epsilon > 0:
            pixels_BCHW = apgd(label_loss, pixels_BCHW, epsilon=epsilon, steps=steps).images_BCHW
        with torch.no_grad():
            right += int((dual.logits(pixels_BCHW, text_KE).argmax(1) == class_B).sum())
    return right / len(pairs.class_N)
