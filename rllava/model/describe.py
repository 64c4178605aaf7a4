"""What a LLaVA costs, found on the meta device: no weights are read or allocated.

Shapes: B batch (1), C channel, H/W image, P visual tokens, D width, T sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from rllava.encoders.base import EncoderSpec, bare_encoder, encode, input_size
from rllava.errors import UserError
from rllava.model.causal_lm import decoder, embedding_width, logits
from rllava.model.checkpoint.loading import bare_connector
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.language import LanguageModelSpec
from rllava.model.llava import Connector, build_projector
from rllava.specs import ModelSpec
from rllava.weights import located

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Per value, by precision."""


@dataclass(frozen=True)
class Description:
    """Sizes and costs of a LLaVA.

    Attributes:
        encoder_parameters: that are used, per encoder; blocks after the layer taken are left out.
        language_model_parameters: embeddings and head included, tied ones once.
        tokens_per_image: visual tokens the language model sees (P).
        text_tokens: beside them in the passes that are counted.
        bytes: of all weights, by precision.
        forward_flops: floating-point operations of one pass over one sample, a multiply-add counted as two.
        step_flops: of one attack step: forward and backward to the pixels, none to weights.
    """

    encoder_parameters: tuple[int, ...]
    projector_parameters: int
    language_model_parameters: int
    tokens_per_image: int
    text_tokens: int
    answer_tokens: int
    bytes: dict[str, int]
    forward_flops: int
    step_flops: int

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(self.encoder_parameters) + self.projector_parameters + self.language_model_parameters

    def __str__(self) -> str:
        encoders = " + ".join(f"{count / 1e6:.1f}M" for count in self.encoder_parameters)
        sizes = ", ".join(f"{size / 1e9:.2f} GB in {precision}" for precision, size in self.bytes.items())
        return "\n".join(
            (
                f"parameters      {self.parameters / 1e6:.1f}M: encoders {encoders}, projectors "
                f"{self.projector_parameters / 1e6:.1f}M, language model {self.language_model_parameters / 1e6:.1f}M",
                f"weights         {sizes}",
                f"sequence        {self.tokens_per_image} visual and {self.text_tokens} text tokens",
                f"forward pass    {self.forward_flops / 1e12:.3g} TFLOP per sample",
                f"attack step     {self.step_flops / 1e12:.3g} TFLOP per sample",
            )
        )


def describe(
    spec: ModelSpec | CheckpointSpec,
    encoders: Sequence[EncoderSpec] | None = None,
    text_tokens: int = 64,
    answer_tokens: int = 8,
) -> Description:
    """Counts parameters and floating-point operations of a LLaVA, without weights.

    Args:
        spec: of one that is to be trained, or was trained elsewhere.
        encoders: to use; None: those it is trained with.
        answer_tokens: labelled ones among them; only they pass through the head.

    Returns:
        What it costs; printed as a table.

    Raises:
        UserError: if its files are not on this machine, do not fit each other or the encoders, or cannot be read.
    """
    used = spec.encoders if encoders is None else encoders
    if isinstance(spec, ModelSpec):
        return describe_parts(used, spec.language_model, spec.projector, text_tokens, answer_tokens)
    connector, _, _ = bare_connector(spec, used)
    return counted(used, connector.to("meta"), text_tokens, answer_tokens)


def describe_parts(
    encoders: Sequence[EncoderSpec],
    language_model: LanguageModelSpec,
    projector: str = "mlp2x_gelu",
    text_tokens: int = 64,
    answer_tokens: int = 8,
) -> Description:
    """Counts parameters and floating-point operations of a LLaVA of parts that no spec puts together.

    Args:
        language_model: of which ``config.json`` is read.
        answer_tokens: labelled ones among them; only they pass through the head.

    Raises:
        UserError: if the language model is not on this machine.
    """
    config = language_config(language_model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        projectors = [build_projector(projector, spec.width, embedding_width(model)) for spec in encoders]
    return counted(encoders, Connector(projectors, model), text_tokens, answer_tokens)


def counted(encoders: Sequence[EncoderSpec], connector: Connector, text_tokens: int, answer_tokens: int) -> Description:
    """Counts parameters and floating-point operations of encoders and what is behind them.

    Args:
        connector: projectors and language model, on the meta device.
        answer_tokens: labelled ones among them; only they pass through the head.
    """
    connector = connector.eval().requires_grad_(False)
    # The attention kernel that is made of matrix products: those are what is counted.
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        towers = [bare_encoder(spec).eval().requires_grad_(False) for spec in encoders]
        side = input_size(encoders)
        pixels_1CHW = torch.empty(1, 3, side, side, requires_grad=True)

        def forward() -> Tensor:
            visual_1PD = connector.visual_tokens(encode(towers, pixels_1CHW))
            words_1TD = torch.empty(1, text_tokens, visual_1PD.shape[-1])
            return answer_logits(connector, torch.cat([visual_1PD, words_1TD], dim=1), answer_tokens)

        with FlopCounterMode(display=False) as once, torch.no_grad():
            forward()
        with FlopCounterMode(display=False) as step:
            forward().sum().backward()  # type: ignore[no-untyped-call]
    counts = tuple(parameters(tower) for tower in towers)
    projectors, language_model = parameters(connector.projectors), parameters(connector.language_model)
    total = sum(counts) + projectors + language_model
    return Description(
        encoder_parameters=counts,
        projector_parameters=projectors,
        language_model_parameters=language_model,
        tokens_per_image=sum(spec.tokens for spec in encoders),
        text_tokens=text_tokens,
        answer_tokens=answer_tokens,
        bytes={precision: total * size for precision, size in BYTES.items()},
        forward_flops=once.get_total_flops(),
        step_flops=step.get_total_flops(),
    )


def answer_logits(connector: Connector, inputs_1TD: Tensor, answer_tokens: int) -> Tensor:
    """Logits at the last positions, as the answer loss takes them.

    Args:
        inputs_1TD: embeddings of the whole sequence.

    Returns:
        [1, answer_tokens, V].
    """
    language_model = connector.language_model
    # A mask of four dimensions is taken as it is; to make one, transformers looks at values, of which there are none.
    mask_11TT = torch.zeros(1, 1, inputs_1TD.shape[1], inputs_1TD.shape[1], device=inputs_1TD.device)
    output = decoder(language_model)(inputs_embeds=inputs_1TD, attention_mask=mask_11TT, use_cache=False)
    hidden_1TD = output.last_hidden_state
    return logits(language_model, hidden_1TD[:, -answer_tokens:])


def parameters(module: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def language_config(spec: LanguageModelSpec) -> Any:
    """The configuration of a language model, without its weights.

    Raises:
        UserError: if it is not on this machine.
    """
    path = located(spec)
    try:
        if path.suffix == ".gguf":
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(f"{spec.label}: {path} has no readable config.json ({reason})") from error
