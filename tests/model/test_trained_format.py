"""What a sweep trained, read back as a checkpoint."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rllava.encoders import EncoderSpec, build_encoder, encoder_spec
from rllava.errors import UserError
from rllava.model.assemble import build_connector, carry_encoders, load_llava, load_trained_encoders, save_stage
from rllava.model.checkpoint import load_checkpoint, read_checkpoint
from rllava.model.checkpoint.trained import PROJECTORS
from rllava.model.describe import describe
from rllava.model.export import Options, main
from rllava.recipes import PRESETS
from rllava.snapshot import MARKER
from rllava.specs import ModelSpec
from rllava.store import Store
from rllava.weights import pin_weights
from tests.model.test_export import encoder

PROMPT = "<image>\nwhat colour is the circle?"


def trained(root: Path, *encoders: EncoderSpec) -> tuple[ModelSpec, Store, Path]:
    """A LLaVA in storage as training leaves it; that it has learnt nothing makes no difference."""
    spec = replace(PRESETS.get("tiny").model, encoders=tuple(pin_weights(one) for one in encoders))
    store = Store(str(root / "results"))
    artifact = store.artifact("models", spec.name, spec)
    connector, tokenizer = build_connector(spec)
    save_stage(spec, 2, connector, connector.state_dict(), tokenizer, Path(artifact.path) / "stage2")
    store.finish(artifact, spec, {})
    return spec, store, Path(artifact.path)


@pytest.mark.parametrize("names", [("tiny-clip",), ("tiny-clip", "tiny-advxl")])
def test_it_is_the_model_that_the_sweep_attacks(names: tuple[str, ...], tmp_path: Path) -> None:
    spec, store, folder = trained(tmp_path, *map(encoder_spec, names))
    checkpoint = read_checkpoint(str(folder))
    assert checkpoint.format == "trained"
    assert checkpoint.encoders == spec.encoders
    assert checkpoint.conversation == spec.stages[-1].conversation
    own, read = load_llava(spec, store.filesystem, str(folder), spec.encoders), load_checkpoint(checkpoint)
    pixels_2CHW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = [own.tokens(PROMPT, answer) for answer in ("red", "a blue one")]
    assert read.tokens(PROMPT, "red") == tokens[0]
    assert torch.equal(own.answer_loss(pixels_2CHW, tokens), read.answer_loss(pixels_2CHW, tokens))
    prompts = [own.tokens(PROMPT)] * 2
    assert own.generate(pixels_2CHW, prompts, 5) == read.generate(pixels_2CHW, prompts, 5)
    assert describe(checkpoint).parameters == describe(spec).parameters


def test_it_is_exported_for_transformers(tmp_path: Path) -> None:
    spec, store, folder = trained(tmp_path, encoder("clip", tmp_path))
    main(Options(str(folder), tmp_path / "exported", dtype="float32"))
    own = load_llava(spec, store.filesystem, str(folder), spec.encoders)
    other = load_checkpoint(read_checkpoint(str(tmp_path / "exported"), conversation=own.conversation))
    side = own.image_size
    pixels_1CHW = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    losses = [llava.answer_loss(pixels_1CHW, [llava.tokens(PROMPT, "red")]) for llava in (own, other)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edited(folder: Path) -> None:
    described = json.loads((folder / "spec.json").read_text())
    del described["stages"]
    (folder / "spec.json").write_text(json.dumps(described))


def torn(folder: Path) -> None:
    file = folder / "stage2" / PROJECTORS
    file.write_bytes(file.read_bytes()[:-5])


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "unfinished": (without(MARKER), "lacks COMPLETE; run the sweep that trains it again"),
    "projectors": (without(f"stage2/{PROJECTORS}"), r"lacks stage2/projectors\.safetensors"),
    "description": (edited, r"has no readable spec\.json \(.*stages"),
    "torn": (torn, r"projectors\.safetensors is damaged"),
    "tokenizer": (without("stage2/language_model/tokenizer.json"), "has no tokenizer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    _, _, folder = trained(tmp_path, encoder_spec("tiny-clip"))
    change, message = WRONG[name]
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(read_checkpoint(str(folder)))
    assert "\n" not in str(caught.value)


def test_options_that_it_needs_not_are_refused(tmp_path: Path) -> None:
    _, _, folder = trained(tmp_path, encoder_spec("tiny-clip"))
    with pytest.raises(UserError, match="has a language model of its own; leave out elsewhere"):
        read_checkpoint(str(folder), language_model="elsewhere")
    with pytest.raises(UserError, match="'tiny-clip' cannot be exported"):
        main(Options(str(folder), tmp_path / "exported"))


def test_encoders_of_an_earlier_stage_are_handed_on(tmp_path: Path) -> None:
    spec = replace(PRESETS.get("tiny").model, encoders=(encoder_spec("tiny-clip"),))
    connector, tokenizer = build_connector(spec)
    tuned = {f"encoders.0.{key}": value + 1 for key, value in build_encoder(spec.encoders[0]).state_dict().items()}
    save_stage(spec, 1, connector, {**connector.state_dict(), **tuned}, tokenizer, tmp_path / "stage1")
    save_stage(spec, 2, connector, connector.state_dict(), tokenizer, tmp_path / "stage2")
    carry_encoders(tmp_path / "stage1", tmp_path / "stage2")
    built = build_encoder(spec.encoders[0])
    load_trained_encoders([built], tmp_path / "stage2")
    assert all(torch.equal(value, tuned[f"encoders.0.{key}"]) for key, value in built.state_dict().items())
