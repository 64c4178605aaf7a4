"""Whole towers: the embedding that their libraries give, all weights, and the way back into a LLaVA's encoder."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from rllava.data.pairs import class_pairs
from rllava.encoders import EncoderSpec, build_encoder, encoder_spec, measured
from rllava.encoders.dual import load_dual
from rllava.encoders.towers.timm import described_spec
from rllava.encoders.whole import WholeTower, bare_whole, build_whole, save_whole
from rllava.errors import UserError
from rllava.pinned import WEIGHTS
from rllava.weights import pin_weights, weights_of, weights_path
from tests.encoders.test_real_encoders import (
    HUGGING_FACE,
    OPEN_CLIP,
    PAPER,
    SMALL,
    TEXT,
    VISION,
    VIT,
    given_weights,
    normalised,
    pixels_of,
    randomised,
    shrunk,
    write_open_clip,
)

SAME = {"rtol": 0, "atol": 0}
"""The library's own module on the same numbers: equal to the bit."""

OPEN_CLIPS: dict[str, dict[str, Any]] = {
    "class token, QuickGELU": {"quick_gelu": "TRUE"},
    "average": {"vision_cfg": {**VISION, "pool_type": "avg"}},
    "norm behind the pooling": {"vision_cfg": {**VISION, "pool_type": "avg", "final_ln_after_pool": True}},
    "attention pooling": {"vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_queries": 5}},
    "with its tokens": {"vision_cfg": {**VISION, "output_tokens": True}},
    "fixed positions": {"vision_cfg": {**VISION, "pos_embed_type": "sin_cos_2d"}},
    "timm, class token": {
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    },
    "timm, SigLIP's": {
        "vision_cfg": {"timm_model_name": "test_vit4", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    },
    "timm, ConvNeXt": {
        "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    },
    "residual network": {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 64}},
}


def described(kind: str) -> dict[str, Any]:
    return {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, **OPEN_CLIPS[kind]}}


