"""What a LLaVA's phases take per sample: parameters, tokens, operations and memory, counted from specs alone.

Encoders, projectors and language model are counted one by one (:mod:`rllava.counting`) and put together: several
candidates share most of them. Layers of a language model are equal, so two sizes of it tell all.

Shapes: B batch, C channel, H/W image, P visual tokens, T sequence, D width.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rllava.counting import Pass, at_size, emptied, parameters_of, run_pass, without_content
from rllava.encoders import Encoder, EncoderSpec, input_size
from rllava.encoders.base import bare_encoder
from rllava.model.causal_lm import decoder, embedding_width, logits
from rllava.model.llava import Connector, build_projector, projector_depth
from rllava.model.shapes import Shape, bare_language_model
from rllava.specs import Stage
from rllava.training.loop import recompute_layers

BUCKET = 5e8
"""Elements that DeepSpeed gathers before it exchanges them (``reduce_bucket_size``)."""

LIVE = 1e9
"""Elements of weights that ZeRO 3 holds at a time beyond its share (``stage3_max_live_parameters``)."""

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Texts:
    """Lengths in tokens, on average over samples.

    Attributes:
        before: before the image; an attack encodes it once for all.
        after: between image and answer.
        answer: labelled, the end token included.
    """

    before: int
    after: int
    answer: int

    @property
    def length(self) -> int:
        """Of all text."""
        return self.before + self.after + self.answer


@dataclass(frozen=True)
class Llava:
    """Whose phases are counted.

    Attributes:
        projector: kind of projector.
    """

    encoders: tuple[EncoderSpec, ...]
    language_model: Shape
    projector: str

    @property
    def visual_tokens(self) -> int:
        """Of an image, all encoders together."""
        return sum(spec.tokens for spec in self.encoders)

    @property
    def width(self) -> int:
        """Of the language model."""
        width: int = self.language_model.config.hidden_size
        return width


@dataclass(frozen=True)
class Parameters:
    """How many there are of each part."""

    encoders: int
    projectors: int
    language_model: int

    @property
    def total(self) -> int:
        """Of the LLaVA."""
        return self.encoders + self.projectors + self.language_model


@dataclass(frozen=True)
class Cost:
    """Of one pass of some samples through a LLaVA.

    Attributes:
        flops: for all of them, forward and backward.
        weights: bytes that lie there all the time: weights, and in training gradients and the optimiser's state.
        activations: most bytes at a time on top.
    """

    flops: float
    weights: float
    activations: float

    @property
    def memory(self) -> float:
        """Bytes at the peak."""
        return self.weights + self.activations


def parameters(llava: Llava) -> Parameters:
    """Parameters of a LLaVA's parts."""
    return Parameters(
        sum(_encoder_parameters(spec) for spec in llava.encoders),
        sum(_projector_parameters(llava.projector, spec.width, llava.width) for spec in llava.encoders),
        _language_parameters(_key(llava.language_model)),
    )


def step_flops(llava: Llava, texts: Texts, gradient: bool = True) -> float:
    """Operations of one look of an attack at one sample; with a gradient, of the way back to the pixels as well."""
    size = input_size(llava.encoders)
    encoders = sum(_encoder_pass(spec, size, "float32", 1, gradient).flops for spec in llava.encoders)
    length = llava.visual_tokens + texts.after + texts.answer
    language = _language_flops(_key(llava.language_model), "attack" if gradient else "look", False)
    return encoders + _projector_flops(llava, 2 if gradient else 1) + language.at(length, texts.before, texts.answer)


def encoder_flops(llava: Llava, gradient: bool = True) -> float:
    """The encoders' part of :func:`step_flops`."""
    size = input_size(llava.encoders)
    return sum(_encoder_pass(spec, size, "float32", 1, gradient).flops for spec in llava.encoders)


def answer_flops(llava: Llava, texts: Texts, new_tokens: float) -> float:
    """Operations of an answer: the prompt, and every token after the first by itself.

    Args:
        new_tokens: that are generated.
    """
    prompt = step_flops(llava, Texts(0, texts.before + texts.after, 1), gradient=False)
    return prompt + 2.0 * parameters(llava).language_model * max(0.0, new_tokens - 1)


def attack_step(llava: Llava, texts: Texts, precision: str, batch: int) -> Cost:
    """One look of an attack with its way back to the pixels.

    Weights count in the precision of the step; a copy in another one comes on top.
    """
    size, width = input_size(llava.encoders), BYTES[precision]
    encoders = [_encoder_pass(spec, size, precision, batch, True) for spec in llava.encoders]
    length = llava.visual_tokens + texts.after + texts.answer
    key = _key(llava.language_model)
    language = _language_pass(key, length, texts.before, texts.answer, precision, batch, "attack")
    held = sum(found.kept for found in encoders) + _projected_bytes(llava, width, batch)
    # Ensembles go one by one through their encoders, and back in the reverse order.
    highest = max([held + language.peak, *(held + found.peak - found.kept for found in encoders)])
    pixels = 3 * size**2 * 4 * batch
    flops = step_flops(llava, texts) * batch
    return Cost(flops, parameters(llava).total * width, highest + 2 * pixels)


