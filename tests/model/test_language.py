"""Language models in the formats in which they are published."""

from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers

from rllava.errors import UserError
from rllava.model.conversation import IMAGE_TOKEN, TEMPLATES, pieces, tokenize
from rllava.model.language import LanguageModelSpec, load_language_model
from rllava.weights import pin_weights


def write_like_vicuna(folder: Path) -> transformers.LlamaForCausalLM:
    """Pickled weights and a sentencepiece model, no tokenizer.json: as LLaVA 1.5's Vicuna is published."""
    text = folder / "text.txt"
    text.write_text("\n".join(f"the cat and the dog see image number {number} of a park" for number in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=320, model_type="bpe", byte_fallback=True,
        minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}'
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=320)).eval()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


def test_a_folder_like_vicunas_is_read(tmp_path: Path) -> None:
    written = write_like_vicuna(tmp_path)
    spec = pin_weights(LanguageModelSpec("vicuna", str(tmp_path)))
    model, tokenizer = load_language_model(spec)
    id_1T = torch.tensor([[1, 5, 9]])
    torch.testing.assert_close(model(id_1T).logits, written(id_1T).logits)
    tokens = tokenize(tokenizer, pieces(TEMPLATES.get("vicuna_v1"), [("<image>\nthe cat?", "the dog")]))
    assert tokens.ids[0] == tokenizer.bos_token_id
    assert tokens.ids.count(IMAGE_TOKEN) == 1
    labelled = [label for label in tokens.labels if label >= 0]
    assert tokenizer.decode(labelled[:-1]).strip() == "the dog"
    assert labelled[-1] == tokenizer.eos_token_id


def test_weights_that_changed_are_named(tmp_path: Path) -> None:
    write_like_vicuna(tmp_path)
    spec = pin_weights(LanguageModelSpec("vicuna", str(tmp_path)))
    with open(tmp_path / "tokenizer.model", "ab") as file:
        file.write(b"\n")
    with pytest.raises(UserError, match=r"language model 'vicuna': weights .* have sha256"):
        load_language_model(spec)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"cannot load .*; give the path of a folder with config\.json"):
        load_language_model(pin_weights(LanguageModelSpec("vicuna", str(tmp_path))))
