"""What a LLaVA's phases take per sample: parameters, tokens, operations and memory, counted from specs alone.

Encoders, projectors and language model are counted one by one (:mod:`rllava.counting`) and put together: several
candidates share most of them. Layers of a language model are equal, so two sizes of it tell all.

Shapes: B batch, C channel, H/W image, P visual tokens, T sequence, D width.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rllava.counting import Pass, at_size, emptied, parameters_of, run_pass, without_content
from rllava.encoders import Encoder, EncoderSpec, input_size
from rllava.encoders.base import bare_encoder
from rllava.model.causal_lm import decoder, layers, logits
from rllava.model.llava import Connector, build_projector
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


def attack_step(llava: Llava, texts: Texts, precision: str, batch: int, gradient: bool = True) -> Cost:
    """One look of an attack: the answers' loss, and with a gradient its way back to the pixels.

    Weights count in the precision of the step; a copy in another one comes on top.
    """
    encoders = [_encoder_pass(spec, input_size(llava.encoders), precision, batch, gradient) for spec in llava.encoders]
    connector = _connector_pass(llava, texts, precision, batch, "attack" if gradient else "look")
    held = sum(found.kept for found in encoders)
    # Ensembles go one by one through their encoders, and back in the reverse order.
    highest = max([held + connector.peak, *(held + found.peak - found.kept for found in encoders)])
    pixels = 3 * input_size(llava.encoders) ** 2 * 4 * batch
    flops = sum(found.flops for found in encoders) + connector.flops
    return Cost(flops, parameters(llava).total * BYTES[precision], highest + 2 * pixels)


def answer(llava: Llava, texts: Texts, precision: str, batch: int, new_tokens: float) -> Cost:
    """An answer: the prompt, and every token after the first by itself.

    Args:
        new_tokens: that are generated.
    """
    prompt = attack_step(llava, Texts(texts.before, texts.after, 1), precision, batch, gradient=False)
    each = 2.0 * parameters(llava).language_model * batch  # one token's products with all weights
    cache = _cache_bytes(llava, BYTES[precision]) * (texts.before + texts.after + llava.visual_tokens + new_tokens)
    return Cost(prompt.flops + each * max(0.0, new_tokens - 1), prompt.weights, prompt.activations + cache * batch)


def train_step(llava: Llava, stage: Stage, texts: Texts, workers: int) -> Cost:
    """One micro-batch of a training stage on one of its workers; the optimiser's step is counted in its memory."""
    precision, batch = stage.precision, stage.micro_batch
    trains_encoders = stage.rates.encoders is not None
    size = input_size(llava.encoders)
    encoders = [_encoder_pass(spec, size, precision, batch, False, trains_encoders) for spec in llava.encoders]
    length = min(texts.length + llava.visual_tokens, stage.max_length)
    cut = Texts(0, max(0, length - llava.visual_tokens - texts.answer), texts.answer)
    part = "all" if stage.rates.language_model is not None else "projectors"
    connector = _connector_pass(llava, cut, precision, batch, part, stage.gradient_checkpointing)
    held = sum(found.kept for found in encoders) if trains_encoders else 0.0
    alone = max(found.peak for found in encoders)
    pixels = 3 * size**2 * 4 * batch
    features = sum(spec.tokens * spec.width for spec in llava.encoders) * batch * BYTES[precision]
    activations = max(held + features + connector.peak, held + alone) + pixels
    flops = sum(found.flops for found in encoders) + connector.flops
    return Cost(flops, training_states(parameters(llava), stage, workers), activations)


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


def samples_that_fit(llava: Llava, texts: Texts, precision: str, copies: float, memory: float, most: int) -> int:
    """How many samples an attack looks at together.

    Args:
        copies: bytes of weights in other precisions.
        memory: of the device, in bytes.
        most: samples there are.

    Returns:
        From 0 (not even one fits) to ``most``.
    """
    one, two = (attack_step(llava, texts, precision, count) for count in (1, 2))
    each = max(two.activations - one.activations, 1.0)
    free = memory - one.weights - copies - (one.activations - each)
    return max(0, min(most, int(free // each)))


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


def _connector_pass(
    llava: Llava, texts: Texts, precision: str, batch: int, part: str, checkpointing: bool = False
) -> Pass:
    widths = tuple((spec.tokens, spec.width) for spec in llava.encoders)
    key, config = _key(llava.language_model), llava.language_model.config
    sizes = [
        at_size(
            *(_run_connector(widths, llava.projector, key, texts, precision, count, part, checkpointing, of)
              for of in (2, 3)),
            (2, 3), config.num_hidden_layers,
        )
        for count in (1, 2)
    ]  # fmt: skip
    return at_size(*sizes, (1, 2), batch)


@functools.cache
def _run_connector(
    widths: Sequence[tuple[int, int]], kind: str, config: str, texts: Texts, precision: str, batch: int, part: str,
    checkpointing: bool, depth: int,
) -> Pass:  # fmt: skip
    """Projectors and a language model of few layers, from visual tokens to the loss.

    Args:
        part: ``attack``: the gradient of the visual tokens; ``look``: none; ``projectors`` or ``all``: what is trained.
    """
    dtype = getattr(torch, precision)
    bare = bare_language_model(_CONFIGS[config], depth)
    with torch.device("meta"):
        projectors = [build_projector(kind, width, _CONFIGS[config].hidden_size) for _, width in widths]
    connector = Connector(projectors, bare).requires_grad_(False)
    prefix = texts.before if part in ("attack", "look") else 0
    with without_content(), torch.set_grad_enabled(part != "look"):
        connector = emptied(connector, dtype)
        if checkpointing:
            recompute_layers(connector.train())
        if part in ("projectors", "all"):
            connector.projectors.requires_grad_(True)
            connector.language_model.requires_grad_(part == "all")
        features = [torch.empty(batch, tokens, width, dtype=dtype) for tokens, width in widths]
        anchor = features[0].requires_grad_(part == "attack")
        length = texts.length - (texts.before if prefix else 0)
        word_BTD = torch.empty(batch, length, _CONFIGS[config].hidden_size, dtype=dtype)

        def call(first_BPD: Tensor) -> Tensor:
            return _loss(connector, [first_BPD, *features[1:]], word_BTD, prefix, texts.answer)

        return run_pass(call, anchor, connector)


def _loss(connector: Any, features: list[Tensor], word_BTD: Tensor, prefix: int, labelled: int) -> Tensor:
    """As :meth:`rllava.model.llava.Connector.forward`, but for looking at ids."""
    visual_BPD = connector.visual_tokens(features)
    inputs_BTD = torch.cat([visual_BPD, word_BTD], dim=1)
    model, batch = connector.language_model, inputs_BTD.shape[0]
    cache: dict[str, Any] = {"use_cache": False}
    if prefix:
        with torch.no_grad():
            before_BTD = inputs_BTD.new_empty(batch, prefix, inputs_BTD.shape[2])
            cache = {"past_key_values": decoder(model)(inputs_embeds=before_BTD, use_cache=True).past_key_values}
    hidden_BTD = decoder(model)(inputs_embeds=inputs_BTD, **cache).last_hidden_state
    logits_NV = logits(model, hidden_BTD[:, -labelled:].flatten(0, 1))
    loss: Tensor = F.cross_entropy(logits_NV, torch.zeros(logits_NV.shape[0], dtype=torch.int64))
    return loss


def depth_of(shape: Shape) -> int:
    """Layers of a language model."""
    return len(layers(bare_language_model(shape.config)))
