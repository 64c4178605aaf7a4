"""Names of encoders: registered ones, any model of timm or open_clip, and checkpoints.

    NAME                             registered (see ``encoder_names``)
    timm:MODEL[.TAG]                 any model of timm, with the weights timm has for it
    open_clip:MODEL/PRETRAINED       any model of open_clip
    PATH                             a folder in the layout of Hugging Face or of open_clip
    hub:ORG/NAME                     the same, on the hub
    open_clip:hf-hub:ORG/NAME        open_clip's layout on the hub, as open_clip itself writes it
    PATH[like=NAME]                  a weights file in the format of another encoder

Any of them takes variants in brackets, ``NAME[key=value,key=value]``:

    activation=gelu                  of the MLPs: gelu, quick_gelu, relu
    normalization=as_released        trained (its own), as_released (CLIP's, as in the published code), clip, imagenet,
                                     inception
    layer=-2                         block whose output is taken, counted from the end
    image_size=336                   side of the input, in pixels
    resized=true                     interpolate position embeddings stored for another size
    ema=false                        of a training checkpoint, take the weights that are not averaged
"""

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

from rllava.encoders.base import Activation, EncoderSpec, measured
from rllava.encoders.paper import STATISTICS
from rllava.errors import UserError
from rllava.hub import OPEN_CLIP_CONFIG
from rllava.pinned import Pinned
from rllava.registry import unknown
from rllava.weights import HUB, find_weights, holds_weights, weights_path

TIMM, OPEN_CLIP = "timm:", "open_clip:"

_VARIANT = re.compile(r"(?P<name>[^\[\]]+)(?:\[(?P<options>[^\[\]]*)\])?")
_OF_FAMILIES = frozenset({"activation", "layer", "resized", "ema"})
"""Variants that only some families honour: those whose module names them in ``VARIANTS``."""

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def parse_encoder(text: str, registered: Callable[[str], EncoderSpec]) -> EncoderSpec:
    """Reads the name of an encoder.

    Returns:
        Its spec. Weights are not looked at, but for the configuration of a folder.

    Raises:
        UserError: if the name or a variant is not understood; with the near matches, or what there is.
    """
    matched = _VARIANT.fullmatch(text)
    if matched is None:
        raise UserError(f"encoder '{text}': write NAME or NAME[key=value,key=value]")
    name = matched["name"]
    options = _options(text, matched["options"])
    like = options.pop("like", None)
    if name.startswith(TIMM):
        from rllava.encoders.towers.timm import timm_spec  # imports timm

        spec = timm_spec(name.removeprefix(TIMM))
    elif name.startswith(OPEN_CLIP):
        from rllava.encoders.towers.open_clip import open_clip_spec  # imports open_clip

        spec = open_clip_spec(name.removeprefix(OPEN_CLIP))
    elif "/" in name or name.endswith(_SUFFIXES) or Path(name).is_dir():
        spec = _of_path(name, None if like is None else parse_encoder(like, registered))
        like = None
    else:
        spec = registered(name)
        if spec.architecture == OPEN_CLIP_CONFIG and not spec.arguments:
            from rllava.encoders.towers.beside import completed  # imports open_clip

            spec = completed(spec)
    if like is not None:
        raise UserError(f"encoder '{text}': like= says what a weights file is like; '{name}' is not the path of one")
    return _variant(spec, text, options)


def _options(text: str, given: str | None) -> dict[str, str]:
    options = {}
    for option in (given or "").split(",") if given else []:
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or not value:
            raise UserError(f"encoder '{text}': '{option}' is no variant; write key=value")
        if key not in ("like", *_VARIANTS):
            raise UserError(f"encoder '{text}': {unknown('variant', key, ('like', *_VARIANTS))}")
        options[key] = value
    return options


