"""A language model in a GGUF file, written by the gguf library with llama.cpp's names and order of weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from rllava.errors import UserError
from rllava.model.conversation import TEMPLATES, pieces, tokenize
from rllava.model.language import TINY_LLAMA, LanguageModelSpec, check_language_model_files, load_language_model
from rllava.pinned import Pinned
from rllava.weights import pin_weights, weights_of, weights_path

CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def file_name(key: str) -> str:
    """llama.cpp's name of a weight of transformers' Llama."""
    if not key.startswith("model.layers."):
        outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
        return outer[key]
    number, inner = key.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{number}.{LAYER[inner]}.weight"


def rotated_in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: each rotated pair side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def original() -> tuple[Any, Any]:
    return load_language_model(TINY_LLAMA)


def write(file: Path, model: Any, tokenizer: Any, without: str = "") -> Path:
    """A Llama with a byte-level tokenizer as a GGUF file with a chat template, one weight left out if so named."""
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    stored = json.loads((weights_path(str(weights_of(TINY_LLAMA))) / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(config.vocab_size)))
    special = set(tokenizer.all_special_ids)
    writer.add_token_types([
        gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in range(config.vocab_size)
    ])  # fmt: skip
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in stored["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_chat_template(CHAT)
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" or file_name(key) == without:  # the head is tied
            continue
        weight = value.numpy()
        if "q_proj" in key or "k_proj" in key:
            weight = rotated_in_pairs(weight, config.num_attention_heads)
        writer.add_tensor(file_name(key), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def written(original: tuple[Any, Any], tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf", *original)


def test_a_gguf_file_gives_the_same_logits_and_words(original: tuple[Any, Any], written: Path) -> None:
    model, tokenizer = original
    spec = pin_weights(LanguageModelSpec("tiny", Pinned(str(written))))
    read, words = load_language_model(spec)
    id_1T = torch.tensor([tokenizer("what colour is the circle in the image?").input_ids])
    assert words("what colour is the circle in the image?").input_ids[-10:] == id_1T[0, -10:].tolist()
    torch.testing.assert_close(read(id_1T).logits, model(id_1T).logits)
    assert read.config.to_dict().get("quantization_config") is None
    tokens = tokenize(words, pieces(TEMPLATES.get("chat"), [("<image>\nwhat colour?", "red")]))
    assert "red" in words.decode([label for label in tokens.labels if label >= 0])


def test_a_gguf_file_that_lacks_a_weight_is_refused(original: tuple[Any, Any], tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", *original, without="blk.1.ffn_up.weight")
    with pytest.raises(UserError, match=r"language model 'tiny': .* missing model\.layers\.1\.mlp\.up_proj\.weight"):
        load_language_model(pin_weights(LanguageModelSpec("tiny", Pinned(str(tmp_path / "tiny.gguf")))))


@pytest.mark.parametrize("left", [3, 2000, -1000])
def test_a_torn_gguf_file_is_answered_in_one_line(left: int, written: Path) -> None:
    written.write_bytes(written.read_bytes()[:left])
    with pytest.raises(UserError, match=r"language model 'tiny': cannot load .*tiny\.gguf") as caught:
        load_language_model(pin_weights(LanguageModelSpec("tiny", Pinned(str(written)))))
    assert "\n" not in str(caught.value)


def test_planning_reads_the_words_of_a_gguf_file(written: Path) -> None:
    spec = pin_weights(LanguageModelSpec("tiny", Pinned(str(written))))
    check_language_model_files(spec, ("chat", "vicuna_v1"))
    written.write_bytes(written.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"language model 'tiny': the tokenizer in .*tiny\.gguf cannot be read"):
        check_language_model_files(replace(spec, weights=Pinned(str(written))), ("chat",))