def answering_bytes(llava: Llava, texts: Texts, precision: str, batch: int, new_tokens: float) -> float:
    """What answers of some samples need on top of the weights: keys and values, and the prompt's last layer."""
    tokens = texts.before + texts.after + llava.visual_tokens + new_tokens
    config = llava.language_model.config
    inner = int(getattr(config, "intermediate_size", 4 * llava.width))
    layer = tokens * (4 * llava.width + 3 * inner) * BYTES[precision]
    return float(batch * (tokens * _cache_bytes(llava, BYTES[precision]) + layer + 4 * config.vocab_size))


def train_step(llava: Llava, stage: Stage, texts: Texts, workers: int) -> Cost:
    """One micro-batch of a training stage on one of its workers; the optimiser's step is counted in its memory."""
    precision, batch, width = stage.precision, stage.micro_batch, BYTES[stage.precision]
    trains_encoders, size = stage.rates.encoders is not None, input_size(llava.encoders)
    encoders = [_encoder_pass(spec, size, precision, batch, False, trains_encoders) for spec in llava.encoders]
    length = min(texts.length + llava.visual_tokens, stage.max_length)
    part = "all" if stage.rates.language_model is not None else "projectors"
    key, checkpointing = _key(llava.language_model), stage.gradient_checkpointing
    language = _language_pass(key, length, 0, texts.answer, precision, batch, part, checkpointing)
    held = _projected_bytes(llava, width, batch)
    held += sum(found.kept for found in encoders) if trains_encoders else 0.0
    highest = max([held + language.peak, *(held + found.peak for found in encoders)])
    flops = sum(found.flops for found in encoders) + batch * _projector_flops(llava, 3)
    flops += batch * _language_flops(key, part, checkpointing).at(length, 0, texts.answer)
    return Cost(flops, training_states(parameters(llava), stage, workers), highest + 3 * size**2 * 4 * batch)


def _projector_flops(llava: Llava, passes: int) -> float:
    """Of one sample: a product forward, one back to the tokens, one for the weights."""
    each = (_projector_parameters(llava.projector, spec.width, llava.width) * spec.tokens for spec in llava.encoders)
    return 2.0 * passes * sum(each)


def _projected_bytes(llava: Llava, width: int, batch: int) -> float:
    """Encoders' tokens, the projectors' layers in between, and what they are interleaved to."""
    layers_between = 2 * projector_depth(llava.projector)
    return batch * width * sum(spec.tokens * (spec.width + layers_between * llava.width) for spec in llava.encoders)


def training_states(found: Parameters, stage: Stage, workers: int) -> float:
    """Bytes of weights, gradients and optimiser on one worker, by ZeRO's own account (arXiv 1910.02054, section 3).

    Adam holds two moments in float32, and in half precision a copy of the weights. What a stage shares among workers is
    divided by their number: 1 the optimiser, 2 gradients too, 3 weights too. Encoders that are not trained stay whole.
    """
    width = BYTES[stage.precision]
    rates = {
        "projectors": (stage.rates.projectors, found.projectors),
        "language_model": (stage.rates.language_model, found.language_model),
        "encoders": (stage.rates.encoders, found.encoders),
    }
    trained = sum(count for rate, count in rates.values() if rate is not None)
    engine = found.projectors + found.language_model + (found.encoders if stage.rates.encoders is not None else 0)
    master = 4 if width == 2 or stage.zero_stage in (1, 2, 3) else 0  # ZeRO keeps a flat copy in float32 as well
    shared = [workers if stage.zero_stage >= least else 1 for least in (3, 2, 1)]
    weights = engine * width / shared[0] + (found.total - engine) * width
    buffers = min(trained, BUCKET) * width + (min(engine, LIVE) * width if stage.zero_stage == 3 and workers > 1 else 0)
    return weights + trained * width / shared[1] + trained * (8 + master) / shared[2] + buffers


def _key(shape: Shape) -> str:
    text: str = shape.config.to_json_string(use_diff=False)
    _CONFIGS[text] = shape.config
    return text


_CONFIGS: dict[str, Any] = {}
"""Configurations by their content: they cannot be hashed themselves."""


@functools.cache
def _encoder_parameters(spec: EncoderSpec) -> int:
    return parameters_of(_bare(spec))


@functools.cache
def _projector_parameters(kind: str, visual_width: int, width: int) -> int:
    with torch.device("meta"):
        return parameters_of(build_projector(kind, visual_width, width))


@functools.cache
def _language_parameters(config: str) -> int:
    return parameters_of(bare_language_model(_CONFIGS[config]))


def _cache_bytes(llava: Llava, width: int) -> float:
    """Of the keys and values of one token."""
    config = llava.language_model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return float(2 * config.num_hidden_layers * heads * head * width)


