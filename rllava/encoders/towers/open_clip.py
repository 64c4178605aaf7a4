"""Image encoders of open_clip, and checkpoints in its format: FARE, TeCoA, Sim-CLIP, delta-CLIP, SigLIP.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from torch import Tensor

from rllava.encoders.base import CLIP_MEAN, CLIP_STD, Encoder, EncoderSpec, measured
from rllava.encoders.towers.open_clip_config import (
    OpenClipConfig,
    described_config,
    read_open_clip_config,
    visual_tower,
)
from rllava.errors import UserError
from rllava.hub import OPEN_CLIP as WEIGHTS
from rllava.hub import OPEN_CLIP_CONFIG as CONFIG
from rllava.pinned import Pinned
from rllava.registry import unknown
from rllava.weights import find_weights, fitting, read_weights, weights_path

VISUAL = "visual."
"""Before the image encoder's keys in a checkpoint of both towers."""


VARIANTS = frozenset({"activation", "layer", "resized", "ema"})
"""What of a spec this family honours beside its size and statistics."""

WHOLE_TOWER = "rllava.encoders.towers.whole_open_clip:WholeOpenClip"


class OpenClipEncoder(Encoder):
    """The image tower of an open_clip model up to one of its blocks.

    Args:
        spec: its ``architecture`` is a model of open_clip, its ``arguments`` replace entries of that model's
            ``vision_cfg``.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self.tower = tower(spec)
        self._layer = spec.layer
        trunk = getattr(self.tower, "trunk", self.tower)  # models of timm sit within an adapter
        if hasattr(trunk, "prune_intermediate_layers"):  # its ResNets have no such method
            try:
                self._layer = trunk.prune_intermediate_layers([spec.layer], prune_norm=True, prune_head=True)[0]
            except (AssertionError, IndexError) as error:
                raise UserError(
                    f"encoder '{spec.name}': open_clip's {spec.architecture} gives no output of layer {spec.layer}"
                ) from error
        if trunk is not self.tower:
            self.tower.head = torch.nn.Identity()

    def features(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class.

        Returns:
            [B, P, D].
        """
        (map_BDHW,) = self.tower.forward_intermediates(
            normalised_BCHW, indices=[self._layer], intermediates_only=True, output_fmt="NCHW"
        )["image_intermediates"]
        tokens_BPD: Tensor = map_BDHW.flatten(2).transpose(1, 2)
        return tokens_BPD

    def load_weights(self, path: Path) -> None:
        """Loads a checkpoint of the image tower, or of both towers."""
        with torch.device("meta"):
            expected = tower(self.spec).state_dict()  # every key is checked, those of unused blocks too
        kept, mine = read_tower(self.spec, expected, path), self.tower.state_dict()
        self.tower.load_state_dict({key: value for key, value in kept.items() if key in mine})


