"""Checkpoints made elsewhere: what the original code computes on them, and what is wrong with bad ones."""

import ctypes
import dataclasses
import gc
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from rllava.encoders import EncoderSpec, encoder_spec
from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.model.checkpoint import check_checkpoint, load_checkpoint, read_checkpoint
from rllava.model.checkpoint.original import PAIRS, SLOTS, slots
from rllava.model.checkpoint_spec import pin_checkpoint
from rllava.model.llava import Llava
from rllava.weights import hash_of
from tests.model.checkpoints import (
    GIANT,
    GIANT_PROJECTOR,
    GOLDEN,
    PROMPTS,
    logits,
    pixels,
    prompts,
    save,
    tokenizer,
    write_checkpoint,
    write_language_model,
    write_tower,
)

SIDES = ("alone", "left", "right")


def load(folder: Path, **options: Any) -> Llava:
    return load_checkpoint(read_checkpoint(str(folder)), **options)


def towers(root: Path) -> list[EncoderSpec]:
    return [encoder_spec(str(write_tower(name, root))) for name in ("first", "second")]


def assert_golden(llava: Llava, what: str) -> None:
    for side in SIDES:
        for found_TV, expected_TV in zip(logits(llava, side), GOLDEN[what][side], strict=True):
            torch.testing.assert_close(found_TV, torch.tensor(expected_TV), rtol=0, atol=5e-6)
    # The original puts a beginning token before what it generates.
    expected = [llava.tokenizer.decode(ids[1:], skip_special_tokens=True).strip() for ids in GOLDEN[what]["greedy"]]
    assert any(expected)
    assert llava.generate(pixels(), prompts(), GOLDEN["new_tokens"]) == expected
    alone = [llava.generate(pixels()[b : b + 1], prompts()[b : b + 1], GOLDEN["new_tokens"]) for b in range(2)]
    assert [text for texts in alone for text in texts] == expected


@pytest.mark.parametrize("kind", ["whole", "sharded", "bin"])
def test_logits_and_answers_are_the_original_codes(kind: str, tmp_path: Path) -> None:
    assert_golden(load(write_checkpoint(kind, tmp_path)), "single")


def test_projectors_alone_take_their_language_model_from_its_folder(tmp_path: Path) -> None:
    folder, language_model = write_checkpoint("projector", tmp_path), write_language_model(tmp_path)
    spec = read_checkpoint(str(folder), language_model=str(language_model))
    assert spec.format == "projector"
    assert_golden(load_checkpoint(spec), "single")
    with pytest.raises(UserError, match=r"projectors alone; give the folder of its language model"):
        read_checkpoint(str(folder))


def test_the_towers_of_robust_llava_are_interleaved_as_published(tmp_path: Path) -> None:
    folder = write_checkpoint("whole", tmp_path, more=GIANT_PROJECTOR, **GIANT)
    llava = load(folder, encoders=towers(tmp_path))
    assert_golden(llava, "ensemble")
    first, second = GOLDEN["single"]["alone"][0], GOLDEN["ensemble"]["alone"][0]
    assert len(second) == len(first) + 4, "the golden ensemble has no second tower"


def test_projectors_of_several_towers_come_from_files_of_their_own(tmp_path: Path) -> None:
    folder = write_checkpoint("projector", tmp_path, **GIANT)
    with pytest.raises(UserError, match=r"advxl_giant_mm_projector.bin is missing"):
        read_checkpoint(str(folder), language_model=str(write_language_model(tmp_path)))
    torch.save(GIANT_PROJECTOR, folder / "advxl_giant_mm_projector.bin")
    spec = read_checkpoint(str(folder), language_model=str(tmp_path / "language_model"))
    assert_golden(load_checkpoint(spec, towers(tmp_path)), "ensemble")


def test_flags_name_the_encoders_their_order_and_the_normalisation_as_released() -> None:
    for pair in PAIRS:
        assert slots({slot.flag: True for slot in reversed(pair)}, "") == pair
    for slot in SLOTS:
        assert slots({slot.flag: True}, "") == (slot,)
    assert [slot.projector for slot in slots({}, "")] == ["mm_projector"]
    with pytest.raises(UserError, match=r"use_advxl_giant_encoder, use_ares_vitb_at_encoder are set together"):
        slots({"use_advxl_giant_encoder": True, "use_ares_vitb_at_encoder": True}, "")


def test_a_released_pair_is_read_without_its_weights(tmp_path: Path) -> None:
    flags = {"use_advxl_giant_encoder": True, "use_advxl_huge_encoder": True}
    spec = read_checkpoint(str(write_checkpoint("whole", tmp_path, **flags)))
    assert [encoder.name for encoder in spec.encoders] == [
        "advxl-g[normalization=as_released]",
        "advxl-h[normalization=as_released]",
    ]
    assert {encoder.mean for encoder in spec.encoders} == {encoder_spec("clip-l-336").mean}
    assert spec.projectors == ("advxl_giant_mm_projector", "advxl_huge_mm_projector")
    (tmp_path / "other").mkdir()
    clip = read_checkpoint(
        str(write_checkpoint("whole", tmp_path / "other", mm_vision_tower="openai/clip-vit-large-patch14-336"))
    )
    assert [encoder.name for encoder in clip.encoders] == ["clip-l-336"]


