"""The encoders of Robust-LLaVA (arXiv 2502.01576): those it builds LLaVAs on, and those of its alignment figure.

The weights are not shipped. ``hub:`` ones are fetched where the hub can be reached; the others have to be put into the
weights folder under the name given here (see :mod:`rllava.weights`).

Two defects of the published code are variants, so that either can be measured: it builds FARE and Sim-CLIP with GELU
where their training had QuickGELU (``fare4[activation=gelu]``), and feeds AdvXL and ARES encoders images normalised by
CLIP's statistics instead of their own (``advxl-g[normalization=as_released]``).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from rllava.encoders.base import CLIP_MEAN, CLIP_STD, EncoderSpec
from rllava.hub import OPEN_CLIP_CONFIG
from rllava.pinned import Pinned

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

_TIMM = "rllava.encoders.towers.timm:build"
_OPEN_CLIP = "rllava.encoders.towers.open_clip:build"
_HUGGING_FACE = "rllava.encoders.towers.hugging_face:build"

_CLIP_L = (
    ("hidden_act", "quick_gelu"),
    ("hidden_size", 1024),
    ("intermediate_size", 4096),
    ("num_attention_heads", 16),
    ("num_hidden_layers", 24),
    ("patch_size", 14),
)


_ON_THE_HUB = "open_clip_pytorch_model.bin of the hub's chs20/{name}-clip (https://github.com/chs20/RobustVLM)"


def _clips() -> Iterator[EncoderSpec]:
    """OpenAI's CLIP, and its adversarially fine-tuned versions as open_clip image towers."""
    clip = EncoderSpec(
        name="clip-l-336",
        builder=_HUGGING_FACE,
        weights=Pinned("hub:openai/clip-vit-large-patch14-336"),
        image_size=336,
        tokens=576,
        width=1024,
        training="CLIP (WebImageText), natural images",
        licence="MIT (code); the weights' card names none",
        architecture="clip_vision_model",
        arguments=_CLIP_L,
        layer=-2,
        origin="the hub's openai/clip-vit-large-patch14-336",
        parameters=303.5,
    )
    yield clip
    yield replace(
        clip,
        name="clip-l-224",
        weights=Pinned("hub:openai/clip-vit-large-patch14"),
        image_size=224,
        tokens=256,
        origin="the hub's openai/clip-vit-large-patch14",
        parameters=303.2,
    )
    tuned = EncoderSpec(
        name="",
        builder=_OPEN_CLIP,
        weights=Pinned(""),
        image_size=224,
        tokens=256,
        width=1024,
        architecture="ViT-L-14",
        activation="quick_gelu",
        layer=-2,
        parameters=303.2,  # without the projection into CLIP's joint space
    )
    methods = (
        ("fare", "FARE", "RobustVLM", "MIT", _ON_THE_HUB),
        ("tecoa", "TeCoA", "RobustVLM", "MIT", _ON_THE_HUB),
        (
            "simclip",
            "Sim-CLIP",
            "SimCLIP",
            "MIT (code); its weights' licence is not stated",
            "https://github.com/speedlab-git/SimCLIP (hub: hossainzarif19/SimCLIP)",
        ),
    )
    for key, method, _, licence, origin in methods:
        for epsilon in (2, 4):
            name = f"{key}{epsilon}"
            yield replace(
                tuned,
                name=name,
                weights=Pinned(f"{key}_eps_{epsilon}.pt"),
                training=f"CLIP ViT-L/14 fine-tuned on ImageNet by {method}, L-inf {epsilon}/255",
                licence=licence,
                origin=origin.format(name=name),
            )
    yield replace(
        tuned,
        name="fare4-336",
        weights=Pinned("fare_eps_4_336.pt"),
        image_size=336,
        tokens=576,
        architecture="ViT-L-14-336",
        training="CLIP ViT-L/14-336 fine-tuned on ImageNet by FARE, L-inf 4/255",
        licence="never released",
        origin="the authors of https://github.com/HashmatShadab/Robust-LLaVA; it is not among FARE's released weights",
        parameters=303.5,
    )
    for name, size, tokens, width in (("l-224", 224, 256, 1024), ("l-336", 336, 576, 1024), ("h-336", 336, 576, 1280)):
        repository = f"zw123/delta_clip_{name.replace('-', '14_')}"
        yield replace(
            tuned,
            name=f"deltaclip-{name}",
            weights=Pinned(f"hub:{repository}/open_clip_pytorch_model.bin"),
            image_size=size,
            tokens=tokens,
            width=width,
            architecture=OPEN_CLIP_CONFIG,
            activation="",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            training="delta-CLIP: adversarially pre-trained CLIP (arXiv 2501.09446)",
            licence="CC-BY-4.0",
            origin=f"the hub's {repository}, with its open_clip_config.json (https://github.com/zw615/Double_Visual_Defense)",
            parameters=None,
        )


