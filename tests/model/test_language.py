"""Language models in the formats in which they are published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers

from rllava.errors import UserError
from rllava.model.conversation import IMAGE_TOKEN, TEMPLATES, pieces, tokenize
from rllava.model.language import LanguageModelSpec, load_language_model
from rllava.pinned import Pinned
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
    spec = pin_weights(LanguageModelSpec("vicuna", Pinned(str(tmp_path))))
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
    spec = pin_weights(LanguageModelSpec("vicuna", Pinned(str(tmp_path))))
    with open(tmp_path / "tokenizer.model", "ab") as file:
        file.write(b"\n")
    with pytest.raises(UserError, match=r"language model 'vicuna': weights .* have sha256"):
        load_language_model(spec)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer; copy tokenizer\.json"):
        load_language_model(pin_weights(LanguageModelSpec("vicuna", Pinned(str(tmp_path)))))


class _Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("code ran",))


def rewritten(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    return lambda file: torch.save(change(torch.load(file)), file)


WRONG = {
    "missing": (
        rewritten(lambda state: {key: value for key, value in state.items() if ".mlp." not in key}),
        "missing model.layers.0.mlp.down_proj.weight; missing model.layers.0.mlp.gate_proj.weight",
    ),
    "extra": (rewritten(lambda state: state | {"model.other.weight": torch.zeros(2)}), "unexpected model.other.weight"),
    "mis-shaped": (
        rewritten(lambda state: state | {"model.norm.weight": torch.zeros(3)}),
        r"model.norm.weight has shape \[3\], expected \[16\]",
    ),
    "torn": (lambda file: file.write_bytes(file.read_bytes()[:3000]), "is damaged or no weights file"),
    "text": (lambda file: file.write_text("404: not found"), "is damaged or no weights file"),
    "code": (lambda file: torch.save({"model.norm.weight": _Runs()}, file), "wants to run code and was not opened"),
    "gone": (Path.unlink, "do not exist; put them there"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_weights_are_answered_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_like_vicuna(tmp_path)
    change, message = WRONG[name]
    change(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=message) as caught:
        load_language_model(pin_weights(LanguageModelSpec("vicuna", Pinned(str(tmp_path)))))
    assert "\n" not in str(caught.value)
    assert "language model 'vicuna'" in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


def test_torn_safetensors_are_answered_in_one_line(tmp_path: Path) -> None:
    write_like_vicuna(tmp_path).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"language model 'vicuna': .*model.safetensors is damaged"):
        load_language_model(pin_weights(LanguageModelSpec("vicuna", Pinned(str(tmp_path)))))


def test_buffers_that_older_releases_stored_are_no_surplus(tmp_path: Path) -> None:
    written = write_like_vicuna(tmp_path)
    rewritten(lambda state: state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})(
        tmp_path / "pytorch_model.bin"
    )
    model, _ = load_language_model(pin_weights(LanguageModelSpec("vicuna", Pinned(str(tmp_path)))))
    id_1T = torch.tensor([[1, 5, 9]])
    torch.testing.assert_close(model(id_1T).logits, written(id_1T).logits)