def _bare(spec: EncoderSpec) -> Encoder:
    with torch.device("meta"):
        return bare_encoder(spec).requires_grad_(False).eval()


@functools.cache
def _encoder_pass(
    spec: EncoderSpec, size: int, precision: str, batch: int, to_pixels: bool, trained: bool = False
) -> Pass:
    """Memory is counted at one and two samples, as every sample adds the same."""
    small, larger = (_run_encoder(spec, size, precision, count, to_pixels, trained) for count in (1, 2))
    return at_size(small, larger, (1, 2), batch)


@functools.cache
def _run_encoder(spec: EncoderSpec, size: int, precision: str, batch: int, to_pixels: bool, trained: bool) -> Pass:
    bare = _bare(spec)
    with without_content(), torch.set_grad_enabled(to_pixels or trained):
        encoder = emptied(bare, getattr(torch, precision)).requires_grad_(trained)
        pixels_BCHW = torch.empty(batch, 3, size, size, requires_grad=to_pixels)

        def call(shown_BCHW: Tensor) -> Tensor:
            side = spec.image_size
            fits = side == size
            scaled_BCHW = shown_BCHW if fits else F.interpolate(shown_BCHW, (side, side), mode="bilinear")
            tokens_BPD: Tensor = encoder(scaled_BCHW)
            return tokens_BPD

        return run_pass(call, pixels_BCHW, encoder)


@dataclass(frozen=True)
class _Polynomial:
    """Operations of a language model: per token, per pair of tokens, and per labelled token."""

    token: float
    pair: float
    label: float

    def at(self, length: int, before: int, labels: int) -> float:
        """Of a sequence of that length after a prefix that is encoded already."""
        return self.token * length + self.pair * length * (length + before) + self.label * labels


@functools.cache
def _language_flops(config: str, part: str, checkpointing: bool) -> _Polynomial:
    """Found by three counts: a longer sequence, and more labels, add what they add whatever the length."""
    depth = _CONFIGS[config].num_hidden_layers

    def count(length: int, labels: int) -> float:
        two, three = (_run_language(config, length, 0, labels, "float32", 1, part, checkpointing, of) for of in (2, 3))
        return at_size(two, three, (2, 3), depth).flops

    one, two, more = count(64, 1), count(128, 1), count(64, 33)
    label = (more - one) / 32
    pair = (two - label - 2 * (one - label)) / (128**2 - 2 * 64**2)
    return _Polynomial((one - label - 64**2 * pair) / 64, pair, label)


@functools.cache
def _language_pass(
    config: str, length: int, before: int, labels: int, precision: str, batch: int, part: str,
    checkpointing: bool = False,
) -> Pass:  # fmt: skip
    """Memory is counted at one and two samples, and of few layers."""
    depth = _CONFIGS[config].num_hidden_layers
    sizes = []
    for count in (1, 2):
        shape = (config, length, before, labels, precision, count, part, checkpointing)
        two, three = (_run_language(*shape, of) for of in (2, 3))
        sizes.append(at_size(two, three, (2, 3), depth))
    return at_size(sizes[0], sizes[1], (1, 2), batch)


@functools.cache
def _run_language(
    config: str, length: int, before: int, labels: int, precision: str, batch: int, part: str, checkpointing: bool,
    depth: int,
) -> Pass:  # fmt: skip
    """A language model of few layers, from embeddings to the loss.

    Args:
        part: ``attack`` or ``projectors``: the gradient of the embeddings; ``look``: none; ``all``: of its weights too.
    """
    dtype = getattr(torch, precision)
    model = bare_language_model(_CONFIGS[config], depth)
    if checkpointing:
        recompute_layers(Connector([], model.train()))
    with without_content(), torch.set_grad_enabled(part != "look"):
        model = emptied(model, dtype).requires_grad_(part == "all")
        word_BTD = torch.empty(batch, length, embedding_width(model), dtype=dtype, requires_grad=part != "look")

        def call(inputs_BTD: Tensor) -> Tensor:
            return _loss(model, inputs_BTD, before, labels)

        return run_pass(call, word_BTD, model)


def _loss(model: Any, inputs_BTD: Tensor, before: int, labels: int) -> Tensor:
    """As :meth:`rllava.model.llava.Connector.forward`, but for looking at ids."""
    batch, _, width = inputs_BTD.shape
    cache: dict[str, Any] = {"use_cache": False}
    if before:
        # The prefix was encoded once; an attack copies its keys and values for every look.
        with torch.no_grad():
            prefix_BTD = inputs_BTD.new_empty(batch, before, width)
            cache = {"past_key_values": decoder(model)(inputs_embeds=prefix_BTD, use_cache=True).past_key_values}
    hidden_BTD = decoder(model)(inputs_embeds=inputs_BTD, **cache).last_hidden_state
    logits_NV = logits(model, hidden_BTD[:, -labels:].flatten(0, 1))
    loss: Tensor = F.cross_entropy(logits_NV, torch.zeros(logits_NV.shape[0], dtype=torch.int64))
    return loss