def _base_sized() -> Iterator[EncoderSpec]:
    """FARE and TeCoA on base-sized CLIPs of LAION (https://github.com/chs20/RobustVLM, "Additional Models")."""
    for name, architecture, pretrained, size, tokens, width, parameters in (
        ("b-32", "ViT-B-32", "ViT-B-32-laion2B-s34B-b79K", 224, 49, 768, 87.5),
        ("b-16", "ViT-B-16", "ViT-B-16-laion2B-s34B-b88K", 224, 196, 768, 85.8),
        ("convnext-b", "convnext_base_w", "convnext_base_w-laion2B-s13B-b82K-augreg", 256, 64, 1024, 87.6),
    ):
        for method in ("FARE", "TeCoA"):
            repository = f"chs20/{method}4-{pretrained}"
            yield EncoderSpec(
                name=f"{method.lower()}4-{name}",
                builder=_OPEN_CLIP,
                weights=Pinned(f"hub:{repository}/open_clip_model.safetensors"),
                image_size=size,
                tokens=tokens,
                width=width,
                training=f"LAION's CLIP {pretrained} fine-tuned on ImageNet by {method}, L-inf 4/255",
                licence="MIT",
                architecture=architecture,
                layer=-1 if "convnext" in architecture else -2,
                origin=f"the hub's {repository}",
                parameters=parameters,
            )


def _leaf() -> Iterator[EncoderSpec]:
    """FARE at 2/255 on CLIPs of three sizes (LEAF, arXiv 2506.03355): scale apart from adversarial pre-training."""
    for name, repository, start, act, width, inner, layers, parameters in (
        ("l", "CLIP-ViT-L-FARE2", "OpenAI's CLIP ViT-L/14", "quick_gelu", 1024, 4096, 24, 303.2),
        ("h", "OpenCLIP-ViT-H-FARE2", "LAION's CLIP ViT-H/14", "gelu", 1280, 5120, 32, 630.8),
        ("g", "OpenCLIP-ViT-g-FARE2", "LAION's CLIP ViT-g/14", "gelu", 1408, 6144, 40, 1011.2),
    ):
        yield EncoderSpec(
            name=f"leaf-fare2-{name}",
            builder=_HUGGING_FACE,
            weights=Pinned(f"hub:LEAF-CLIP/{repository}"),
            image_size=224,
            tokens=256,
            width=width,
            training=f"{start} fine-tuned on ImageNet by FARE, L-inf 2/255 (LEAF)",
            licence="MIT",
            architecture="clip_vision_model",
            arguments=(
                ("hidden_act", act),
                ("hidden_size", width),
                ("intermediate_size", inner),
                ("num_attention_heads", 16),
                ("num_hidden_layers", layers),
                ("patch_size", 14),
            ),
            layer=-2,
            origin=f"the hub's LEAF-CLIP/{repository}",
            parameters=parameters,
        )


