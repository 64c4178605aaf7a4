"""Towers and language models by their sizes: what is measured.

Shapes: P visual tokens, D width, V vocabulary.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tower:
    """A vision transformer with a class token, which the projector does not see.

    Attributes:
        layer: whose output is taken, -1 the last one; layers behind it are not built.
    """

    label: str
    width: int
    layers: int
    heads: int
    mlp: int
    layer: int = -1
    activation: str = "gelu"

    @property
    def layers_run(self) -> int:
        """Layers up to the one whose output is taken."""
        return self.layers + 1 + self.layer


@dataclass(frozen=True)
class Shapes:
    """Of a LLaVA, and of the plain matrix products that are timed beside it.

    Attributes:
        image_size: side, in pixels.
        patch: side, in pixels.
        width: of the language model (D).
        squares: sides of square matrix products.
        matrix_flops: per timing of a product, which is repeated until it has done so many.
    """

    towers: dict[str, Tower]
    image_size: int
    patch: int
    width: int
    mlp: int
    layers: int
    heads: int
    vocabulary: int
    squares: tuple[int, ...]
    matrix_flops: float

    @property
    def visual_tokens(self) -> int:
        """Of an image (P)."""
        return (self.image_size // self.patch) ** 2


SHAPES = {
    "7b": Shapes(
        # Published shapes: openai/clip-vit-large-patch14-336; AdvXL ViT-H/14 and ViT-g/14 at 336 pixels.
        {
            "clip-l": Tower("CLIP ViT-L/14-336", 1024, 24, 16, 4096, layer=-2, activation="quick_gelu"),
            "advxl-h": Tower("AdvXL ViT-H/14-336", 1280, 32, 16, 5120),
            "advxl-g": Tower("AdvXL ViT-g/14-336", 1408, 40, 16, 6144),
        },
        image_size=336, patch=14, width=4096, mlp=11008, layers=32, heads=32, vocabulary=32000,
        squares=(2048, 4096, 8192, 16384), matrix_flops=3e13,
    ),
    "tiny": Shapes(
        {
            "clip-l": Tower("tiny CLIP", 64, 3, 4, 256, layer=-2, activation="quick_gelu"),
            "advxl-h": Tower("tiny AdvXL H", 80, 2, 4, 320),
            "advxl-g": Tower("tiny AdvXL g", 88, 2, 4, 384),
        },
        image_size=56, patch=14, width=64, mlp=172, layers=2, heads=4, vocabulary=320,
        squares=(64, 128), matrix_flops=2e7,
    ),
}  # fmt: skip
