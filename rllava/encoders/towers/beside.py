"""Registered encoders whose architecture is in the ``open_clip_config.json`` beside their weights: delta-CLIP."""

import json
import logging
from dataclasses import replace
from typing import Any

from rllava.encoders.base import EncoderSpec, measured
from rllava.encoders.towers.open_clip import flat
from rllava.encoders.towers.open_clip_config import read_open_clip_config
from rllava.errors import UserError
from rllava.hub import OPEN_CLIP_CONFIG
from rllava.pinned import Pinned
from rllava.weights import find_weights


def completed(spec: EncoderSpec) -> EncoderSpec:
    """A registered encoder with the architecture that its configuration gives.

    Statistics stay as registered: they are those of the authors' code, and open_clip writes CLIP's where none were set.

    Args:
        spec: its weights are a file ``hub:ORG/NAME/FILE``.

    Returns:
        The spec; unchanged if the configuration is not here, so that what is missing is said with all other weights.

    Raises:
        UserError: if the configuration is damaged, not understood, or of an encoder of another size.
    """
    assert isinstance(spec.weights, Pinned)
    file = find_weights(f"{spec.weights.path.rpartition('/')[0]}/{OPEN_CLIP_CONFIG}")
    if file is None:
        return spec
    config = read_open_clip_config(file, spec.label)
    if config.image_size != spec.image_size or not config.is_vit:
        raise UserError(
            f"{spec.label}: {file} describes a tower for images of {config.image_size} pixels, not the vision "
            f"transformer for {spec.image_size} that the name stands for; copy it and the weights from {spec.origin}"
        )
    stated: dict[str, Any] = json.loads(file.read_text()).get("preprocess_cfg") or {}
    for name, registered in (("mean", spec.mean), ("std", spec.std)):
        if stated.get(name) and tuple(stated[name]) != registered:
            logging.getLogger(__name__).warning(
                "%s: %s says %s %s, the authors' code %s, which is taken; [normalization=...] takes another",
                spec.label, file, name, tuple(stated[name]), registered,
            )  # fmt: skip
    described = {key: value for key, value in config.vision.items() if key != "image_size" and value is not None}
    arguments = flat({**described, "embed_dim": config.embed_dim})
    found = measured(replace(spec, arguments=arguments, activation="quick_gelu" if config.quick_gelu else ""))
    if (found.tokens, found.width) != (spec.tokens, spec.width):
        raise UserError(
            f"{spec.label}: {file} describes a tower of {found.tokens} tokens of width {found.width}, not of "
            f"{spec.tokens} of {spec.width}; copy it and the weights from {spec.origin}"
        )
    return found
