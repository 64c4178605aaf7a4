"""LLaVAs of the hub, shrunk: what their configuration files say is kept, sizes are not, weights are random.

Every entry that their ``config.json`` sets is set here, under the names of the release that wrote it;
``docs/models.md`` says where each was read. Files are written by transformers, keys are those of the hub's files.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from rllava.attacks.protocols import PROTOCOLS, in_precision
from rllava.conditions.attack import within
from rllava.data.benchmarks import BENCHMARKS
from rllava.errors import UserError
from rllava.evaluation.samples import Sample, decode_shard
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.victim import PRECISIONS, Victim
from rllava.metrics.metric import METRICS
from rllava.model.checkpoint import load_checkpoint, read_checkpoint
from rllava.model.checkpoint_spec import pin_checkpoint
from rllava.model.conversation import IMAGE_MARKER, IMAGE_TOKEN, TEMPLATES, pieces, tokenize
from rllava.model.llava import Llava
from rllava.specs import EvalSpec
from tests.evaluation.test_shard import shard
from tests.model.test_chat_template import tokenizer_of

SAMPLES = 2
IMAGE, PAD, ROWS = 460, 461, 512
"""Tokens that the processor adds behind the tokenizer's, and rows of the vocabulary: there are more than tokens."""

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP_336 = {
    "hidden_size": 24, "image_size": 28, "intermediate_size": 40, "model_type": "clip_vision_model",
    "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 14, "projection_dim": 16, "vocab_size": 32,
}  # fmt: skip
SIGLIP_384 = {
    # 384 pixels are no multiple of the patch either; the last of 27 layers is cut off, so the last of 26 is taken.
    "hidden_act": "gelu_pytorch_tanh", "hidden_size": 24, "image_size": 30, "intermediate_size": 40,
    "layer_norm_eps": 1e-06, "model_type": "siglip_vision_model", "num_attention_heads": 2, "num_hidden_layers": 2,
    "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
CLIPS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
CLIP_PROCESSOR = {**CLIPS, "image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "resample": 3,
                  "crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}}  # fmt: skip
SIGLIP_PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "SiglipImageProcessor"}
PATCHES = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
ALL = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}

# Written in the manner of the models named; none is a copy.
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}<|end|>\n<|assistant|>\n"
    "{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|end_head|>\n\n{{ m.content | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|end_head|>\n\n{% endif %}"
)
TURNED = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} "
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
"""A processor's: messages are lists of parts."""