def test_another_encoder_of_the_same_width_can_be_plugged_in(tmp_path: Path) -> None:
    spec = read_checkpoint(str(write_checkpoint("whole", tmp_path)))
    own, other = load_checkpoint(spec), load_checkpoint(spec, towers(tmp_path)[1:])
    expected_BPD = other.encoders[0](pixels())
    torch.testing.assert_close(other.features(pixels())[0], expected_BPD)
    assert (logits(own, "alone")[0] - logits(other, "alone")[0]).abs().max() > 0.1
    with pytest.raises(UserError, match="has 1 projectors; give as many encoders, not 2"):
        load_checkpoint(spec, towers(tmp_path))
    with pytest.raises(UserError, match="width 128, but its projector takes 24"):
        load_checkpoint(spec, [encoder_spec("tiny-clip")])


def test_a_fingerprint_means_one_set_of_weights_wherever_they_lie(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tower = str(write_tower("first", tmp_path))
    specs = [
        pin_checkpoint(read_checkpoint(str(write_checkpoint("whole", tmp_path / part, mm_vision_tower=tower))))
        for part in ("a", "b")
    ]
    assert all(hash_of(encoder) for encoder in specs[0].encoders)
    # config.json names the tower's folder, so only equal settings are equal checkpoints.
    assert fingerprint(specs[0]) == fingerprint(specs[1])
    file = tmp_path / "b" / "whole" / "model.safetensors"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.raises(UserError, match="its files changed since they were read"):
        load_checkpoint(specs[1])
    assert fingerprint(pin_checkpoint(read_checkpoint(str(file.parent)))) != fingerprint(specs[0])


def test_weights_are_cast_and_moved_but_rotary_frequencies_are_not_rounded(tmp_path: Path) -> None:
    llava = load(write_checkpoint("sharded", tmp_path), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in llava.parameters()} == {torch.bfloat16}
    frequencies = {name: buffer.dtype for name, buffer in llava.named_buffers() if "inv_freq" in name}
    assert frequencies
    assert set(frequencies.values()) == {torch.float32}
    assert not any(parameter.requires_grad for parameter in llava.parameters())
    assert not any(value.is_meta for value in llava.state_dict().values())


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_checkpoint("bin", tmp_path)
    with open(folder / "pytorch_model-00002-of-00005.bin", "wb") as file:
        pickle.dump({"model.norm.weight": _Code()}, file)
    with pytest.raises(UserError, match="pickle that wants to run code and was not opened"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["whole", "bin"])
def test_a_truncated_file_is_named(kind: str, tmp_path: Path) -> None:
    folder = write_checkpoint(kind, tmp_path)
    file = sorted(folder.glob("*.bin" if kind == "bin" else "*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match=rf"{file.name} is damaged"):
        load(folder)


def test_missing_extra_and_misshaped_keys_are_listed_in_one_error(tmp_path: Path) -> None:
    more = {"model.norm.weight": torch.zeros(7), "model.surplus": torch.zeros(1), "image_newline": torch.zeros(1)}
    folder = write_checkpoint("whole", tmp_path, more=more, less=("lm_head.weight", "model.mm_projector.2.bias"))
    with pytest.raises(UserError) as raised:
        load(folder)
    for part in (
        "missing language_model.lm_head.weight",
        "missing projectors.0.2.bias",
        "unexpected model.surplus",
        "unexpected image_newline",
        "model.norm.weight has shape [7], expected [32]",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava_mpt"}, "unknown model_type 'llava_mpt'; known: llava, llava_llama"),
        ({"mm_patch_merge_type": "spatial_unpad"}, r"mm_patch_merge_type\) = 'spatial_unpad' is not supported"),
        ({"mm_use_im_start_end": True}, r"mm_use_im_start_end\) = True is not supported"),
        ({"unfreeze_mm_vision_tower": True}, "a trained vision tower"),
        ({"mm_vision_tower": "nobody/nothing"}, "its vision tower nobody/nothing is not here; copy that folder"),
        ({"mm_vision_tower": None}, "names no mm_vision_tower"),
        ({"vision_config": {}, "model_type": "llava_next"}, "unknown model_type 'llava_next'"),
        ({"mm_projector_type": "mlp2x_relu"}, "unknown projector 'mlp2x_relu'"),
        ({"hidden_size": 30}, r"no language model of type 'llama' can be built \(.*30"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_checkpoint("whole", tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_folder_without_tokenizer_without_weights_or_without_configuration_says_so(tmp_path: Path) -> None:
    folder = write_checkpoint("sharded", tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer; copy tokenizer.json"):
        read_checkpoint(str(folder))
    tokenizer().save_pretrained(folder)
    (folder / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00005.safetensors of model.safetensors.index.json is missing"):
        read_checkpoint(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no readable config.json"):
        read_checkpoint(str(folder))


def test_a_hub_name_says_where_to_copy_the_files_when_the_hub_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=rf"copy its files \(config.json, weights, tokenizer\) to {tmp_path}/org/name"):
        read_checkpoint("org/name")
    with pytest.raises(UserError, match=r"there is no such folder$"):
        read_checkpoint(str(tmp_path / "none"))
    (tmp_path / "org").mkdir()
    write_checkpoint("whole", tmp_path).rename(tmp_path / "org" / "name")
    spec = read_checkpoint("org/name")
    assert (spec.name, spec.weights) == ("name", ("hub:org/name",))
    assert logits(load_checkpoint(spec), "alone")[0].shape[0] == len(PROMPTS[0]) + 3


def test_a_language_model_that_is_no_llama_needs_a_named_template(tmp_path: Path) -> None:
    folder = write_checkpoint("whole", tmp_path, model_type="llava_mistral")
    with pytest.raises(
        UserError, match=r"say which conversation template .*--conversation .*; its language .* mistral"
    ):
        read_checkpoint(str(folder))
    assert read_checkpoint(str(folder), conversation="vicuna_v1").conversation == "vicuna_v1"
    with pytest.raises(UserError, match="did you mean vicuna_v1"):
        read_checkpoint(str(folder), conversation="vicuna_v2")


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 128320}, {"_name_or_path": "meta-llama/Llama-2-7b-chat-hf"}], ids=["Llama 3", "Llama 2"]
)
def test_a_llama_that_is_no_vicuna_needs_a_named_template(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = write_checkpoint("whole", tmp_path, **changes)
    with pytest.raises(UserError, match="say which conversation template"):
        read_checkpoint(str(folder))
    assert read_checkpoint(str(folder), conversation="llava_llama_2").conversation == "llava_llama_2"


def test_towers_of_every_slot_within_a_checkpoint_are_left_where_they_are(tmp_path: Path) -> None:
    """Robust-LLaVA's attributes: ``vision_tower``, ``dino_tower``, ``advxl_giant_tower``, ``ares_vitb_at_tower``, …."""
    names = [slot.projector.replace("mm_projector", "tower") for slot in SLOTS[1:]]
    more = {f"model.{name}.model.blocks.0.norm1.weight": torch.zeros(3) for name in names}
    assert_golden(load(write_checkpoint("whole", tmp_path, more=more)), "single")


def test_a_checkpoint_is_looked_into_without_reading_its_weights(tmp_path: Path) -> None:
    folder = write_checkpoint("whole", tmp_path)
    spec = read_checkpoint(str(folder))
    check_checkpoint(spec, spec.encoders)
    with pytest.raises(UserError, match="has 1 projectors; give as many encoders, not 2"):
        check_checkpoint(spec, towers(tmp_path))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    with pytest.raises(UserError, match="has no end token; set eos_token"):
        check_checkpoint(spec, spec.encoders)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"\.safetensors is damaged"):
        check_checkpoint(spec, spec.encoders)


def test_settings_of_a_language_model_that_begin_with_use_are_its_own(tmp_path: Path) -> None:
    """A projector beside the folder of a language model: nothing of its configuration is LLaVA's."""
    folder = write_checkpoint("projector", tmp_path)
    language_model = write_language_model(tmp_path)
    file = language_model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_parallel_residual": False, "image_scale": 2}))
    spec = read_checkpoint(str(folder), language_model=str(language_model))
    config: Any = load_checkpoint(spec).connector.language_model.config
    assert (config.use_parallel_residual, config.image_scale) == (False, 2)


def resident_bytes(entry: str) -> int:
    """Of this process: ``VmRSS``, or ``VmHWM`` for the most since it was set back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_loading_needs_no_second_copy_in_host_memory(kind: str, tmp_path: Path) -> None:
    width, inner, layers, words = 512, 2048, 6, 4000
    folder = write_checkpoint("whole", tmp_path, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
                              vocab_size=words)  # fmt: skip
    (folder / "model.safetensors").unlink()
    shapes = {"lm_head.weight": (words, width), "model.embed_tokens.weight": (words, width)}
    shapes |= {"model.norm.weight": (width,), "model.mm_projector.0.weight": (width, 24)}
    shapes |= {"model.mm_projector.2.weight": (width, width)}
    shapes |= {f"model.mm_projector.{place}.bias": (width,) for place in (0, 2)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for part, rows in (("q", width), ("k", width // 2), ("v", width // 2), ("o", width)):
            shapes[f"{name}.self_attn.{part}_proj.weight"] = (rows, width)
        shapes |= {f"{name}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{name}.{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    # One file in half precision: mapped as a whole, it would take half as much as the model again.
    state = {key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}
    save({"model.safetensors" if kind == "safetensors" else "pytorch_model.bin": state}, folder)
    del state
    spec = read_checkpoint(str(folder))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that other tests left would be taken before new
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes("VmRSS")
    llava = load_checkpoint(spec)
    grown = resident_bytes("VmHWM") - before
    size = sum(value.numel() * value.element_size() for value in llava.state_dict().values())
    assert size > 100e6
    assert 0.8 < grown / size < 1.3


def test_specs_are_frozen(tmp_path: Path) -> None:
    spec = read_checkpoint(str(write_checkpoint("whole", tmp_path)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]
