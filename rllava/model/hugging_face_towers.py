"""Image towers of every family as towers of transformers: CLIP, SigLIP, ViT and DINOv2.

Names of weights are those that the hub's checkpoints have, which every release of transformers reads.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from rllava.encoders import Encoder
from rllava.errors import UserError
from rllava.model.weight_stream import bare
from rllava.pretrained import quiet

State = dict[str, Tensor]


def hugging_face_tower(encoder: Encoder) -> Any:
    """An encoder's tower as a model of transformers whose last hidden state before any norm has its visual tokens.

    Args:
        encoder: of transformers, open_clip or timm.

    Returns:
        The model, with as many layers as the encoder uses; its weights may be shared with the encoder's.

    Raises:
        UserError: if transformers has no such architecture.
    """
    families: dict[str, Callable[[Any], Any]] = {
        "HuggingFaceEncoder": _of_hugging_face,
        "OpenClipEncoder": _of_open_clip,
        "TimmEncoder": _of_timm,
    }
    convert = next((families[kind.__name__] for kind in type(encoder).__mro__ if kind.__name__ in families), None)
    refused = f"encoder '{encoder.spec.name}' cannot be exported: transformers has no tower like it"
    if convert is None:
        raise UserError(f"{refused} ({type(encoder).__name__})")
    try:
        tower = convert(encoder).eval()
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(f"{refused} ({reason})") from error
    difference = _difference(encoder, tower)
    if difference > (1e-4 if next(encoder.parameters()).dtype == torch.float32 else 3e-2):
        raise UserError(f"{refused} (tokens differ by {difference:.1%} of their size)")
    return tower


@torch.no_grad()
def _difference(encoder: Encoder, tower: Any) -> float:
    side, weight = encoder.spec.image_size, next(encoder.parameters())
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    normalised_BCHW = noise.to(weight.device, weight.dtype)
    expected_BPD = encoder.features(normalised_BCHW)
    hidden_BPD = tower(pixel_values=normalised_BCHW, output_hidden_states=True).hidden_states[-1]
    found_BPD = hidden_BPD[:, hidden_BPD.shape[1] - expected_BPD.shape[1] :]
    if found_BPD.shape != expected_BPD.shape:
        return 1.0
    return float((found_BPD - expected_BPD).abs().max() / expected_BPD.abs().max())


def _filled(kind: Any, config: Any, state: State) -> Any:
    """A model with these weights, under the hub's names."""
    dtype = next(iter(state.values())).dtype
    with quiet():
        model, facts = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    wrong = sorted([*facts["missing_keys"], *facts["unexpected_keys"], *map(str, facts["mismatched_keys"])])
    if wrong:
        raise ValueError(f"{len(wrong)} of its weights have no place there, e.g. {wrong[0]}")
    return model.to(next(iter(state.values())).device)


def _of_hugging_face(encoder: Any) -> Any:
    config = copy.deepcopy(encoder.tower.config)
    config.num_hidden_layers += 1 + encoder.spec.layer
    with bare():
        tower = type(encoder.tower)(config)
    tower.load_state_dict(encoder.tower.state_dict(), assign=True)
    return tower


def _of_open_clip(encoder: Any) -> Any:
    tower = encoder.tower
    blocks = tower.transformer.resblocks
    width = tower.conv1.out_channels
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        image_size=encoder.spec.image_size,
        patch_size=tower.conv1.kernel_size[0],
        hidden_act="quick_gelu" if type(blocks[0].mlp.gelu).__name__ == "QuickGELU" else "gelu",
        layer_norm_eps=tower.ln_pre.eps,
    )
    state: State = {
        "vision_model.embeddings.class_embedding": tower.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": tower.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": tower.positional_embedding,
        **_named("vision_model.pre_layrnorm", tower.ln_pre),
        **_unused_norm("vision_model.post_layernorm", tower.ln_pre),
    }
    for number, block in enumerate(blocks):
        name = f"vision_model.encoder.layers.{number}"
        attention = (f"{name}.self_attn.{part}_proj" for part in "qkv")
        state |= _split(tuple(attention), block.attn.in_proj_weight, block.attn.in_proj_bias)
        state |= _named(f"{name}.self_attn.out_proj", block.attn.out_proj)
        state |= _named(f"{name}.layer_norm1", block.ln_1) | _named(f"{name}.layer_norm2", block.ln_2)
        state |= _named(f"{name}.mlp.fc1", block.mlp.c_fc) | _named(f"{name}.mlp.fc2", block.mlp.c_proj)
    return _filled(CLIPVisionModel, config, state)


def _of_timm(encoder: Any) -> Any:
    tower = encoder.tower
    blocks = tower.blocks
    scaled = hasattr(blocks[0].ls1, "gamma")
    width, inner = tower.embed_dim, blocks[0].mlp.fc1.out_features
    shared: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "image_size": encoder.spec.image_size,
        "patch_size": tower.patch_embed.proj.kernel_size[0],
        "layer_norm_eps": blocks[0].norm1.eps,
        "qkv_bias": blocks[0].attn.qkv.bias is not None,
    }
    state: State = {
        "embeddings.cls_token": tower.cls_token,
        "embeddings.position_embeddings": tower.pos_embed,
        **_named("embeddings.patch_embeddings.projection", tower.patch_embed.proj),
        **_unused_norm("layernorm", blocks[0].norm1),
    }
    for number, block in enumerate(blocks):
        name = f"encoder.layer.{number}"
        attention = tuple(f"{name}.attention.attention.{part}" for part in ("query", "key", "value"))
        state |= _split(attention, block.attn.qkv.weight, block.attn.qkv.bias)
        state |= _named(f"{name}.attention.output.dense", block.attn.proj)
        norms = ("norm1", "norm2") if scaled else ("layernorm_before", "layernorm_after")
        mlps = ("mlp.fc1", "mlp.fc2") if scaled else ("intermediate.dense", "output.dense")
        for here, there in zip(norms, (block.norm1, block.norm2), strict=True):
            state |= _named(f"{name}.{here}", there)
        for here, there in zip(mlps, (block.mlp.fc1, block.mlp.fc2), strict=True):
            state |= _named(f"{name}.{here}", there)
        if scaled:
            state |= {f"{name}.layer_scale{k}.lambda1": scale.gamma for k, scale in ((1, block.ls1), (2, block.ls2))}
    if scaled:
        if inner % width:
            raise ValueError(f"an MLP of {inner / width:.3g} times the width")
        return _filled(Dinov2Model, Dinov2Config(mlp_ratio=inner // width, use_mask_token=False, **shared), state)
    pooler = nn.Linear(width, width).to(tower.cls_token).requires_grad_(False)
    nn.init.zeros_(pooler.weight)
    nn.init.zeros_(pooler.bias)
    return _filled(ViTModel, ViTConfig(intermediate_size=inner, **shared), state | _named("pooler.dense", pooler))


def _named(name: str, module: Any) -> State:
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def _unused_norm(name: str, like: Any) -> State:
    """The norm behind the last layer, whose output no LLaVA takes."""
    return {f"{name}.weight": torch.ones_like(like.weight), f"{name}.bias": torch.zeros_like(like.bias)}


def _split(names: tuple[str, ...], weight: Tensor, bias: Tensor | None) -> State:
    state = {f"{name}.weight": part.contiguous() for name, part in zip(names, weight.chunk(3), strict=True)}
    if bias is not None:
        state |= {f"{name}.bias": part.contiguous() for name, part in zip(names, bias.chunk(3), strict=True)}
    return state