def _vision_transformers() -> Iterator[EncoderSpec]:
    """Plain vision transformers: AdvXL, ARES, and naturally trained ones."""
    advxl = EncoderSpec(
        name="advxl-h",
        builder=_TIMM,
        weights=Pinned("hub:UCSC-VLAA/AdvXL-ViT-H14/advxl_vit_h14.pth"),
        image_size=336,
        tokens=576,
        width=1280,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        training="AdvXL: adversarially pre-trained on DataComp-1B, then ImageNet, L-inf 4/255",
        licence="see the origin",
        architecture="vit_huge_patch14_224",
        arguments=(("global_pool", "avg"),),
        origin="the hub's UCSC-VLAA/AdvXL-ViT-H14",
        parameters=631.2,
    )
    yield advxl
    yield replace(
        advxl,
        name="advxl-g",
        weights=Pinned("hub:UCSC-VLAA/AdvXL-ViT-g14/advxl_vit_g14.pth"),
        width=1408,
        architecture="vit_giant_patch14_224",
        origin="the hub's UCSC-VLAA/AdvXL-ViT-g14",
        parameters=1011.7,
    )
    yield replace(
        advxl,
        name="ares-vit-b-at",
        weights=Pinned("ARES_ViT_base_patch16_224_AT.pth"),
        image_size=224,
        tokens=196,
        width=768,
        training="ARES: adversarially trained on ImageNet, L-inf 4/255",
        licence="MIT",
        architecture="vit_base_patch16_224",
        arguments=(),
        origin=_ARES,
        parameters=85.8,
    )
    yield replace(
        advxl,
        name="vit-l-21k",
        weights=Pinned("hub:timm/vit_large_patch16_224.augreg_in21k_ft_in1k/model.safetensors"),
        image_size=224,
        tokens=196,
        width=1024,
        mean=INCEPTION_MEAN,
        std=INCEPTION_STD,
        training="ImageNet-21k, then ImageNet (AugReg), natural images; the paper calls it ViT-L/14, its patch is 16",
        licence="Apache-2.0",
        architecture="vit_large_patch16_224",
        arguments=(),
        origin="the hub's timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
        parameters=303.3,
    )
    yield replace(
        advxl,
        name="dinov2-l",
        weights=Pinned("hub:timm/vit_large_patch14_dinov2.lvd142m/model.safetensors"),
        width=1024,
        training="DINOv2 (LVD-142M), natural images; position embeddings interpolated from 518 to 336 pixels",
        licence="Apache-2.0",
        architecture="vit_large_patch14_dinov2",
        arguments=(),
        resized=True,
        origin="the hub's timm/vit_large_patch14_dinov2.lvd142m",
        parameters=303.6,  # 304.4 with the position embeddings of 518 pixels
    )


_ARES = "https://github.com/thu-ml/ares (adversarially trained models)"


def _of_the_figure() -> Iterator[EncoderSpec]:
    """ARES's adversarially trained convolutional networks and Swin, which the paper only aligns with CLIP."""
    for name, file, architecture, width, activation, parameters in (
        ("ares-resnet50-at", "ARES_ResNet50_AT", "resnet50", 2048, "", 23.5),
        ("ares-resnet101-at", "ARES_ResNet101_AT", "resnet101", 2048, "", 42.5),
        ("ares-wrn50-at", "ARES_Wide_ResNet50_2_AT", "wide_resnet50_2", 2048, "gelu", 66.8),
        ("ares-convnext-l-at", "ARES_ConvNext_Large_AT", "convnext_large", 1536, "", 196.2),
        ("ares-swin-l-at", "ARES_Swin_large_patch4_window7_224_AT", "swin_large_patch4_window7_224", 1536, "", 195.0),
    ):
        yield EncoderSpec(
            name=name,
            builder=_TIMM,
            weights=Pinned(f"{file}.pth"),
            image_size=224,
            tokens=49,
            width=width,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            training="ARES: adversarially trained on ImageNet, L-inf 4/255",
            licence="MIT",
            architecture=architecture,
            activation=activation,  # type: ignore[arg-type]
            origin=_ARES,
            parameters=parameters,
        )


def register_encoders(register: Callable[[EncoderSpec], EncoderSpec]) -> None:
    """Registers the paper's encoders.

    Args:
        register: see :func:`rllava.encoders.register`.
    """
    for spec in (*_clips(), *_base_sized(), *_leaf(), *_vision_transformers(), *_of_the_figure()):
        register(spec)


STATISTICS = {
    "as_released": (CLIP_MEAN, CLIP_STD),
    "clip": (CLIP_MEAN, CLIP_STD),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "inception": (INCEPTION_MEAN, INCEPTION_STD),
}
"""Normalisations by name; ``as_released`` is what the published code feeds every encoder."""
