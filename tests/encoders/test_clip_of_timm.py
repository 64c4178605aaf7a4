"""timm's copies of CLIPs compute what open_clip computes: the same activation, statistics, size and layer.

Which of timm's weights are open_clip's is found in open_clip's own table, which fetches many of its from timm's page.
"""

import dataclasses
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.pretrained import _PRETRAINED, get_pretrained_cfg

from rllava.encoders import build_encoder, encoder_spec
from rllava.encoders.towers.timm import described_spec
from rllava.errors import UserError
from tests.encoders.test_real_encoders import VIT, given_weights, normalised, pixels_of, randomised

ELSEWHERE = {
    "vit_base_patch16_clip_224.datacompxl": ("ViT-B-16", "datacomp_xl_s13b_b90k"),
    "vit_base_patch16_clip_224.dfn2b": ("ViT-B-16", "dfn2b"),
    "vit_base_patch16_clip_224.laion2b": ("ViT-B-16", "laion2b_s34b_b88k"),
    "vit_base_patch16_plus_clip_240.laion400m_e32": ("ViT-B-16-plus-240", "laion400m_e32"),
    "vit_base_patch32_clip_224.datacompxl": ("ViT-B-32", "datacomp_xl_s13b_b90k"),
    "vit_base_patch32_clip_224.laion2b": ("ViT-B-32", "laion2b_s34b_b79k"),
    "vit_base_patch32_clip_256.datacompxl": ("ViT-B-32-256", "datacomp_s34b_b86k"),
    "vit_giant_patch14_clip_224.laion2b": ("ViT-g-14", "laion2b_s12b_b42k"),
    "vit_gigantic_patch14_clip_224.laion2b": ("ViT-bigG-14", "laion2b_s39b_b160k"),
    "vit_huge_patch14_clip_224.dfn5b": ("ViT-H-14", "dfn5b"),
    "vit_huge_patch14_clip_224.laion2b": ("ViT-H-14", "laion2b_s32b_b79k"),
    "vit_huge_patch14_clip_378.dfn5b": ("ViT-H-14-378", "dfn5b"),
    "vit_huge_patch14_clip_quickgelu_224.dfn5b": ("ViT-H-14", "dfn5b"),
    "vit_huge_patch14_clip_quickgelu_378.dfn5b": ("ViT-H-14-378", "dfn5b"),
    "vit_large_patch14_clip_224.datacompxl": ("ViT-L-14", "datacomp_xl_s13b_b90k"),
    "vit_large_patch14_clip_224.dfn2b": ("ViT-L-14", "dfn2b"),
    "vit_large_patch14_clip_224.dfn2b_s39b": ("ViT-L-14", "dfn2b_s39b"),
    "vit_large_patch14_clip_224.laion2b": ("ViT-L-14", "laion2b_s32b_b82k"),
    "vit_large_patch14_clip_quickgelu_224.dfn2b": ("ViT-L-14", "dfn2b"),
}
"""Weights that open_clip fetches from their authors' page."""

ALONE = frozenset({
    "vit_betwixt_patch32_clip_224.tinyclip_laion400m", "vit_medium_patch16_clip_224.tinyclip_yfcc15m",
    "vit_medium_patch32_clip_224.tinyclip_laion400m", "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m",
    "vit_large_patch14_clip_224.apple_mclip2_dfndr2b",
})  # fmt: skip
"""TinyCLIP, which open_clip lacks (its own code asks for no QuickGELU), and a tower that open_clip takes from timm."""


def pairs() -> dict[str, tuple[str, str]]:
    """Model and tag of open_clip, by timm's name of the same vision transformer."""
    pages = {
        weights["hf_hub"].rstrip("/"): (model, tag)
        for model, tags in _PRETRAINED.items()
        for tag, weights in tags.items()
        if not model.endswith("-quickgelu")
    }
    names = [name for name in timm.list_pretrained("vit_*_clip_*") if "_ft_" not in name and name not in ALONE]
    return {name: ELSEWHERE.get(name) or pages[str(timm.get_pretrained_cfg(name).hf_hub_id)] for name in names}


PAIRS = pairs()
QUICK = {name.split(".")[0]: name for name, pair in PAIRS.items() if get_pretrained_cfg(*pair).get("quick_gelu")}
"""Of every architecture that needs it or has it, one name; what differs between them, the first test looks at."""


