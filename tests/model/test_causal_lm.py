"""Families of language models: losses and answers are those of each family's own forward pass."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from rllava.encoders import build_encoder, encoder_spec
from rllava.errors import UserError
from rllava.model.causal_lm import (
    PLAIN,
    check_language_model,
    copy_in_precision,
    decoder,
    embedding_width,
    layers,
    logits,
)
from rllava.model.conversation import IGNORE, IMAGE_TOKEN, Tokens
from rllava.model.llava import Connector, Llava, build_projector
from tests.model.checkpoints import tokenizer

VOCABULARY = 64
SHARED = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
GATED = {**SHARED, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GATED),
    "mistral": ("MistralConfig", GATED),
    "qwen2": ("Qwen2Config", {**GATED, "tie_word_embeddings": True}),
    "gpt2": ("GPT2Config", {**SHARED, "n_positions": 128}),
    "gpt_neox": ("GPTNeoXConfig", {**SHARED, "intermediate_size": 48}),
    "opt": ("OPTConfig", {**SHARED, "ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 128}),
    "phi": ("PhiConfig", {**SHARED, "intermediate_size": 48}),
    "gemma": ("GemmaConfig", {**GATED, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**GATED, "head_dim": 8, "final_logit_softcapping": 0.5}),
    "cohere": ("CohereConfig", {**GATED, "logit_scale": 0.1}),
    "granite": ("GraniteConfig", {**GATED, "logits_scaling": 3.0}),
}
SAMPLES = (
    Tokens((1, 7, 9, IMAGE_TOKEN, 12, 30, 31, 2), (IGNORE,) * 5 + (30, 31, 2)),
    Tokens((1, 7, 9, IMAGE_TOKEN, 5, 17, 20, 22, 40, 41, 2), (IGNORE,) * 9 + (41, 2)),
)


def language_model(family: str) -> Any:
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # initial weights give logits near zero, which nothing caps
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def llava_with(family: str) -> Llava:
    model = language_model(family)
    spec = encoder_spec("tiny-clip")
    projector = build_projector("linear", spec.width, embedding_width(model))
    llava = Llava([build_encoder(spec)], Connector([projector], model), tokenizer(), "vicuna_v1")
    return llava.requires_grad_(False).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_answers_and_targets_are_those_of_the_familys_own_forward_pass(family: str) -> None:
    llava = llava_with(family)
    model: Any = llava.connector.language_model
    pixels_BCHW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    loss_B = llava.answer_loss(pixels_BCHW, SAMPLES)
    visual_BPD = llava.connector.visual_tokens(llava.features(pixels_BCHW))
    for b, sample in enumerate(SAMPLES):
        (embedded_TD,) = llava.connector.embed(visual_BPD[b : b + 1], [sample.ids])
        image = sample.ids.index(IMAGE_TOKEN)
        labels = [*sample.labels[:image], *[IGNORE] * visual_BPD.shape[1], *sample.labels[image + 1 :]]
        logits_TV = model(inputs_embeds=embedded_TD[None]).logits[0].float()
        expected = F.cross_entropy(logits_TV[:-1], torch.tensor(labels[1:]))
        torch.testing.assert_close(loss_B[b], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            llava.targets_loss(pixels_BCHW[b : b + 1], [sample])[0], expected, rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(
        llava.answer_loss(pixels_BCHW, SAMPLES, llava.encode_prefix(SAMPLES[0])), loss_B, rtol=1e-5, atol=1e-5
    )
    prompts = [Tokens(sample.ids[:5], (IGNORE,) * 5) for sample in SAMPLES]
    together = llava.generate(pixels_BCHW, prompts, 4)
    assert together == [llava.generate(pixels_BCHW[b : b + 1], prompts[b : b + 1], 4)[0] for b in range(2)]
    assert len(layers(model)) == 2
    check_language_model(model)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - PLAIN))
def test_scaled_logits_are_not_those_of_the_head(family: str) -> None:
    model = language_model(family)
    hidden_D = torch.randn(3, 32)
    assert (logits(model, hidden_D) - model.get_output_embeddings()(hidden_D)).abs().max() > 0.05


def test_a_family_that_does_something_unknown_to_its_logits_is_refused() -> None:
    model = language_model("llama")
    model.config.model_type = "unheard"
    check_language_model(model)
    inner = model.forward

    def scaled(*arguments: Any, **options: Any) -> Any:
        out = inner(*arguments, **options)
        out.logits = 2 * out.logits
        return out

    model.forward = scaled
    with pytest.raises(UserError, match="'unheard' scales its logits in a way that is not known here"):
        check_language_model(model)


def test_known_families_without_a_test_of_their_own_are_plain() -> None:
    assert {"llama", "mistral", "qwen2"} <= PLAIN
    for name, settings in (("Phi3Config", GATED), ("StableLmConfig", GATED), ("Qwen3Config", {**GATED, "head_dim": 8}),
                           ("Olmo2Config", GATED), ("SmolLM3Config", GATED), ("MixtralConfig", GATED)):  # fmt: skip
        model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings)).eval()
        assert model.config.model_type in PLAIN
        model.config.model_type = "unheard"  # known ones are not looked at
        with torch.no_grad():
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.3)
        check_language_model(model)
        assert decoder(model) is model.get_decoder()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_are_not_rounded_with_the_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    settings = {**GATED, "hidden_size": 128, "max_position_embeddings": 2048}
    model = AutoModelForCausalLM.from_config(transformers.LlamaConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((4 * parameter).to(dtype))  # nothing is left to round but positions
    id_1T = torch.randint(3, VOCABULARY, (1, 1200), generator=torch.Generator().manual_seed(1))

    def far(moved: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = moved.float()(id_1T).logits[0, -100:]
        return found

    expected_TV = far(copy.deepcopy(model))
    rounded = copy.deepcopy(model).to(dtype)
    assert (far(rounded) - expected_TV).abs().max() > 1e-2 * expected_TV.std(), "there is nothing to show"
    kept = copy_in_precision(model, dtype)
    assert {parameter.dtype for parameter in kept.parameters()} == {dtype}
    torch.testing.assert_close(far(kept), expected_TV, rtol=0, atol=1e-5)


def test_a_copy_in_half_precision_shares_nothing_and_keeps_tied_weights_tied() -> None:
    config = transformers.LlamaConfig(**GATED, tie_word_embeddings=True)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copied: Any = copy_in_precision(model, torch.float16)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    for key, value in copied.state_dict().items():
        assert value.dtype == torch.float16
        torch.testing.assert_close(value, before[key].half(), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
