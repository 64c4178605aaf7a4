"""Writes llava.json: what the original LLaVA code writes, and what it computes, on weights known from their names.

    python -m tests.golden.make_llava PATH_TO_A_CHECKOUT_OF_haotian-liu/LLaVA

Runs in that code's own environment (transformers 4.37.2); nothing of rllava is imported. Kept per checkpoint that its
``save_pretrained`` wrote: ``config.json`` to the letter, and file, name and shape of every tensor.
Of the ensemble, that code has the towers and the projectors; their tokens are interleaved here after Robust-LLaVA
``llava_arch.py:688-699`` (``merged[0::2]``, ``merged[1::2]``).

Shapes: B batch, C channel, H/W image, P visual tokens, D width, T sequence, V vocabulary.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests.golden.tiny_weights import tiny_pixels, tiny_state

IMAGE = -200
PROMPTS = ([1, 17, 4, IMAGE, 9, 33, 21], [1, 17, IMAGE, 9, 8, 40, 41, 5, 28, 60])
SIDE = 28
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NEW_TOKENS = 6
TOWER = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": 14, "projection_dim": 16,
}  # fmt: skip
LANGUAGE_MODEL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


def fill(model: Any, prefix: str) -> None:
    """Gives a model the weights that belong to its names."""
    names = list(model.state_dict())
    state = tiny_state({prefix + name: value.shape for name, value in model.state_dict().items()})
    model.load_state_dict({name: state[prefix + name] for name in names})
    model.eval()


def tower(folder: Path, prefix: str) -> dict[str, Any]:
    """Writes a CLIP tower; answers with its manifest."""
    model = CLIPVisionModel(CLIPVisionConfig(**TOWER))
    fill(model, prefix)
    model.save_pretrained(folder)
    size = {"crop_size": SIDE, "size": {"shortest_edge": SIDE}}
    CLIPImageProcessor(**size, image_mean=list(MEAN), image_std=list(STD)).save_pretrained(folder)
    return manifest(folder)


def manifest(folder: Path) -> dict[str, Any]:
    """Configuration of a folder, and per weights file the shapes by name."""
    files = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                files[file.name] = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        if file.suffix == ".bin":
            files[file.name] = {name: list(value.shape) for name, value in torch.load(file).items()}
    return {"config": json.loads((folder / "config.json").read_text()), "files": files}


def llava(tower_folder: Path) -> Any:
    """The original model, filled, its tower loaded."""
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    config = LlavaConfig(
        **LANGUAGE_MODEL, mm_vision_tower=str(tower_folder), mm_projector_type="mlp2x_gelu",
        mm_hidden_size=TOWER["hidden_size"], mm_vision_select_layer=-2, mm_vision_select_feature="patch",
        mm_patch_merge_type="flat", mm_use_im_start_end=False, mm_use_im_patch_token=False, use_mm_proj=True,
        tune_mm_mlp_adapter=False, image_aspect_ratio="pad",
    )  # fmt: skip
    model = LlavaLlamaForCausalLM(config)
    fill(model, "")
    return model


def inputs(side: str) -> tuple[Tensor, Tensor]:
    """Both prompts, padded on a side, and their mask."""
    length = max(map(len, PROMPTS))
    rows, mask = [], []
    for ids in PROMPTS:
        rest = length - len(ids)
        rows.append([*([0] * rest if side == "left" else []), *ids, *([0] * rest if side == "right" else [])])
        mask.append([int(side == "right" or place >= rest) * int(side == "left" or place < len(ids))
                     for place in range(length)])  # fmt: skip
    return torch.tensor(rows), torch.tensor(mask)


def rounded(logits_TV: Tensor) -> list[list[float]]:
    """Seven digits: float32 has no more."""
    return [[float(f"{value:.7g}") for value in row] for row in logits_TV.tolist()]


@torch.no_grad()
def computed(model: Any, normalised_BCHW: Tensor) -> dict[str, Any]:
    """Logits of both prompts, alone and in batches padded on either side, and greedy answers."""
    found: dict[str, Any] = {"alone": [], "greedy": []}
    for b, ids in enumerate(PROMPTS):
        id_1T = torch.tensor([ids])
        found["alone"].append(rounded(model(input_ids=id_1T, images=normalised_BCHW[b : b + 1]).logits[0]))
        answer = model.generate(
            id_1T, images=normalised_BCHW[b : b + 1], do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None
        )
        found["greedy"].append(answer[0].tolist())
    for side in ("left", "right"):
        model.config.tokenizer_padding_side = side
        id_BT, mask_BT = inputs(side)
        # Labels and positions are given, so that the code says where padding went.
        labels_BT = id_BT.clone()
        (_, position_BT, mask_BT, _, embedded_BTD, _) = model.prepare_inputs_labels_for_multimodal(
            id_BT, torch.zeros_like(id_BT), mask_BT, None, labels_BT, normalised_BCHW
        )
        logits_BTV = model(inputs_embeds=embedded_BTD, attention_mask=mask_BT, position_ids=position_BT).logits
        found[side] = [rounded(logits_TV[mask_T.bool()]) for logits_TV, mask_T in zip(logits_BTV, mask_BT, strict=True)]
        del model.config.tokenizer_padding_side
    return found


def projector_only(model: Any, folder: Path) -> dict[str, Any]:
    """What ``LLaVATrainer`` leaves of stage 1."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    kept = {name: value for name, value in model.named_parameters() if "mm_projector" in name}
    torch.save({name: value.detach() for name, value in kept.items()}, folder / "mm_projector.bin")
    return manifest(folder)