def shrunk(model: str, quick_gelu: bool) -> Any:
    """open_clip's image tower with three narrow blocks for nine patches, and random weights that show."""
    vision = {**open_clip.get_model_config(model)["vision_cfg"], "layers": 3, "width": 64, "head_width": 32}
    vision["image_size"] = 3 * vision["patch_size"]
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    return randomised(open_clip.CLIP(32, vision, text, quick_gelu=quick_gelu), 0)


@pytest.mark.parametrize("name", PAIRS)
def test_timms_description_is_open_clips(name: str) -> None:
    model, tag = PAIRS[name]
    weights, spec = get_pretrained_cfg(model, tag), described_spec(name)
    quick = "quickgelu" in name or spec.activation == "quick_gelu"
    assert quick == bool(weights.get("quick_gelu"))
    assert (spec.mean, spec.std) == (tuple(weights["mean"]), tuple(weights["std"]))
    assert spec.image_size == open_clip.get_model_config(model)["vision_cfg"].get("image_size", 224)
    assert spec.layer == -2


@pytest.mark.parametrize("name", QUICK.values())
def test_features_of_weights_trained_with_quick_gelu_are_open_clips(name: str, tmp_path: Path) -> None:
    model, _ = PAIRS[name]
    clip = shrunk(model, quick_gelu=True)
    torch.save({key: value for key, value in clip.state_dict().items() if key.startswith("visual.")}, tmp_path / "w.pt")
    size, small = clip.visual.image_size[0], (("depth", 3), ("embed_dim", 64), ("num_heads", 2))
    spec = dataclasses.replace(described_spec(name), arguments=small, image_size=size)
    spec = given_weights(spec, tmp_path / "w.pt")
    images = pixels_of(spec)
    seen: list[torch.Tensor] = []
    clip.visual.transformer.resblocks[-2].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        clip.visual(normalised(spec, images))
        torch.testing.assert_close(build_encoder(spec)(images), seen[0][:, 1:], rtol=1e-4, atol=1e-4)
        gelu = build_encoder(dataclasses.replace(spec, activation="gelu"))
        assert not torch.allclose(gelu(images), seen[0][:, 1:], atol=1e-2)


def test_the_residual_networks_of_clip_have_their_own_activation(tmp_path: Path) -> None:
    """open_clip marks their tags as QuickGELU too; it is the text tower that has it."""
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    clip = open_clip.CLIP(1024, open_clip.get_model_config("RN50")["vision_cfg"], text, quick_gelu=True).eval()
    torch.save(clip.state_dict(), tmp_path / "rn.pt")
    spec = given_weights(described_spec("resnet50_clip.openai"), tmp_path / "rn.pt")
    images = pixels_of(spec)
    seen: list[torch.Tensor] = []
    clip.visual.layer4.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        clip.visual(normalised(spec, images))
        expected_BPD = seen[0].flatten(2).transpose(1, 2)
        torch.testing.assert_close(build_encoder(spec)(images), expected_BPD, rtol=1e-4, atol=1e-4)


def test_an_activation_can_still_be_chosen() -> None:
    name = "timm:vit_base_patch32_clip_224.openai"
    assert encoder_spec(name).activation == "quick_gelu"
    assert encoder_spec(f"{name}[activation=gelu]").activation == "gelu"
    assert encoder_spec("timm:vit_base_patch32_clip_224.laion2b").activation == ""
    fine_tuned = encoder_spec("timm:vit_base_patch32_clip_224.openai_ft_in1k")
    assert (fine_tuned.activation, fine_tuned.layer) == ("", -1)  # a classifier that timm trained, with GELU


def test_patches_of_another_size_are_refused(tmp_path: Path) -> None:
    """timm would resample them without a word where the number of patches happens to be the same."""
    smaller = timm.create_model("test_vit", num_classes=0, patch_size=8, img_size=80)
    torch.save(smaller.state_dict(), tmp_path / "vit.pth")
    for resized in (False, True):
        with pytest.raises(UserError, match=r"patch embeddings of 12288 values, the encoder of 49152") as caught:
            build_encoder(given_weights(VIT, tmp_path / "vit.pth", resized=resized))
        assert "\n" not in str(caught.value)


def test_an_activation_that_timm_cannot_build_is_one_line() -> None:
    with pytest.raises(UserError, match="timm's dm_nfnet_f0 does not take that"):
        encoder_spec("timm:dm_nfnet_f0[activation=quick_gelu,layer=-2]")
