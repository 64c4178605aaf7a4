"""Counts of models beside what is known about them: arithmetic, PyTorch's own counters, real runs."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plan_memory import TEXTS, TRACKED, parts, seven_b, step, tracked
from rllava.counting import CPU_ATTENTION, Pass, at_size, emptied, parameters_of, run_pass, without_content
from rllava.encoders import encoder_spec
from rllava.footprint import Llava, Parameters, Texts, attack_step, parameters, step_flops, train_step, training_states
from rllava.model.language import LANGUAGE_MODELS, TINY_LLAMA, LanguageModelSpec
from rllava.model.shapes import shape_of
from rllava.pinned import Pinned
from rllava.recipes.paper import llava_stages
from rllava.specs import Stage


def tiny(*names: str) -> Llava:
    shape = shape_of(TINY_LLAMA)
    assert shape is not None
    return Llava(tuple(map(encoder_spec, names)), shape, "mlp2x_gelu")


def test_a_linear_layer_is_counted_by_hand() -> None:
    with torch.device("meta"):
        layer = nn.Linear(64, 32, bias=False).requires_grad_(False)
    with without_content():
        layer = emptied(layer, torch.float16)
        found = run_pass(layer, torch.empty(10, 64, dtype=torch.float16, requires_grad=True), layer)
    assert parameters_of(layer) == 64 * 32
    assert (found.forward, found.backward) == (2 * 10 * 64 * 32, 2 * 10 * 64 * 32)  # weights get no gradient
    assert found.kept == 2 * 10 * 32  # the output alone: the way back to the input needs the weight, which was there


def test_sizes_between_and_beyond() -> None:
    assert at_size(Pass(2, 4, 6, 8), Pass(3, 6, 9, 12), (2, 3), 32) == Pass(32, 64, 96, 128)


def test_published_sizes() -> None:
    found = parameters(seven_b("clip-l-336"))
    assert found.language_model == 6_738_415_616  # Llama 2 7B
    assert found.projectors == 20_979_712  # LLaVA 1.5's
    assert found.encoders == pytest.approx(303.5e6 * 23 / 24, rel=0.02)  # without the last of 24 layers


@pytest.mark.parametrize("names", [("tiny-clip",), ("tiny-clip", "tiny-advxl")])
def test_operations_are_those_of_pytorchs_counter_on_the_real_step(names: tuple[str, ...]) -> None:
    llava = tiny(*names)
    encoders, connector = parts(llava, torch.float32, fake=False)
    pixels_1CHW = torch.rand(1, 3, 64, 64, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        # A copy: the counter's hooks on the inputs of modules stop at a leaf.
        step(encoders, connector, pixels_1CHW.clone(), torch.float32)
    # The real step encodes its prefix, which an attack does once for all.
    prefix = 2 * TEXTS.before * (decoder_parameters(llava))
    assert counter.get_total_flops() == pytest.approx(step_flops(llava, TEXTS) + prefix, rel=0.03)


def decoder_parameters(llava: Llava) -> int:
    """All but embeddings and head, which see few tokens or none."""
    config = llava.language_model.config
    return parameters(llava).language_model - config.vocab_size * llava.width * (1 if config.tie_word_embeddings else 2)


def test_memory_of_7b_is_that_of_pytorchs_tracker() -> None:
    llava = seven_b("clip-l-336")
    predicted, found = attack_step(llava, TRACKED, "float16", 1), tracked(llava, "float16", 1)
    assert predicted.memory == pytest.approx(found, rel=0.15)
    # Weights alone would agree as well: what comes on top has to agree by itself.
    assert predicted.activations == pytest.approx(found - 2 * parameters(llava).total, rel=0.15)


def test_zero_shares_what_it_shares() -> None:
    align, instruct = llava_stages()
    sizes = Parameters(300, 20, 6700)
    # ZeRO's own account, 16 bytes a trained parameter in half precision, shared among 8; and buffers of what there is.
    whole = (6720 * 2 + 6720 * 2 + 6720 * 12) / 8 + 300 * 2
    assert training_states(sizes, instruct, 8) == pytest.approx(whole + 2 * 6720 + 2 * 6720)
    assert training_states(sizes, align, 8) == pytest.approx(7020 * 2 + 20 * 2 / 8 + 20 * 12 / 8 + 20 * 2)


def test_training_costs_what_backward_passes_cost() -> None:
    llava = tiny("tiny-clip")
    align, instruct = (plain(stage) for stage in llava_stages())
    texts = Texts(0, 20, 10)
    frozen, whole = (train_step(llava, stage, texts, 1).flops for stage in (align, instruct))
    tokens = llava.visual_tokens + 30
    bare = 2.0 * (decoder_parameters(llava)) * tokens * 4  # of a micro-batch of 4
    assert whole - frozen == pytest.approx(bare, rel=0.1)  # the weights' gradients


def plain(stage: Stage) -> Stage:
    return replace(stage, precision="float32", micro_batch=4, global_batch=8, gradient_checkpointing=False)


def test_a_configuration_without_files_is_published_or_none() -> None:
    known = shape_of(TINY_LLAMA)
    assert known is not None
    assert known.source.startswith("config.json")
    here = shape_of(LANGUAGE_MODELS.get("vicuna-7b-v1.5"))
    assert here is not None
    assert here.config.num_hidden_layers == 32
    assert shape_of(LanguageModelSpec("nobody", Pinned("hub:nobody/knows"))) is None