class Ensemble(torch.nn.Module):
    """Two towers with a projector each, interleaved."""

    def __init__(self, towers: Sequence[Any], projectors: Sequence[Any]) -> None:
        super().__init__()
        self.towers, self.projectors = torch.nn.ModuleList(towers), torch.nn.ModuleList(projectors)

    def forward(self, normalised_BCHW: Tensor) -> Tensor:
        first_BPD, second_BPD = (
            projector(tower(normalised_BCHW)) for tower, projector in zip(self.towers, self.projectors, strict=True)
        )
        count, places, width = first_BPD.shape
        merged_BPD = torch.empty(count, 2 * places, width)
        merged_BPD[:, 0::2] = first_BPD
        merged_BPD[:, 1::2] = second_BPD
        return merged_BPD


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
    from llava.model.multimodal_projector.builder import build_vision_projector

    mean_1C11, std_1C11 = (torch.tensor(values)[None, :, None, None] for values in (MEAN, STD))
    normalised_BCHW = (tiny_pixels(len(PROMPTS), SIDE) - mean_1C11) / std_1C11
    golden: dict[str, Any] = {"prompts": PROMPTS, "side": SIDE, "new_tokens": NEW_TOKENS}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        golden["towers"] = {name: tower(root / name, f"{name}.") for name in ("first", "second")}
        model = llava(root / "first")
        model.save_pretrained(root / "whole", safe_serialization=True)
        model.get_vision_tower().load_model()
        model.save_pretrained(root / "sharded", safe_serialization=True, max_shard_size="60KB")
        model.save_pretrained(root / "bin", safe_serialization=False, max_shard_size="60KB")
        golden["checkpoints"] = {name: manifest(root / name) for name in ("whole", "sharded", "bin")}
        golden["checkpoints"]["projector"] = projector_only(model, root / "projector")
        golden["single"] = computed(model, normalised_BCHW)

        second = CLIPVisionTower(str(root / "second"), model.config)
        projector = build_vision_projector(model.config)
        fill(projector, "model.advxl_giant_mm_projector.")
        ensemble = Ensemble([model.get_vision_tower(), second], [model.get_model().mm_projector, projector])
        model.encode_images = ensemble.forward
        golden["ensemble"] = computed(model, normalised_BCHW)
        for described in (*golden["checkpoints"].values(), *golden["towers"].values()):
            described["config"].pop("mm_vision_tower", None)  # a scratch folder; the test puts its own there
            described["config"].pop("_name_or_path", None)
    Path(__file__).with_name("llava.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
