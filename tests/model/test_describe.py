"""What a LLaVA is said to cost, against counts of the real one and against published sizes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rllava.encoders import build_encoder, encode, encoder_spec
from rllava.errors import UserError
from rllava.model.assemble import build_connector
from rllava.model.checkpoint import load_checkpoint, read_checkpoint
from rllava.model.describe import Description, answer_logits, describe, describe_parts
from rllava.model.language import LanguageModelSpec
from rllava.model.llava import Connector
from rllava.pinned import Pinned
from rllava.recipes import PRESETS
from tests.model.checkpoints import GIANT, GIANT_PROJECTOR, write_checkpoint, write_tower

TEXT, ANSWER = 40, 5


def test_counts_are_those_of_the_real_model() -> None:
    specs = (encoder_spec("tiny-clip"), encoder_spec("tiny-advxl"))
    spec = dataclasses.replace(PRESETS.get("tiny").model, encoders=specs)
    described = describe(spec, text_tokens=TEXT, answer_tokens=ANSWER)
    encoders = [build_encoder(entry) for entry in specs]
    connector, _ = build_connector(spec)
    assert_counts(described, encoders, connector.eval().requires_grad_(False))
    assert described.tokens_per_image == 32


@pytest.mark.parametrize("several", [False, True])
def test_counts_of_a_checkpoint_are_those_of_the_loaded_one(several: bool, tmp_path: Path) -> None:
    more, flags = (GIANT_PROJECTOR, GIANT) if several else ({}, {})
    spec = read_checkpoint(str(write_checkpoint("whole", tmp_path, more=more, **flags)))
    encoders = [encoder_spec(str(write_tower(name, tmp_path))) for name in ("first", "second")[: len(spec.projectors)]]
    llava = load_checkpoint(spec, encoders)
    assert_counts(describe(spec, encoders, TEXT, ANSWER), llava.encoders, llava.connector)
    if not several:
        assert describe(spec, text_tokens=TEXT, answer_tokens=ANSWER) == describe(spec, encoders, TEXT, ANSWER)
        weights = next((tmp_path / "whole").glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-10])
        with pytest.raises(UserError, match="is damaged"):
            describe(spec)


def assert_counts(described: Description, encoders: Sequence[nn.Module], connector: Connector) -> None:
    """What is said, against counts of the real model."""
    real = sum(parameter.numel() for module in (*encoders, connector) for parameter in module.parameters())
    assert described.parameters == real
    assert described.bytes["bfloat16"] == 2 * real

    side = encoders[0].spec.image_size
    pixels_1CHW = torch.rand(1, 3, side, side, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counted:
            visual_1PD = connector.visual_tokens(encode(encoders, pixels_1CHW))
            words_1TD = torch.zeros(1, TEXT, visual_1PD.shape[-1])
            logits_1NV = answer_logits(connector, torch.cat([visual_1PD, words_1TD], dim=1), ANSWER)
        assert described.forward_flops == counted.get_total_flops()
        with counted:
            torch.autograd.grad(logits_1NV.sum(), pixels_1CHW)
    # FlopCounterMode starts anew when it is entered again.
    assert described.step_flops == described.forward_flops + counted.get_total_flops()


def test_a_7b_llava_has_its_published_size_and_the_cost_of_its_matrix_products(tmp_path: Path) -> None:
    transformers.LlamaConfig().save_pretrained(tmp_path)  # Llama-2-7B's and Vicuna's
    described = describe_parts(
        [encoder_spec("clip-l-336")], LanguageModelSpec("vicuna", Pinned(str(tmp_path))), text_tokens=64
    )
    assert described.language_model_parameters == 6_738_415_616
    assert round(described.projector_parameters / 1e6, 1) == 21.0  # section 3 of the protocol
    assert described.bytes["bfloat16"] / 1e9 == pytest.approx(14.1, abs=0.01)
    head = 32000 * 4096
    length, width, layers = 576 + 64, 4096, 32
    products = 2 * length * (described.language_model_parameters - 2 * head) + 2 * 8 * head
    attention = 4 * length**2 * width * layers
    tower = 2 * 577 * described.encoder_parameters[0] + 4 * 577**2 * 1024 * 23
    projector = 2 * 576 * described.projector_parameters
    expected = products + attention + tower + projector
    assert described.forward_flops == pytest.approx(expected, rel=2e-3)  # norms and embeddings have parameters too
    assert described.step_flops == pytest.approx(2 * expected, rel=0.03)
    assert "7050.3M" in str(described)


def test_a_language_model_that_is_not_here_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    spec = dataclasses.replace(
        LanguageModelSpec("vicuna-7b-v1.5", Pinned("vicuna")), origin="the hub's lmsys/vicuna-7b-v1.5"
    )
    with pytest.raises(
        UserError, match=rf"{tmp_path}/vicuna do not exist; put them there; they come from the hub's lmsys"
    ):
        describe_parts([encoder_spec("clip-l-336")], spec)
