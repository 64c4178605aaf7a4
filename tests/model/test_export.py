"""Exported models against the class of transformers that loads them: logits, answers, images, and the way back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    LlamaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from rllava.data.images import encode_png, preprocess
from rllava.encoders import Encoder, EncoderSpec, build_encoder, encoder_spec, measured
from rllava.encoders.base import CLIP_MEAN, CLIP_STD
from rllava.errors import UserError
from rllava.model.causal_lm import embedding_width
from rllava.model.checkpoint import load_checkpoint, read_checkpoint
from rllava.model.conversation import IMAGE_TOKEN
from rllava.model.export import Options, export_hugging_face, main
from rllava.model.llava import Connector, Llava, build_projector
from rllava.model.sampling import Sampling
from tests.model.checkpoints import PROMPTS, SIDE, logits, pixels, prompts, tokenizer, write_checkpoint
from tests.model.test_causal_lm import FAMILIES as LANGUAGE_MODELS

VOCABULARY = 64
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
QWEN = Qwen2Config(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
)  # fmt: skip
SHARED = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": SIDE, "patch_size": 14}  # fmt: skip
VIT = (("depth", 2), ("embed_dim", 24), ("num_heads", 2), ("patch_size", 14))
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def spec(name: str, builder: str, **fields: Any) -> EncoderSpec:
    return measured(
        EncoderSpec(name, f"rllava.encoders.towers.{builder}:build", None, image_size=SIDE, tokens=0, width=0, **fields)
    )


def of_hugging_face(kind: Any, config: Any, folder: Path) -> EncoderSpec:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": CLIP_MEAN, "image_std": CLIP_STD}))
    return encoder_spec(str(folder))


def encoder(name: str, scratch: Path) -> EncoderSpec:
    """One of each family that transformers has a tower for."""
    if name == "clip":
        return of_hugging_face(CLIPVisionModel, CLIPVisionConfig(**SHARED), scratch / name)
    if name == "siglip":
        return of_hugging_face(SiglipVisionModel, SiglipVisionConfig(**SHARED), scratch / name)
    if name == "open_clip":
        arguments = (("head_width", 12), ("layers", 3), ("mlp_ratio", 2.0), ("width", 24))
        return spec(name, "open_clip", architecture="ViT-L-14", activation="quick_gelu", layer=-2, arguments=arguments)
    if name == "advxl":
        return spec(
            name, "timm", architecture="vit_giant_patch14_224", arguments=(*VIT, ("global_pool", "avg")), **IMAGENET
        )
    assert name == "dinov2"
    return spec(name, "timm", architecture="vit_small_patch14_dinov2", arguments=VIT, **IMAGENET)


FAMILIES = ("clip", "siglip", "open_clip", "advxl", "dinov2")


def livelier(module: nn.Module, seed: int) -> None:
    """Weights that differ from neutral ones everywhere: initial biases, norms and scales hide what is left out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)


def llava_on(specs: Sequence[EncoderSpec], config: Any = LLAMA, projector: str = "mlp2x_gelu") -> Llava:
    torch.manual_seed(1)
    language_model = AutoModelForCausalLM.from_config(config)
    built: list[Encoder] = [build_encoder(entry) for entry in specs]
    projectors = [build_projector(projector, entry.width, embedding_width(language_model)) for entry in specs]
    llava = Llava(built, Connector(projectors, language_model), tokenizer(), "vicuna_v1")
    livelier(llava, 2)
    return llava.requires_grad_(False).eval()


def theirs(folder: Path) -> Any:
    return LlavaForConditionalGeneration.from_pretrained(folder).eval()


def inputs(llava: Llava, model: Any, which: Sequence[int], side: str) -> dict[str, Tensor]:
    """Prompts and images as ``LlavaForConditionalGeneration`` takes them, padded on a side."""
    first = llava.encoders[0]
    assert isinstance(first, Encoder)
    image = [model.config.image_token_index] * first.spec.tokens
    rows = [[token for entry in PROMPTS[b] for token in (image if entry == IMAGE_TOKEN else [entry])] for b in which]
    length = max(map(len, rows))
    left = [length - len(row) if side == "left" else 0 for row in rows]
    ids = [[*[0] * gap, *row, *[0] * (length - len(row) - gap)] for row, gap in zip(rows, left, strict=True)]
    mask = [
        [*[0] * gap, *[1] * len(row), *[0] * (length - len(row) - gap)] for row, gap in zip(rows, left, strict=True)
    ]
    mean_1C11, std_1C11 = (torch.tensor(values)[None, :, None, None] for values in (first.spec.mean, first.spec.std))
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "pixel_values": (pixels()[list(which)] - mean_1C11) / std_1C11,
    }