def _of_path(name: str, like: EncoderSpec | None) -> EncoderSpec:
    hub = name.startswith(HUB)
    path = find_weights(name) if hub else Path(name).expanduser().resolve()
    if hub and path is None:
        raise UserError(
            f"encoder '{name}': the hub cannot be reached or has no such model; copy its files (config.json or "
            f"open_clip_config.json, weights, preprocessor_config.json) to {weights_path(name)}"
        )
    if path is None or not path.exists():
        may_be_the_hubs = name.count("/") == 1 and not name.startswith((".", "/", "~"))
        hint = f"; for a model of the hub write {HUB}{name}" if may_be_the_hubs else ""
        raise UserError(f"encoder '{name}': there is no such file or folder{hint}")
    weights = name if hub else str(path)
    if path.is_dir():
        # A folder of the hub's cache is called by a commit's number.
        return _of_folder(path, name.rpartition("/")[2] if hub else path.name, weights)
    if like is None:
        raise UserError(
            f"encoder '{name}': say what the file is like, as weights do not tell activation and normalisation: "
            f"{name}[like=fare4] for an open_clip image tower, {name}[like=advxl-h], {name}[like=timm:MODEL], …"
        )
    # The stem, not the path: the same weights mean the same results wherever they lie.
    own, training = Path(name).stem, f"the weights in {Path(name).name}"
    return replace(like, name=own, weights=Pinned(weights), training=training, origin="", parameters=None)


def _of_folder(folder: Path, name: str, weights: str) -> EncoderSpec:
    """A tower in the layout of Hugging Face, or, where the folder is none of transformers' models, of open_clip."""
    if (folder / OPEN_CLIP_CONFIG).exists() and not _of_transformers(folder):
        from rllava.encoders.towers.open_clip import configured_spec  # imports open_clip

        return configured_spec(folder, name, weights)
    from rllava.encoders.towers.hugging_face import hugging_face_spec  # imports transformers

    return replace(hugging_face_spec(folder, name), weights=Pinned(weights))


def _of_transformers(folder: Path) -> bool:
    """Whether a folder holds weights of transformers and says of which model; timm's have no ``model_type``."""
    try:
        described = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return "model_type" in described and holds_weights(folder)


def honoured(spec: EncoderSpec) -> frozenset[str]:
    """Variants that the family of an encoder knows, beside those that every encoder has.

    Returns:
        ``VARIANTS`` of the builder's module; none where it has none.
    """
    module = importlib.import_module(spec.builder.partition(":")[0])
    found: frozenset[str] = getattr(module, "VARIANTS", frozenset())
    return found


def _variant(spec: EncoderSpec, text: str, options: dict[str, str]) -> EncoderSpec:
    if not options:
        return spec
    refused = sorted(options.keys() & _OF_FAMILIES - honoured(spec))
    if refused:
        raise UserError(f"encoder '{text}': {' and '.join(refused)} would change nothing: not a variant of its family")
    changed = spec
    for key, value in options.items():
        try:
            changed = _VARIANTS[key](changed, value)
        except ValueError as error:
            raise UserError(f"encoder '{text}': {key}={value}: expected {error}") from error
    described = ",".join(f"{key}={value}" for key, value in sorted(options.items()))
    changed = replace(changed, name=f"{spec.name}[{described}]")
    built_alike = all(getattr(changed, key) == getattr(spec, key) for key in ("image_size", "layer", "activation"))
    return changed if built_alike else measured(changed)


def _one_of(value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"one of {', '.join(known)}")
    return value


def _number(value: str, good: Callable[[int], bool], expected: str) -> int:
    if not re.fullmatch(r"-?\d+", value) or not good(int(value)):
        raise ValueError(expected)
    return int(value)


def _normalised(spec: EncoderSpec, value: str) -> EncoderSpec:
    if _one_of(value, ("trained", *STATISTICS)) == "trained":
        return spec
    mean, std = STATISTICS[value]
    return replace(spec, mean=mean, std=std)


def _activated(spec: EncoderSpec, value: str) -> EncoderSpec:
    known = tuple(name for name in get_args(Activation) if name)
    return replace(spec, activation=_one_of(value, known))  # type: ignore[arg-type]


_VARIANTS: dict[str, Callable[[EncoderSpec, str], EncoderSpec]] = {
    "activation": _activated,
    "normalization": _normalised,
    "layer": lambda spec, value: replace(spec, layer=_number(value, lambda n: n < 0, "a negative number")),
    "image_size": lambda spec, value: replace(spec, image_size=_number(value, lambda n: n > 0, "pixels")),
    "resized": lambda spec, value: replace(spec, resized=_one_of(value, ("true", "false")) == "true"),
    "ema": lambda spec, value: replace(spec, ema=_one_of(value, ("true", "false")) == "true"),
}
