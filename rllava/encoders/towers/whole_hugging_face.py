"""Whole image towers of transformers: CLIP with its projection, SigLIP with its attention pooling, DINOv2, ViT.

Shapes: B batch, C channel, H/W image, E embedding.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from rllava.encoders.base import EncoderSpec
from rllava.encoders.towers.hugging_face import UNUSED, check_described, described_model, image_tower
from rllava.encoders.whole import WholeTower, on_cpu
from rllava.errors import UserError
from rllava.pretrained import read_pretrained
from rllava.weights import read_weights

_PROJECTION = "visual_projection.weight"
_CLIPS = ("clip", "clip_vision_model")


class WholeHuggingFace(WholeTower):
    """A tower of transformers.

    The embedding is CLIP's projection of the class token where the weights have one, else what transformers calls the
    pooled output; of a ViT, whose pooling layer no classifier uses, the class token behind the last norm.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        kind, config = described_model(spec)
        self.tower = kind(config, **UNUSED.get(spec.architecture, {}))
        self._fix_unused()

    def _fix_unused(self) -> None:
        if (mask := getattr(getattr(self.tower, "embeddings", None), "mask_token", None)) is not None:
            mask.requires_grad_(False)

    def pooled(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class."""
        found = self.tower(pixel_values=normalised_BCHW)
        if "image_embeds" in found:
            embedding_BE: Tensor = found.image_embeds
        elif found.pooler_output is not None:
            embedding_BE = found.pooler_output
        elif self.spec.architecture == "vit":
            embedding_BE = found.last_hidden_state[:, 0]
        else:
            raise UserError(f"{self.spec.label}: its configuration leaves out the pooling (vision_use_head)")
        return embedding_BE

    def load_weights(self, path: Path) -> None:
        """Loads a folder or file in Hugging Face format, of the image tower or of a whole CLIP."""
        check_described(self.spec, path)
        state = read_weights(path, self.spec.label)
        kind, config = described_model(self.spec)
        whole = image_tower(state)
        if self.spec.architecture in _CLIPS and _PROJECTION in state:
            kind, config.projection_dim = CLIPVisionModelWithProjection, state[_PROJECTION].shape[0]
            whole[_PROJECTION] = state[_PROJECTION].float()
        unused = UNUSED.get(self.spec.architecture, {})
        self.tower = read_pretrained(kind, self.spec.label, path, whole, config=config, dtype=torch.float32, **unused)
        self._fix_unused()

    def open_clip_weights(self) -> dict[str, Tensor]:
        """See the base class; of CLIP alone."""
        state = on_cpu(self.tower.state_dict())
        if self.spec.architecture not in _CLIPS:
            return super().open_clip_weights()
        if _PROJECTION not in state:
            raise UserError(
                f"{self.spec.label}: its weights hold no {_PROJECTION}, which open_clip's towers have; take those of "
                "the whole CLIP"
            )
        return _as_open_clip(state, self.tower.config.num_hidden_layers)


def _as_open_clip(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """CLIP's weights under open_clip's names; those of queries, keys and values are one there."""
    before = "vision_model."
    found = {
        "class_embedding": state[f"{before}embeddings.class_embedding"],
        "positional_embedding": state[f"{before}embeddings.position_embedding.weight"],
        "conv1.weight": state[f"{before}embeddings.patch_embedding.weight"],
        "proj": state[_PROJECTION].T.contiguous(),
    }
    names = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
    for number in range(layers):
        here, there = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
        names |= {f"{here}.ln_1": f"{there}.layer_norm1", f"{here}.ln_2": f"{there}.layer_norm2"}
        names |= {f"{here}.mlp.c_fc": f"{there}.mlp.fc1", f"{here}.mlp.c_proj": f"{there}.mlp.fc2"}
        names[f"{here}.attn.out_proj"] = f"{there}.self_attn.out_proj"
        for end in ("weight", "bias"):
            parts = [state[f"{before}{there}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            found[f"{here}.attn.in_proj_{end}"] = torch.cat(parts)
    return found | {f"{k}.{end}": state[f"{before}{v}.{end}"] for k, v in names.items() for end in ("weight", "bias")}