@torch.no_grad()
def assert_same_logits(llava: Llava, model: Any) -> None:
    expected = logits(llava, "alone")
    assert max(float(row.std()) for row in expected) > 0.1
    for side in ("left", "right"):
        for which in ([0], [1], [0, 1]):
            given = inputs(llava, model, which, side)
            found_BTV = model(**given).logits[..., :VOCABULARY]
            for b, logits_TV, mask_T in zip(which, found_BTV, given["attention_mask"], strict=True):
                torch.testing.assert_close(logits_TV[mask_T.bool()], expected[b], rtol=1e-5, atol=1e-5)
    for side in ("left", "right"):
        for row_TV, expected_TV in zip(logits(llava, side), expected, strict=True):
            torch.testing.assert_close(row_TV, expected_TV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_has_the_same_logits_in_transformers_and_when_read_back(family: str, tmp_path: Path) -> None:
    llava = llava_on([encoder(family, tmp_path)])
    before = {name: value.clone() for name, value in llava.state_dict().items()}
    export_hugging_face(llava, tmp_path / "exported")
    assert_same_logits(llava, theirs(tmp_path / "exported"))
    assert str(tmp_path) not in (tmp_path / "exported" / "config.json").read_text()
    for name, value in llava.state_dict().items():
        assert torch.equal(value, before[name]), f"export changed {name}"
    back = load_checkpoint(read_checkpoint(str(tmp_path / "exported")))
    for found_TV, expected_TV in zip(logits(back, "alone"), logits(llava, "alone"), strict=True):
        torch.testing.assert_close(found_TV, expected_TV, rtol=1e-5, atol=1e-5)


def test_tied_embeddings_and_a_vocabulary_without_room_are_exported_too(tmp_path: Path) -> None:
    llava = llava_on([encoder("open_clip", tmp_path)], QWEN)
    language_model: Any = llava.connector.language_model
    language_model.resize_token_embeddings(len(llava.tokenizer))
    export_hugging_face(llava, tmp_path / "exported")
    model = theirs(tmp_path / "exported")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    rows = len(llava.tokenizer)
    assert model.lm_head.weight.shape[0] == rows + 1
    with torch.no_grad():
        found_TV = model(**inputs(llava, model, [0], "right")).logits[0, :, :rows]
    torch.testing.assert_close(found_TV, logits(llava, "alone")[0], rtol=1e-5, atol=1e-5)
    back = load_checkpoint(read_checkpoint(str(tmp_path / "exported"), conversation="vicuna_v1"))
    torch.testing.assert_close(logits(back, "alone")[0][:, :rows], found_TV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma", "gpt_neox", "mistral"])
def test_language_models_of_other_families_are_exported_and_read_back(family: str, tmp_path: Path) -> None:
    name, settings = LANGUAGE_MODELS[family]
    llava = llava_on([encoder("open_clip", tmp_path)], getattr(transformers, name)(**settings))
    export_hugging_face(llava, tmp_path / "exported")
    assert_same_logits(llava, theirs(tmp_path / "exported"))
    back = load_checkpoint(read_checkpoint(str(tmp_path / "exported"), conversation="vicuna_v1"))
    torch.testing.assert_close(logits(back, "alone")[0], logits(llava, "alone")[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("opt", "cannot be exported: .* one width"),
        ("phi", "cannot be exported: .* without bias"),
        ("cohere", "cannot be exported: .* and scale"),
        ("gpt2", "'gpt2' does not fit LlavaForConditionalGeneration"),
    ],
)
def test_language_models_with_other_heads_are_refused(family: str, reason: str, tmp_path: Path) -> None:
    name, settings = LANGUAGE_MODELS[family]
    llava = llava_on([encoder("open_clip", tmp_path)], getattr(transformers, name)(**settings))
    with pytest.raises(UserError, match=reason):
        export_hugging_face(llava, tmp_path / "exported")


def texts(llava: Llava, ids_BT: Tensor) -> list[str]:
    return [text.strip() for text in llava.tokenizer.batch_decode(ids_BT, skip_special_tokens=True)]


def test_answers_greedy_and_drawn_are_those_of_transformers_in_any_batch(tmp_path: Path) -> None:
    llava = llava_on([encoder("clip", tmp_path)])
    export_hugging_face(llava, tmp_path / "exported")
    model = theirs(tmp_path / "exported")
    model.generation_config.suppress_tokens = None
    options = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": 2}

    def continued(which: Sequence[int], **how: Any) -> list[str]:
        given = inputs(llava, model, which, "left")
        return texts(llava, model.generate(**given, **options, **how)[:, given["input_ids"].shape[1] :])

    together = continued([0, 1], do_sample=False)
    assert len(set(together)) == 2
    assert llava.generate(pixels(), prompts(), 12) == together
    assert [llava.generate(pixels()[b : b + 1], prompts()[b : b + 1], 12)[0] for b in range(2)] == together
    for how in ({"temperature": 0.7, "top_p": 0.8}, {"temperature": 1.3}, {"top_k": 0, "top_p": 0.9}):
        seeds = (11, 5)
        alone = []
        for b, seed in enumerate(seeds):
            torch.manual_seed(seed)
            alone += continued([b], do_sample=True, **how)
        assert alone != together
        assert llava.generate(pixels(), prompts(), 12, Sampling(seeds, **how)) == alone
        swapped = llava.generate(pixels().flip(0), prompts()[::-1], 12, Sampling(seeds[::-1], **how))
        assert swapped == alone[::-1], "a drawn answer depends on its batch"
        assert llava.generate(pixels()[1:], prompts()[1:], 12, Sampling(seeds[1:], **how)) == alone[1:]


def test_the_processor_makes_the_same_tokens_and_pixels(tmp_path: Path) -> None:
    llava = llava_on([encoder("advxl", tmp_path)])
    export_hugging_face(llava, tmp_path / "exported")
    processor = AutoProcessor.from_pretrained(tmp_path / "exported")
    image_HWC = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    given = processor(images=Image.fromarray(image_HWC), text="w17 <image> w9", return_tensors="pt")
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert given["input_ids"][0].tolist() == [17, *[image] * 4, 9]
    ours_HWC = preprocess(encode_png(image_HWC), SIDE)
    encoder_ = llava.encoders[0]
    assert isinstance(encoder_, Encoder)
    pixels_1CHW = torch.from_numpy(ours_HWC)[None].permute(0, 3, 1, 2).float() / 255
    mean_1C11, std_1C11 = encoder_.statistics(pixels_1CHW)
    torch.testing.assert_close(given["pixel_values"], (pixels_1CHW - mean_1C11) / std_1C11, rtol=0, atol=1e-5)
    wide = processor(images=Image.fromarray(np.zeros((20, 60, 3), dtype=np.uint8)), text="<image>", return_tensors="pt")
    assert wide["pixel_values"].shape == (1, 3, SIDE, SIDE)


def test_weights_of_older_releases_are_read(tmp_path: Path) -> None:
    """The hub's LLaVAs have the tower's weights under ``vision_model`` and list only what differs from defaults."""
    llava = llava_on([encoder("clip", tmp_path)])
    folder = tmp_path / "exported"
    export_hugging_face(llava, folder)
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    tower = "vision_tower."
    renamed = {
        f"{tower}vision_model.{key.removeprefix(tower)}" if key.startswith(tower) else key: value
        for key, value in state.items()
    }
    assert renamed.keys() != state.keys()
    save_file(renamed, folder / "model.safetensors")
    described = json.loads((folder / "config.json").read_text())
    for key in ("vision_feature_select_strategy", "projector_hidden_act", "multimodal_projector_bias"):
        described.pop(key)
    described["vision_config"]["vocab_size"] = 32000  # of no meaning there, but in the hub's files
    described["text_config"] |= {"_name_or_path": "lmsys/vicuna-7b-v1.5", "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(described))
    back = load_checkpoint(read_checkpoint(str(folder)))
    torch.testing.assert_close(logits(back, "alone")[0], logits(llava, "alone")[0], rtol=1e-5, atol=1e-5)


def test_what_the_class_cannot_express_is_refused_with_the_reason(tmp_path: Path) -> None:
    clip = encoder("clip", tmp_path)
    with pytest.raises(UserError, match=r"an ensemble \(clip \+ clip\) cannot be exported"):
        export_hugging_face(llava_on([clip, clip]), tmp_path / "out")
    with pytest.raises(UserError, match="encoder 'tiny-clip' cannot be exported: transformers has no tower like it"):
        export_hugging_face(llava_on([encoder_spec("tiny-clip")]), tmp_path / "out")
    registers = spec("registers", "timm", architecture="vit_small_patch14_reg4_dinov2", arguments=VIT)
    with pytest.raises(UserError, match="encoder 'registers' cannot be exported"):
        export_hugging_face(llava_on([registers]), tmp_path / "out")
    with pytest.raises(UserError, match="only a projector mlp2x_gelu"):
        export_hugging_face(llava_on([clip], projector="linear"), tmp_path / "out")
    gemma = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(UserError, match="of type 'gemma2' cannot be exported"):
        export_hugging_face(llava_on([clip], gemma), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        export_hugging_face(llava_on([clip]), tmp_path / "full")


def test_sampling_out_of_range_is_refused() -> None:
    for wrong in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}):
        with pytest.raises(UserError, match="give a"):
            Sampling((0,), **wrong)  # type: ignore[arg-type]


def test_an_original_checkpoint_is_exported_from_the_command_line(tmp_path: Path) -> None:
    folder = write_checkpoint("whole", tmp_path)
    llava = load_checkpoint(read_checkpoint(str(folder)))
    main(Options(str(folder), tmp_path / "exported", dtype="float32"))
    assert_same_logits(llava, theirs(tmp_path / "exported"))
    again = read_checkpoint(str(tmp_path / "exported"), name="again")
    assert (again.format, again.name, again.projectors) == ("hugging_face", "again", ("multi_modal_projector",))
    with pytest.raises(UserError, match="--dtype int8: expected float32, float16, bfloat16"):
        main(Options(str(folder), tmp_path / "other", dtype="int8"))
