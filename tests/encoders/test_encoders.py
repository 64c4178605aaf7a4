"""The registry of encoders, their promises, and the errors of their weights."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rllava.encoders import build_encoder, encoder_names, encoder_spec, register
from rllava.encoders.base import EncoderSpec
from rllava.errors import UserError
from rllava.pinned import Pinned
from rllava.weights import weights_path

HERE = [name for name in encoder_names() if not encoder_spec(name).origin]
"""Registered encoders whose weights need not be fetched: the shipped ones, and any that a reader adds."""


TINY = encoder_spec("tiny-clip")


def spec_with(path: Path, **changes: object) -> EncoderSpec:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dataclasses.replace(encoder_spec("tiny-clip"), weights=Pinned(str(path), digest), **changes)


@pytest.mark.parametrize("name", HERE)
def test_every_encoder_keeps_its_spec_and_passes_gradients_to_the_pixels(name: str) -> None:
    spec = encoder_spec(name)
    encoder = build_encoder(spec)
    generator = torch.Generator().manual_seed(0)
    pixels_BCHW = torch.rand(3, 3, spec.image_size, spec.image_size, generator=generator).requires_grad_(True)
    tokens_BPD = encoder(pixels_BCHW)
    assert tokens_BPD.shape == (3, spec.tokens, spec.width)
    (gradient_BCHW,) = torch.autograd.grad(tokens_BPD.square().sum(), pixels_BCHW)
    assert float((gradient_BCHW != 0).float().mean()) > 0.99
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("name", HERE)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    spec = encoder_spec(name)
    encoder = build_encoder(spec).double()
    pixels_BCHW = torch.rand(4, 3, spec.image_size, spec.image_size, dtype=torch.float64).requires_grad_(True)
    together_BPD = encoder(pixels_BCHW)
    (gradient_BCHW,) = torch.autograd.grad(together_BPD.square().sum(), pixels_BCHW)
    for sample in range(4):
        alone_BCHW = pixels_BCHW[sample : sample + 1].detach().requires_grad_(True)
        alone_BPD = encoder(alone_BCHW)
        (alone_gradient_BCHW,) = torch.autograd.grad(alone_BPD.square().sum(), alone_BCHW)
        torch.testing.assert_close(alone_BPD[0], together_BPD[sample], rtol=0, atol=1e-10)
        torch.testing.assert_close(alone_gradient_BCHW[0], gradient_BCHW[sample], rtol=0, atol=1e-10)


def test_perturbations_are_normalised_in_their_own_precision() -> None:
    encoder = build_encoder(encoder_spec("tiny-clip")).half()
    seen = []
    encoder.features = lambda normalised: seen.append(normalised) or normalised  # type: ignore[method-assign]
    pixels_BCHW = torch.rand(1, 3, 64, 64)
    encoder(pixels_BCHW)
    expected = ((pixels_BCHW - 0.5) / 0.5).half()
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=0)


def test_unknown_names_are_answered_with_near_matches() -> None:
    with pytest.raises(UserError, match=r"unknown encoder 'tiny-clp'; did you mean tiny-clip"):
        encoder_spec("tiny-clp")


def test_registering_twice_or_with_a_grammar_character_is_refused() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        register(encoder_spec("tiny-clip"))
    with pytest.raises(ValueError, match="meaning in candidate names"):
        register(dataclasses.replace(encoder_spec("tiny-clip"), name="a+b"))


def test_a_missing_file_another_hash_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not exist; put them there"):
        build_encoder(
            dataclasses.replace(encoder_spec("tiny-clip"), weights=Pinned(str(tmp_path / "none.safetensors")))
        )
    with pytest.raises(UserError, match=r"sha256 .*, expected 0000"):
        build_encoder(
            dataclasses.replace(encoder_spec("tiny-clip"), weights=Pinned("asset:tiny-clip.safetensors", "0" * 64))
        )
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(weights_path("asset:tiny-clip.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or no weights file"):
        build_encoder(spec_with(torn))


def test_missing_extra_and_misshaped_keys_are_listed(tmp_path: Path) -> None:
    state = load_file(weights_path("asset:tiny-clip.safetensors"))
    del state["norm.bias"]
    state["surplus"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(7)
    path = tmp_path / "other.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match=r"missing norm.bias; unexpected surplus; norm.weight has shape \[7\]"):
        build_encoder(spec_with(path))
