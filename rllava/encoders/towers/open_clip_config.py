"""What an ``open_clip_config.json`` says, which open_clip puts beside the weights of its repositories on the hub.

Only the image tower is built from it: what a text tower needs (a tokenizer's files, keys that this release of open_clip
does not know) does not matter.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from open_clip.model import CLIPVisionCfg, _build_vision_tower

from rllava.encoders.base import CLIP_MEAN, CLIP_STD
from rllava.errors import UserError
from rllava.hub import OPEN_CLIP_CONFIG

_KNOWN = frozenset(field.name for field in fields(CLIPVisionCfg))


@dataclass(frozen=True)
class OpenClipConfig:
    """An image tower as open_clip describes it, and the statistics of its training.

    Attributes:
        embed_dim: of the space shared with the text.
        vision: entries of ``vision_cfg``.
        quick_gelu: whether its MLPs have OpenAI's approximation of GELU. Towers of timm have what timm gives them.
        mean: per channel, of pixels in [0, 1].
    """

    embed_dim: int
    vision: Mapping[str, Any]
    quick_gelu: bool
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def of_timm(self) -> bool:
        """Whether the tower is one of timm's, within an adapter."""
        return bool(self.vision.get("timm_model_name"))

    @property
    def is_vit(self) -> bool:
        """Whether the tower is open_clip's own vision transformer."""
        return not self.of_timm and isinstance(self.vision.get("layers", CLIPVisionCfg.layers), int)

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels.

        Raises:
            UserError: if the input is none.
        """
        size = self.vision.get("image_size", CLIPVisionCfg.image_size)
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise UserError(f"images of {' x '.join(map(str, size))} pixels are not square; only square ones are read")
        return int(sides.pop())


def read_open_clip_config(path: Path, what: str) -> OpenClipConfig:
    """Reads a configuration, strictly as far as the image tower goes.

    Args:
        path: of the file, or of the folder that holds it.
        what: whose, for messages: ``"encoder 'fare4'"``.

    Raises:
        UserError: if the file is missing, damaged, or says something about the image tower that is not understood.
    """
    file = path / OPEN_CLIP_CONFIG if path.is_dir() else path
    try:
        described = json.loads(file.read_text())
        model = described.get("model_cfg", described)  # older repositories have its entries at the top
        return described_config(model, described.get("preprocess_cfg") or {})
    except UserError as error:
        raise UserError(f"{what}: {file}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        raise UserError(f"{what}: {file} describes no model of open_clip ({reason}); copy the whole folder") from error


def described_config(model: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> OpenClipConfig:
    """The image tower's part of a configuration.

    Args:
        model: ``model_cfg``, or one of open_clip's own configurations.
        preprocessing: ``preprocess_cfg``.

    Raises:
        UserError: if ``vision_cfg`` has a key that open_clip does not know, or ``quick_gelu`` is no truth value.
    """
    vision = dict(model["vision_cfg"])
    if not_known := sorted(vision.keys() - _KNOWN):
        raise UserError(f"vision_cfg has {', '.join(not_known)}, which this release of open_clip does not know")
    return OpenClipConfig(
        embed_dim=model["embed_dim"],
        vision=vision,
        quick_gelu=_flag(model.get("quick_gelu", False)),
        mean=tuple(preprocessing.get("mean") or CLIP_MEAN),
        std=tuple(preprocessing.get("std") or CLIP_STD),
    )


def _flag(value: object) -> bool:
    """FARE's and TeCoA's repositories say ``"TRUE"``, in quotes."""
    named = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in named:
        return named[value.lower()]
    if isinstance(value, bool):
        return value
    raise UserError(f"quick_gelu is {value!r}; write true or false")


def visual_tower(config: OpenClipConfig, image_size: int, quick_gelu: bool) -> Any:
    """Builds an image tower.

    Args:
        image_size: side of its input, in pixels.
        quick_gelu: whether its MLPs have OpenAI's approximation of GELU; a tower of timm does not look at it.

    Returns:
        The module with initial weights; nothing is fetched.
    """
    # timm would fetch the weights that a training began with.
    vision = {**config.vision, "image_size": image_size, "timm_model_pretrained": False}
    built = _build_vision_tower(config.embed_dim, CLIPVisionCfg(**vision), quick_gelu=quick_gelu)
    if config.of_timm and built.image_size != (image_size, image_size):
        built.set_input_size(image_size)
    return built