def public(text: dict[str, Any], vision: dict[str, Any], **top: Any) -> dict[str, Any]:
    """A ``config.json`` of transformers' LLaVA."""
    same = {"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "model_type": "llava"}
    settings = {"image_token_index": IMAGE, "projector_hidden_act": "gelu"}
    return {**same, **settings, "text_config": {**text, "vocab_size": ROWS}, "vision_config": vision, **top}


VICUNA = {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
          "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llava-hf/llava-1.5-7b-hf": public(
        {**LLAMA, **VICUNA}, CLIP_336, pad_token_id=PAD, tie_word_embeddings=False, **PATCHES
    ),
    "llava-hf/bakLlava-v1-hf": public(
        {**LLAMA, "_name_or_path": "mistralai/Mistral-7B-v0.1", "max_position_embeddings": 32768,
         "model_type": "mistral", "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "sliding_window": 4096},
        CLIP_336, pad_token_id=PAD, **PATCHES, vocab_size=ROWS,
    ),
    "llava-hf/llava-interleave-qwen-0.5b-hf": public(
        {**LLAMA, "_name_or_path": "Qwen/Qwen1.5-0.5B-Chat", "architectures": ["Qwen2ForCausalLM"],
         "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_key_value_heads": 4,
         "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "use_sliding_window": False},
        SIGLIP_384, **ALL,
    ),
    "llava-hf/llava-interleave-qwen-7b-hf": public(
        {**LLAMA, "_name_or_path": "Qwen/Qwen1.5-7B-Chat", "architectures": ["Qwen2ForCausalLM"],
         "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "rope_theta": 1000000.0,
         "sliding_window": None, "use_sliding_window": False, "num_key_value_heads": 4},
        SIGLIP_384, **ALL,
    ),
    "bczhou/tiny-llava-v1-hf": public(
        {**LLAMA, "_name_or_path": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "architectures": ["LlamaForCausalLM"],
         "model_type": "llama", "num_key_value_heads": 1, "rms_norm_eps": 1e-05},
        CLIP_336, pad_token_id=PAD, **PATCHES, vocab_size=ROWS,
    ),
    # Phi-3 in the layout of a Llama, with what its own configuration has beyond a Llama's.
    "xtuner/llava-phi-3-mini-hf": public(
        {**LLAMA, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "eos_token_id": 2, "bos_token_id": 1,
         "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "num_key_value_heads": 4,
         "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047},
        {**CLIP_336, "architectures": ["CLIPVisionModel"], "dropout": 0.0}, pad_token_id=PAD, **PATCHES,
    ),
    "xtuner/llava-llama-3-8b-v1_1-transformers": public(
        {**LLAMA, "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
         "max_position_embeddings": 8192, "model_type": "llama", "num_key_value_heads": 2, "rms_norm_eps": 1e-05,
         "rope_theta": 500000.0},
        {**CLIP_336, "architectures": ["CLIPVisionModel"], "dropout": 0.0}, pad_token_id=PAD, hidden_size=4096,
        image_seq_length=576, **PATCHES,
    ),
    "deepvk/llava-gemma-2b-lora": public(
        {**LLAMA, "_name_or_path": "google/gemma-2b-it", "head_dim": 16, "hidden_act": "gelu",
         "hidden_activation": None, "max_position_embeddings": 8192, "model_type": "gemma", "num_key_value_heads": 1,
         "pad_token_id": 0, "rope_scaling": None, "tie_word_embeddings": True},
        CLIP_336, pad_token_id=PAD, **PATCHES,
    ),
}  # fmt: skip
STYLES: dict[str, tuple[str | None, list[str]]] = {
    "llava-hf/llava-interleave-qwen-0.5b-hf": (CHATML, ["<|im_start|>", "<|im_end|>"]),
    "llava-hf/llava-interleave-qwen-7b-hf": (PARTS, ["<|im_start|>", "<|im_end|>"]),
    "xtuner/llava-phi-3-mini-hf": (PHI, ["<|user|>", "<|assistant|>", "<|end|>"]),
    "xtuner/llava-llama-3-8b-v1_1-transformers": (HEADERS, ["<|head|>", "<|end_head|>", "<|eot|>"]),
    "deepvk/llava-gemma-2b-lora": (TURNED, ["<turn>", "<end>"]),
}
CONVERSATIONS = dict.fromkeys(STYLES, "chat")


def write(name: str, folder: Path, **changes: Any) -> Path:
    """A checkpoint as it lies on the hub, with random weights."""
    config = {**CONFIGS[name], **changes}
    model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**json.loads(json.dumps(config))))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    # Releases before the fifth had the tower's model within another one.
    renamed = {key.replace("vision_tower.", "vision_tower.vision_model."): value for key, value in state.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    siglip = config["vision_config"]["model_type"] == "siglip_vision_model"
    (folder / "preprocessor_config.json").write_text(json.dumps(SIGLIP_PROCESSOR if siglip else CLIP_PROCESSOR))
    template, special = STYLES.get(name, (None, []))
    tokenizer_of(template, special).save_pretrained(folder)
    return folder


def read(folder: Path, name: str) -> Any:
    return read_checkpoint(str(folder), conversation=CONVERSATIONS.get(name, "vicuna_v1_short"))


@torch.no_grad()
def ours(llava: Llava, ids: list[int], pixels_BCHW: Tensor) -> Tensor:
    visual_BPD = llava.connector.visual_tokens(llava.features(pixels_BCHW))
    (row_TD,) = llava.connector.embed(visual_BPD, [ids])
    language_model: Any = llava.connector.language_model
    return language_model(inputs_embeds=row_TD[None]).logits[0]  # type: ignore[no-any-return]


@torch.no_grad()
def theirs(folder: Path, ids: list[int], pixels_BCHW: Tensor, tokens: int) -> Tensor:
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(processor[f"image_{key}"])[None, :, None, None] for key in ("mean", "std"))
    spread = [part for token in ids for part in ([IMAGE] * tokens if token == IMAGE_TOKEN else [token])]
    logits_BTV = model(input_ids=torch.tensor([spread]), pixel_values=(pixels_BCHW - mean) / std).logits
    return logits_BTV[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_public_llava_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    folder = write(name, tmp_path / "model")
    llava = load_checkpoint(read(folder, name))
    template = TEMPLATES.get(CONVERSATIONS.get(name, "vicuna_v1_short"))
    tokens = tokenize(llava.tokenizer, pieces(template, [(f"{IMAGE_MARKER}\nIs there a red circle?", None)]))
    ids = list(tokens.ids)
    assert ids.count(IMAGE_TOKEN) == 1
    side = llava.image_size
    pixels_BCHW = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    found_TV, expected_TV = ours(llava, ids, pixels_BCHW), theirs(folder, ids, pixels_BCHW, 4)
    assert float(expected_TV.std()) > 0.1
    torch.testing.assert_close(found_TV, expected_TV, rtol=1e-4, atol=1e-4)
    assert (ours(llava, ids, 1 - pixels_BCHW) - found_TV).abs().max() > 1e-2, "the image makes no difference"


@pytest.mark.parametrize(
    "name", ["llava-hf/llava-1.5-7b-hf", "llava-hf/llava-interleave-qwen-0.5b-hf", "xtuner/llava-phi-3-mini-hf"]
)
def test_a_public_llava_is_attacked(name: str, tmp_path: Path) -> None:
    spec = pin_checkpoint(read(write(name, tmp_path / "model"), name))
    worker = Victim(load_checkpoint(spec), torch.device("cpu"))
    benchmark = replace(BENCHMARKS.get("easy_vqa"), samples=SAMPLES)
    metric = METRICS.get(benchmark.task.metric)
    protocol = in_precision(PROTOCOLS.get("paper_ensemble_3steps"), PRECISIONS[torch.float32])

    def records(samples: list[Sample], epsilon: float) -> list[dict[str, Any]]:
        state = metric.prepare([sample.references for sample in samples])
        evaluation = EvalSpec("any", spec, spec.encoders, benchmark, within(protocol, epsilon), SAMPLES)
        found = evaluate_shard(worker, samples, [evaluation], metric, state)
        return [row for _, table in found for row in table.to_pylist()]

    samples = decode_shard(shard("easy_vqa", SAMPLES), spec.encoders[0].image_size)
    # Random weights know no answer; what they say is made the right one, so that there is something to beat.
    said = [row["clean_prediction"] for row in records(samples, 0.0)]
    samples = [replace(sample, references=(answer,) * 10) for sample, answer in zip(samples, said, strict=True)]
    attacked = [row for row in records(samples, 8.0) if row["clean_score"] > 0]
    assert attacked, "there was nothing to beat"
    assert [row["error"] for row in attacked] == [None] * len(attacked)
    assert all(row["steps"] > 0 and row["loss_best"] > row["loss_clean"] for row in attacked)
    assert all(row["linf"] <= 8.0 for row in attacked)


NOT_READ: dict[str, tuple[dict[str, Any], str]] = {
    "llava-hf/llava-v1.6-mistral-7b-hf": ({"model_type": "llava_next"}, r"'llava_next' \(it looks at several crops"),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": ({"model_type": "llava_onevision"}, r"several crops .* \(anyres\)"),
    "llava-hf/vip-llava-7b-hf": (
        {"model_type": "vipllava", "vision_feature_layers": [-2, -5, -8, -11, 6]}, "tokens of five layers at once",
    ),
    "Salesforce/instructblip-vicuna-7b": ({"model_type": "instructblip", "qformer_config": {}}, "a Q-Former stands"),
    "tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B": (
        {"model_type": "tinyllava", "auto_map": {"AutoConfig": "configuration.TinyLlavaConfig"}},
        r"computed by code that comes with it \(configuration.TinyLlavaConfig\), which is not run",
    ),
    "mistral-community/pixtral-12b": (
        {"vision_config": {"model_type": "pixtral", "image_size": 1024, "patch_size": 16}}, "tower is a 'pixtral'",
    ),
    "unsloth/llava-1.5-7b-hf-bnb-4bit": (
        {"quantization_config": {"quant_method": "bitsandbytes"}}, r"its weights are quantised \(bitsandbytes\)",
    ),
    "another projector": ({"projector_hidden_act": "relu"}, "a projector with relu and bias=True is not supported"),
    "several layers": ({"vision_feature_layer": [-2, -5]}, r"vision_feature_layer \[-2, -5\] is not supported"),
    "class tokens": ({"vision_feature_select_strategy": "full"}, "full of a clip_vision_model is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_READ)
def test_what_cannot_run_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    changes, message = NOT_READ[name]
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["llava-hf/llava-1.5-7b-hf"], **changes}))
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_vicunas_template_is_only_taken_for_what_may_be_a_vicuna(tmp_path: Path) -> None:
    """xtuner stores Phi-3 as a Llama of 32064 tokens: the name says nothing, its end token and its template do."""
    name = "xtuner/llava-phi-3-mini-hf"
    folder = write(name, tmp_path / "phi")
    with pytest.raises(UserError, match="say which conversation template it was trained with"):
        read_checkpoint(str(folder))
    text = {**CONFIGS[name]["text_config"], "eos_token_id": 448}
    other = write(name, tmp_path / "end", text_config=text)
    tokenizer_of(None, []).save_pretrained(other)
    for file in other.glob("chat_template*"):
        file.unlink()
    with pytest.raises(UserError, match="say which conversation template it was trained with"):
        read_checkpoint(str(other))
    vicuna = write("llava-hf/llava-1.5-7b-hf", tmp_path / "vicuna")
    assert read_checkpoint(str(vicuna)).conversation == "vicuna_v1"
    written = "{% for m in messages %}{{ m['role'].upper() + ': ' }}{{ m.content }} {% endfor %}"
    (vicuna / "chat_template.jinja").write_text(written)  # as transformers saves it today
    assert read_checkpoint(str(vicuna)).conversation == "vicuna_v1"
