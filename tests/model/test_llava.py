"""The LLaVA against transformers' own forward pass, and batch-N against batch-1."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllava.attacks import UniversalSettings, universal
from rllava.encoders import build_encoder, encoder_spec
from rllava.errors import UserError
from rllava.model.assemble import build_connector
from rllava.model.conversation import IMAGE_TOKEN, TEMPLATES, Tokens, pieces, tokenize
from rllava.model.llava import Llava
from rllava.recipes import PRESETS

QUESTIONS = (
    ("<image>\nwhat color is the shape?\nAnswer the question using a single word or phrase.", "red"),
    ("<image>\nis there a circle?", "a somewhat longer answer"),
    ("<image>\nProvide a short caption for this image.", "There is a teal triangle."),
    ("what?", "no image here"),
)


def make(*names: str, dtype: torch.dtype = torch.float64) -> Llava:
    specs = tuple(encoder_spec(name) for name in names)
    connector, tokenizer = build_connector(dataclasses.replace(PRESETS.get("tiny").model, encoders=specs))
    llava = Llava([build_encoder(spec) for spec in specs], connector, tokenizer, "vicuna_v1_short")
    return llava.to(dtype).requires_grad_(False).eval()


def conversation(llava: Llava, question: str, answer: str | None) -> Tokens:
    return tokenize(llava.tokenizer, pieces(TEMPLATES.get(llava.conversation), [(question, answer)]))


def pixels(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("names", [("tiny-clip",), ("tiny-clip", "tiny-advxl")])
def test_loss_is_that_of_transformers_on_the_spliced_sequence(names: tuple[str, ...]) -> None:
    llava = make(*names)
    sample = conversation(llava, *QUESTIONS[2])
    pixels_BCHW = pixels(1)
    table = llava.connector.language_model.get_input_embeddings()
    projected = [
        projector(encoder(pixels_BCHW))[0]
        for encoder, projector in zip(llava.encoders, llava.connector.projectors, strict=True)
    ]
    visual_PD = torch.stack(projected, 1).flatten(0, 1)
    place = sample.ids.index(IMAGE_TOKEN)
    words = [table(torch.tensor(part)) for part in (sample.ids[:place], sample.ids[place + 1 :])]
    labels = [*sample.labels[:place], *[-100] * len(visual_PD), *sample.labels[place + 1 :]]
    expected = llava.connector.language_model(
        inputs_embeds=torch.cat([words[0], visual_PD, words[1]])[None], labels=torch.tensor(labels)[None]
    ).loss
    torch.testing.assert_close(llava.answer_loss(pixels_BCHW, [sample])[0].float(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", [("tiny-clip",), ("tiny-clip", "tiny-advxl")])
def test_text_alone_is_the_language_models_own_and_leaves_projectors_a_gradient_of_zero(names: tuple[str, ...]) -> None:
    llava = make(*names)
    llava.connector.projectors.requires_grad_(True)
    sample = conversation(llava, *QUESTIONS[3])
    assert IMAGE_TOKEN not in sample.ids
    loss_B = llava.answer_loss(pixels(1), [sample])
    expected = llava.connector.language_model(
        input_ids=torch.tensor([sample.ids]), labels=torch.tensor([sample.labels])
    ).loss
    torch.testing.assert_close(loss_B[0].float(), expected, rtol=0, atol=1e-6)
    loss_B.sum().backward()
    gradients = [parameter.grad for parameter in llava.connector.projectors.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_ensemble_tokens_alternate() -> None:
    llava = make("tiny-clip", "tiny-advxl")
    features = llava.features(pixels(2))
    visual_BPD = llava.connector.visual_tokens(features)
    assert visual_BPD.shape == (2, 32, llava.connector.language_model.config.hidden_size)
    for place, (projector, tokens_BPD) in enumerate(zip(llava.connector.projectors, features, strict=True)):
        torch.testing.assert_close(visual_BPD[:, place::2], projector(tokens_BPD))


@pytest.mark.parametrize("names", [("tiny-clip",), ("tiny-tecoa4",), ("tiny-clip", "tiny-advxl")])
def test_loss_gradient_and_answer_do_not_depend_on_the_batch(names: tuple[str, ...]) -> None:
    llava = make(*names)
    pixels_BCHW = pixels(len(QUESTIONS)).requires_grad_(True)
    samples = [conversation(llava, *pair) for pair in QUESTIONS]
    loss_B = llava.answer_loss(pixels_BCHW, samples)
    (gradient_BCHW,) = torch.autograd.grad(loss_B.sum(), pixels_BCHW)
    prompts = [conversation(llava, question, None) for question, _ in QUESTIONS]
    answers = llava.generate(pixels_BCHW, prompts, 8)
    for b, sample in enumerate(samples):
        alone_BCHW = pixels_BCHW[b : b + 1].detach().requires_grad_(True)
        loss_1 = llava.answer_loss(alone_BCHW, [sample])
        torch.testing.assert_close(loss_1[0], loss_B[b], rtol=0, atol=1e-6)
        if IMAGE_TOKEN in sample.ids:
            (gradient_1CHW,) = torch.autograd.grad(loss_1.sum(), alone_BCHW)
            torch.testing.assert_close(gradient_1CHW[0], gradient_BCHW[b], rtol=1e-4, atol=1e-9)
        assert llava.generate(alone_BCHW, [prompts[b]], 8) == [answers[b]]
    assert float(gradient_BCHW[3].abs().max()) == 0, "a sample without image got an image gradient"


def test_generation_is_the_greedy_argmax_of_the_full_forward_pass() -> None:
    llava = make("tiny-clip")
    prompt = conversation(llava, QUESTIONS[2][0], None)
    pixels_BCHW = pixels(1)
    embedded = llava.connector.embed(llava.connector.visual_tokens(llava.features(pixels_BCHW)), [prompt.ids])[0]
    table = llava.connector.language_model.get_input_embeddings()
    ids: list[int] = []
    for _ in range(6):
        logits = llava.connector.language_model(inputs_embeds=embedded[None]).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == llava.tokenizer.eos_token_id:
            break
        embedded = torch.cat([embedded, table(torch.tensor([ids[-1]]))])
    assert llava.generate(pixels_BCHW, [prompt], 6) == [llava.tokenizer.decode(ids, skip_special_tokens=True).strip()]


TARGETS = ("There is a red circle.", "no", "a somewhat longer answer about a teal triangle", "There is a red square.")


@pytest.mark.parametrize("names", [("tiny-clip",), ("tiny-clip", "tiny-advxl")])
def test_targets_of_one_prompt_cost_one_encoding_and_lose_what_they_lose_alone(names: tuple[str, ...]) -> None:
    llava = make(*names)
    targets = [conversation(llava, QUESTIONS[2][0], answer) for answer in TARGETS]
    seen: list[int] = []
    llava.encoders[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    image_1CHW = pixels(1).requires_grad_(True)
    loss_N = llava.targets_loss(image_1CHW, targets)
    (gradient_1CHW,) = torch.autograd.grad(loss_N.sum(), image_1CHW)
    assert seen == [1]
    expected_N = llava.answer_loss(image_1CHW.expand(len(targets), -1, -1, -1), targets)
    (expected_1CHW,) = torch.autograd.grad(expected_N.sum(), image_1CHW)
    torch.testing.assert_close(loss_N, expected_N, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient_1CHW, expected_1CHW, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="different prompts"):
        llava.targets_loss(image_1CHW, [*targets, conversation(llava, QUESTIONS[0][0], "no")])


def test_one_image_makes_many_targets_likelier() -> None:
    llava = make("tiny-clip", dtype=torch.float32)
    targets = [conversation(llava, QUESTIONS[2][0], answer) for answer in TARGETS]
    image_CHW = pixels(1, torch.float32)[0]

    def likelihood(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
        return -llava.targets_loss(image_1CHW, [targets[n] for n in index_N.tolist()])

    settings = UniversalSettings(steps=12, batch=2, step_size=4)
    result = universal(likelihood, image_CHW, [1] * len(targets), settings, epsilon=32, seed=0)
    everyone_N = torch.arange(len(targets))
    with torch.no_grad():
        before, after = (float(likelihood(image[None], everyone_N).mean()) for image in (image_CHW, result.image_CHW))
    assert after > before + 0.05
    assert float((result.image_CHW - image_CHW).abs().max()) <= 32 / 255 + 1e-6


def test_long_sequences_are_cut() -> None:
    llava = make("tiny-clip")
    sample = conversation(llava, QUESTIONS[0][0], "red " * 30)
    with torch.no_grad():
        _, whole = llava.connector(llava.features(pixels(1)), [sample], 1 << 20)
        _, cut = llava.connector(llava.features(pixels(1)), [sample], 50)
    assert 0 < int(cut) < int(whole)


def test_swapping_and_combining_encoders_that_do_not_fit_is_refused() -> None:
    llava = make("tiny-clip")
    encoder = build_encoder(encoder_spec("tiny-clip"))
    encoder.spec = dataclasses.replace(encoder.spec, width=96)
    with pytest.raises(UserError, match="width 96, but its projector takes 128"):
        Llava([encoder], llava.connector, llava.tokenizer, "vicuna_v1_short")
    other = build_encoder(encoder_spec("tiny-clip"))
    other.spec = dataclasses.replace(other.spec, name="other", tokens=49)
    with pytest.raises(UserError, match=r"token counts differ \(tiny-clip 16, other 49\)"):
        Llava([build_encoder(encoder_spec("tiny-clip")), other], llava.connector, llava.tokenizer, "vicuna_v1_short")


def test_mean_is_over_answer_tokens_of_each_sample() -> None:
    llava = make("tiny-clip", dtype=torch.float32)
    samples = [conversation(llava, *pair) for pair in QUESTIONS[:2]]
    with torch.no_grad():
        summed_B, count_B = llava.connector(llava.features(pixels(2, torch.float32)), samples, 1 << 20)
        mean_B = llava.answer_loss(pixels(2, torch.float32), samples)
    assert count_B.tolist() == [sum(label != -100 for label in sample.labels) for sample in samples]
    torch.testing.assert_close(mean_B, summed_B / count_B)
    assert F.mse_loss(mean_B[0], mean_B[1]) > 0