def read_tower(spec: EncoderSpec, expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """All weights of an image tower, from a checkpoint of it or of both towers.

    Args:
        expected: of the whole tower.

    Raises:
        UserError: if the file is damaged, or a key does not fit.
    """
    state = image_tower(read_weights(path, spec.label, spec.ema))
    if spec.resized:
        state = _resized(state, expected)
    return fitting(expected, state, f"{spec.label}: {path}")


def image_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's part of a checkpoint.

    Args:
        state: of the image tower alone, or of a whole CLIP.
    """
    visual = {key.removeprefix(VISUAL): value for key, value in state.items() if key.startswith(VISUAL)}
    return visual or dict(state)


def _resized(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    key = "positional_embedding"
    if key not in state or key not in expected or state[key].shape == expected[key].shape:
        return dict(state)
    old, new = (round((table[key].shape[0] - 1) ** 0.5) for table in (state, expected))
    grid_1DHW = state[key][1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid_1DHW = torch.nn.functional.interpolate(grid_1DHW, size=(new, new), mode="bicubic", antialias=True)
    table_PD = torch.cat([state[key][:1].float(), grid_1DHW.flatten(2)[0].T])
    return {**state, key: table_PD}


def tower(spec: EncoderSpec) -> Any:
    """The whole image tower.

    Returns:
        The module with initial weights.

    Raises:
        UserError: if open_clip knows no such model, or it takes no other activation.
    """
    config = _config(spec)
    if config.of_timm and spec.activation not in ("", "gelu"):
        raise UserError(f"encoder '{spec.name}': open_clip's {spec.architecture} has an image tower of timm, with GELU")
    if not config.of_timm and spec.activation == ("relu" if config.is_vit else "gelu"):
        kinds = "GELU or QuickGELU in its vision transformers, ReLU in its residual networks"
        raise UserError(f"encoder '{spec.name}': open_clip has {kinds}, and no other activation")
    quick = spec.activation == "quick_gelu" if spec.activation else config.quick_gelu
    return visual_tower(config, spec.image_size, quick)


def _config(spec: EncoderSpec) -> OpenClipConfig:
    """The architecture of a spec: a model of open_clip, or what an ``open_clip_config.json`` said."""
    arguments = nested(spec.arguments)
    if spec.architecture == CONFIG:
        if _EMBED_DIM not in arguments:
            raise UserError(
                f"encoder '{spec.name}': {CONFIG}, which says what it is, has to lie beside its weights; "
                f"copy it from {spec.origin or 'where they were made'}"
            )
        return OpenClipConfig(arguments.pop(_EMBED_DIM), arguments, quick_gelu=False)
    if spec.architecture not in open_clip.list_models():
        known = open_clip.list_models()
        raise UserError(f"encoder '{spec.name}': {unknown('open_clip model', spec.architecture, known)}")
    config = described_config(open_clip.get_model_config(spec.architecture), {})
    return replace(config, vision={**config.vision, **arguments})


_EMBED_DIM = "embed_dim"
"""Beside the entries of ``vision_cfg`` in the arguments of a spec made from a configuration."""


def flat(entries: Mapping[str, Any], before: str = "") -> tuple[tuple[str, Any], ...]:
    """Entries of a configuration as arguments of a spec, which have no dictionaries within.

    Args:
        entries: of ``vision_cfg``.
        before: in front of every name.

    Returns:
        Names and values, sorted; ``act_kwargs.approximate`` for an entry within ``act_kwargs``.
    """
    found: list[tuple[str, Any]] = []
    for key, value in sorted(entries.items()):
        if isinstance(value, Mapping):
            found += flat(value, f"{before}{key}.")
        else:
            found.append((before + key, tuple(value) if isinstance(value, list) else value))
    return tuple(found)


def nested(arguments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Takes back what :func:`flat` does.

    Returns:
        Entries of ``vision_cfg``.
    """
    entries: dict[str, Any] = {}
    for name, value in arguments:
        *outer, key = name.split(".")
        within = entries
        for part in outer:
            within = within.setdefault(part, {})
        within[key] = value
    return entries


def configured_spec(folder: Path, name: str, weights: str) -> EncoderSpec:
    """The spec of an image tower in a folder of open_clip's layout.

    Args:
        folder: with ``open_clip_config.json`` and weights.
        weights: the folder as a spec names it, see :mod:`rllava.weights`.

    Returns:
        The spec, with the whole architecture in it. A vision transformer gives the layer before the last, as LLaVA
        takes it.

    Raises:
        UserError: if there are no weights, or the configuration is missing, damaged, or not understood.
    """
    what = f"encoder '{name}'"
    file = next((file for file in WEIGHTS if (folder / file).exists()), None)
    if file is None:
        raise UserError(f"{what}: {folder} holds neither {' nor '.join(WEIGHTS)}; copy the whole folder")
    config = read_open_clip_config(folder, what)
    try:
        image_size = config.image_size
    except UserError as error:
        raise UserError(f"{what}: {folder / CONFIG}: {error}") from error
    vision = {key: value for key, value in config.vision.items() if key != "image_size"}
    spec = EncoderSpec(
        name=name,
        builder="rllava.encoders.towers.open_clip:build",
        weights=Pinned(f"{weights}/{file}"),
        image_size=image_size,
        tokens=0,
        width=0,
        mean=config.mean,
        std=config.std,
        training=f"the weights in {name}",
        architecture=CONFIG,
        arguments=flat({**vision, _EMBED_DIM: config.embed_dim}),
        activation="quick_gelu" if config.quick_gelu and not config.of_timm else "",
    )
    return measured(replace(spec, layer=-2) if config.is_vit else spec)


def build(spec: EncoderSpec) -> OpenClipEncoder:
    """Builder of the family.

    Returns:
        The encoder without its weights.
    """
    return OpenClipEncoder(spec)


def open_clip_spec(name: str) -> EncoderSpec:
    """The spec of any model of open_clip.

    Args:
        name: ``MODEL/PRETRAINED``, as ``open_clip.create_model`` takes both; or, as it does too, ``hf-hub:ORG/NAME`` or
            ``local-dir:FOLDER`` for what has its configuration beside it.

    Returns:
        The spec; its weights are those that open_clip has on the hub. The layer before the last, as LLaVA takes it.

    Raises:
        UserError: if open_clip knows no such model or weights, has them at another place than the hub, or they cannot
            be reached.
    """
    if name.startswith(_SCHEMAS):
        return _elsewhere(name)
    architecture, _, tag = name.partition("/")
    described = open_clip.get_model_config(architecture)
    if described is None:
        raise UserError(unknown("open_clip model", architecture, open_clip.list_models()))
    tags = list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise UserError(f"{unknown(f'weights of open_clip {architecture}', tag, tags)} (write MODEL/PRETRAINED)")
    weights = get_pretrained_cfg(architecture, tag)
    if not weights.get("hf_hub"):
        raise UserError(f"open_clip's {name} is not on the hub; fetch {weights.get('url')} and give its path")
    organisation, repository, *rest = weights["hf_hub"].rstrip("/").split("/")
    file = rest[0] if rest else "open_clip_model.safetensors"
    spec = EncoderSpec(
        name=f"open_clip:{name}",
        builder="rllava.encoders.towers.open_clip:build",
        weights=Pinned(f"hub:{organisation}/{repository}/{file}"),
        image_size=described["vision_cfg"].get("image_size", 224),
        tokens=0,
        width=0,
        mean=tuple(weights.get("mean") or CLIP_MEAN),
        std=tuple(weights.get("std") or CLIP_STD),
        training=f"open_clip's {name}",
        architecture=architecture,
        activation="quick_gelu" if weights.get("quick_gelu") else "",
        origin=f"the hub's {organisation}/{repository}",
    )
    return measured(replace(spec, layer=-2) if described_config(described, {}).is_vit else spec)


_HUB, _FOLDER = _SCHEMAS = ("hf-hub:", "local-dir:")
"""open_clip's own names of places."""


def _elsewhere(name: str) -> EncoderSpec:
    where_ = name.removeprefix(_HUB).removeprefix(_FOLDER)
    if name.startswith(_FOLDER):
        folder = Path(where_).expanduser().resolve()
        return configured_spec(folder, folder.name, str(folder))
    where = f"hub:{where_}"
    if where_.count("/") != 1:
        raise UserError(f"encoder 'open_clip:{name}': a name of the hub is ORG/NAME")
    # Of a repository that has transformers' layout too, these alone are fetched.
    config, weights = find_weights(f"{where}/{CONFIG}"), find_weights(f"{where}/{WEIGHTS[0]}")
    if config is None or weights is None:
        lacking = CONFIG if config is None else " or ".join(WEIGHTS)
        raise UserError(
            f"encoder 'open_clip:{name}': the hub cannot be reached or has no {lacking} there; copy both to "
            f"{weights_path(where)}"
        )
    return configured_spec(config.parent, where_.rpartition("/")[2], where)