def shaken(whole: WholeTower) -> WholeTower:
    """Other weights, as after a training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in whole.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return whole


@pytest.mark.parametrize("kind", OPEN_CLIPS)
def test_embeddings_are_open_clips_there_and_back(kind: str, tmp_path: Path) -> None:
    visual = write_open_clip(tmp_path / "org", described(kind))
    spec = pin_weights(encoder_spec(f"open_clip:local-dir:{tmp_path}/org"))
    whole, images = build_whole(spec), pixels_of(spec)

    def expected() -> Tensor:
        found = visual(normalised(spec, images))
        return found[0] if isinstance(found, tuple) else found

    with torch.no_grad():
        torch.testing.assert_close(whole.embed(images), expected(), **SAME)
        assert whole.embed(images).shape == (2, 96 if "SigLIP" in kind else 24)
        visual.load_state_dict(shaken(whole).open_clip_weights(), strict=True)
        torch.testing.assert_close(whole.embed(images), expected(), **SAME)


TIMMS = {
    "class token": VIT,
    "average": SMALL["timm vit, average pooling"],
    "maximum": dataclasses.replace(VIT, arguments=(("global_pool", "max"),)),
    "attention": dataclasses.replace(VIT, arguments=(("global_pool", "map"),)),
    "resnet": SMALL["timm resnet"],
    "convnext": SMALL["timm convnext"],
    "efficientnet": SMALL["timm efficientnet"],
    "swin": SMALL["timm swin"],
}


@pytest.mark.parametrize("kind", TIMMS)
def test_embeddings_are_what_timms_classifier_takes(kind: str, tmp_path: Path) -> None:
    spec = TIMMS[kind]
    model = timm.create_model(spec.architecture, num_classes=7, **dict(spec.arguments))
    randomised(model, 0)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    spec = given_weights(spec, tmp_path / "model.pth")
    images = pixels_of(spec)
    with torch.no_grad():
        taken: list[Tensor] = []
        model.get_classifier().register_forward_hook(lambda _, inputs, __: taken.append(inputs[0]))
        model(normalised(spec, images))
        torch.testing.assert_close(build_whole(spec).embed(images), taken[0], **SAME)


def test_of_timms_clips_the_projection_belongs_to_the_tower(tmp_path: Path) -> None:
    small = (("depth", 3), ("embed_dim", 64), ("num_heads", 2))
    vision = {**VISION, "image_size": 48, "patch_size": 16, "width": 64, "head_width": 32}
    clip = randomised(open_clip.CLIP(24, vision, TEXT, quick_gelu=False), 0)
    torch.save({key: value for key, value in clip.state_dict().items() if key.startswith("visual.")}, tmp_path / "w.pt")
    spec = dataclasses.replace(described_spec("vit_base_patch16_clip_224.laion2b"), arguments=small, image_size=48)
    spec = given_weights(spec, tmp_path / "w.pt")
    whole, images = build_whole(spec), pixels_of(spec)
    with torch.no_grad():
        # Other modules, so other roundings.
        torch.testing.assert_close(whole.embed(images), clip.visual(normalised(spec, images)), rtol=1e-4, atol=1e-4)
    made = save_whole(shaken(whole), tmp_path, "mine", "")
    assert build_whole(made).embed(images).shape == (2, 24)
    torch.testing.assert_close(build_whole(made).embed(images), whole.embed(images), **SAME)


def hugging_face(kind: str, folder: Path) -> tuple[EncoderSpec, Callable[[Tensor], Tensor]]:
    """A folder with random weights, and the embedding as its library computes it."""
    arguments = {**dict(HUGGING_FACE.arguments), "image_size": 28}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    embedding: Callable[[Any, Tensor], Tensor] = lambda model, pixels: model(pixels).pooler_output  # noqa: E731
    if kind == "clip":
        vision = {**arguments, "hidden_act": "quick_gelu"}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        model: Any = transformers.CLIPModel(config)
        embedding = lambda model, pixels: model.get_image_features(pixels).pooler_output  # noqa: E731
    elif kind == "clip's tower with projection":
        model = transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**arguments, projection_dim=24)
        )
        embedding = lambda model, pixels: model(pixels).image_embeds  # noqa: E731
    elif kind == "clip's tower":
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**arguments))
    elif kind == "siglip":
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=arguments))
        embedding = lambda model, pixels: model.get_image_features(pixels).pooler_output  # noqa: E731
    elif kind == "dinov2":
        del arguments["intermediate_size"]
        model = transformers.Dinov2Model(transformers.Dinov2Config(**arguments))
    else:
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**arguments))
        taken: list[Tensor] = []
        model.classifier.register_forward_hook(lambda _, inputs, __: taken.append(inputs[0]))
        embedding = lambda model, pixels: (model(pixels), taken.pop())[1]  # noqa: E731
    randomised(model, 0).save_pretrained(folder)
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    return pin_weights(encoder_spec(str(folder))), lambda pixels: embedding(model, pixels)


HUGGING_FACES = ("clip", "clip's tower with projection", "clip's tower", "siglip", "dinov2", "vit")


@pytest.mark.parametrize("kind", HUGGING_FACES)
def test_embeddings_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    spec, expected = hugging_face(kind, tmp_path)
    images = pixels_of(spec)
    with torch.no_grad():
        found = build_whole(spec).embed(images)
        assert found.shape[1] == (24 if kind.startswith("clip") and kind != "clip's tower" else 32)
        torch.testing.assert_close(found, expected(normalised(spec, images)), **SAME)


def test_a_clip_of_transformers_is_written_as_open_clip_has_it(tmp_path: Path) -> None:
    spec, _ = hugging_face("clip", tmp_path)
    whole, images = shaken(build_whole(spec)), pixels_of(spec)
    vision = {"image_size": 28, "patch_size": 14, "width": 32, "head_width": 16, "layers": 3, "mlp_ratio": 2.0}
    visual = open_clip.CLIP(24, vision, TEXT, quick_gelu=True).visual.eval()
    visual.load_state_dict(whole.open_clip_weights(), strict=True)
    with torch.no_grad():
        # Other modules, so other roundings.
        torch.testing.assert_close(visual(normalised(spec, images)), whole.embed(images), rtol=1e-4, atol=1e-4)


# The way into a LLaVA: what its encoders read is the whole tower at their layer.

TOWERS = {
    "open_clip": OPEN_CLIP,
    "timm vit": VIT,
    "clip": HUGGING_FACE,
    **{name: SMALL[name] for name in ("siglip", "dinov2", "vit")},
    **{name: shrunk(name) for name in PAPER},
}


def blocks_of(whole: WholeTower) -> nn.ModuleList | None:
    tower = getattr(whole.tower, "trunk", whole.tower)
    if hasattr(tower, "transformer"):
        return tower.transformer.resblocks  # type: ignore[no-any-return]
    if hasattr(tower, "config"):
        (layers,) = (module for module in tower.modules() if isinstance(module, nn.ModuleList))
        return layers
    return getattr(tower, "blocks", None)


@pytest.mark.parametrize("name", TOWERS)
def test_an_encoder_made_of_a_whole_tower_gives_the_towers_tokens(name: str, tmp_path: Path) -> None:
    spec = measured(TOWERS[name])
    whole = bare_whole(spec).eval() if "resnet" in name else randomised(bare_whole(spec), 0)
    made = save_whole(shaken(whole), tmp_path, "mine", "made here")
    assert (made.name, weights_of(made), made.layer) == ("mine", str(tmp_path / WEIGHTS), spec.layer)
    images, tokens = pixels_of(spec), list[Tensor]()
    with torch.no_grad():
        blocks = blocks_of(whole)
        if blocks is not None:
            blocks[spec.layer].register_forward_hook(lambda _, __, output: tokens.append(output))
            embedding_BE = whole.embed(images)
            expected_BPD = (tokens[0][0] if isinstance(tokens[0], tuple) else tokens[0])[:, -spec.tokens :]
        else:
            embedding_BE = whole.embed(images)
            tower = getattr(whole.tower, "trunk", whole.tower)
            (map_BDHW,) = tower.forward_intermediates(
                normalised(spec, images), indices=[-1], norm=False, intermediates_only=True, output_fmt="NCHW"
            )
            expected_BPD = map_BDHW.flatten(2).transpose(1, 2)
        torch.testing.assert_close(build_encoder(made)(images), expected_BPD, **SAME)
        torch.testing.assert_close(build_whole(made).embed(images), embedding_BE, **SAME)


@pytest.mark.parametrize("name", [*SMALL])
def test_every_weight_that_learns_decides_the_embedding(name: str) -> None:
    spec = SMALL[name]
    if name == "efficientnet-lite0":
        with pytest.raises(UserError, match="its family gives visual tokens and no embedding of an image") as caught:
            build_whole(spec)
        assert "\n" not in str(caught.value)
        return
    whole = randomised(bare_whole(spec), 0).double()
    whole.embed(pixels_of(spec).double()).square().sum().backward()
    unused = [key for key, value in whole.named_parameters() if value.requires_grad and not bool(value.grad.any())]
    # A bias of keys shifts all logits of a query alike.
    assert [key for key in unused if "k_proj.bias" not in key and "key.bias" not in key] == []


def test_the_embedded_encoders_embed_with_the_head_of_their_training() -> None:
    pairs = class_pairs("test", 24)
    dual = load_dual(weights_path("asset:tiny-clip.safetensors"), "tiny-clip", pairs)
    whole = build_whole(encoder_spec("tiny-clip"))
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(whole.embed(images), dual.embed(images), **SAME)
    assert set(load_file(weights_path("asset:tiny-clip.safetensors"))) - set(whole.weights()) == {
        "text.words.weight", "text.mlp.0.weight", "text.mlp.0.bias", "text.mlp.2.weight", "text.mlp.2.bias",
        "text.log_scale",
    }  # fmt: skip


def test_an_embedded_encoder_is_written_and_read(tmp_path: Path) -> None:
    whole, images = shaken(build_whole(encoder_spec("tiny-clip"))), torch.rand(2, 3, 64, 64)
    made = save_whole(whole, tmp_path, "tiny-mine", "")
    with torch.no_grad():
        torch.testing.assert_close(build_whole(made).embed(images), whole.embed(images), **SAME)
        torch.testing.assert_close(build_encoder(made)(images), whole.tower(images), **SAME)
    with pytest.raises(UserError, match="open_clip has no tower like it"):
        whole.open_clip_weights()


def test_pixels_are_normalised_before_they_are_rounded() -> None:
    whole = bare_whole(OPEN_CLIP).eval().bfloat16()
    seen: list[Tensor] = []
    whole.pooled = lambda pixels: seen.append(pixels) or pixels  # type: ignore[method-assign]
    pixels = pixels_of(OPEN_CLIP)
    whole.embed(pixels)
    torch.testing.assert_close(seen[0], normalised(OPEN_CLIP, pixels).bfloat16(), **SAME)


def test_an_activation_of_another_training_is_another_embedding() -> None:
    quick, exact = (
        randomised(bare_whole(spec), 0) for spec in (OPEN_CLIP, dataclasses.replace(OPEN_CLIP, activation="gelu"))
    )
    images = pixels_of(OPEN_CLIP)
    assert not torch.allclose(quick.embed(images), exact.embed(images), atol=1e-3)


NOT_POOLED = {
    "timm without pooling": (dataclasses.replace(VIT, arguments=(("global_pool", ""),)), "is not pooled"),
    "open_clip without pooling": (
        dataclasses.replace(OPEN_CLIP, arguments=(*OPEN_CLIP.arguments, ("pool_type", "none"))),
        "is not pooled",
    ),
    "SigLIP without its head": (
        dataclasses.replace(SMALL["siglip"], arguments=(*HUGGING_FACE.arguments, ("vision_use_head", False))),
        "its configuration leaves out the pooling",
    ),
    "another image size": (dataclasses.replace(SMALL["open_clip resnet"], image_size=24), "gives no embedding of an"),
}


@pytest.mark.parametrize("kind", NOT_POOLED)
def test_a_tower_without_one_embedding_is_refused_in_one_line(kind: str) -> None:
    spec, message = NOT_POOLED[kind]
    with pytest.raises(UserError, match=message) as caught:
        build_whole(spec)
    assert "\n" not in str(caught.value)


def test_all_weights_have_to_be_there(tmp_path: Path) -> None:
    state = copy.deepcopy(bare_whole(OPEN_CLIP).weights())
    proj = state.pop("proj")
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(UserError, match=r"cut.pt does not fit the architecture: missing proj$"):
        build_whole(given_weights(OPEN_CLIP, tmp_path / "cut.pt"))
    torch.save({**state, "proj": proj, "more": proj}, tmp_path / "more.pt")
    with pytest.raises(UserError, match="unexpected more"):
        build_whole(given_weights(OPEN_CLIP, tmp_path / "more.pt"))


def test_a_projection_that_is_not_there_is_named(tmp_path: Path) -> None:
    spec, _ = hugging_face("clip's tower", tmp_path)
    with pytest.raises(UserError, match=r"hold no visual_projection\.weight"):
        build_whole(spec).open_clip_weights()
