"""The parts of a causal language model, whatever its family calls them: decoder, layers, embeddings, logits.

transformers names decoders and heads by family (``model`` and ``lm_head``, ``transformer``, ``embed_out``, ...), and
some families scale or cap their logits after the head, outside any module. Both are known here, and
:func:`check_language_model` finds out about families that are not.

Shapes: T sequence, N tokens, D width, V vocabulary.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rllava.errors import UserError

PLAIN = frozenset(
    {
        "gemma", "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3",
        "smollm3", "stablelm",
    }
)  # fmt: skip
"""``model_type`` of families whose logits are those of the head."""


def decoder(language_model: nn.Module) -> Any:
    """The model below the head.

    Returns:
        A module from tokens or embeddings to ``last_hidden_state``.
    """
    return language_model.get_decoder()  # type: ignore[operator]


def layers(language_model: nn.Module) -> nn.ModuleList:
    """The decoder's layers."""
    lists = [module for module in decoder(language_model).modules() if isinstance(module, nn.ModuleList)]
    assert lists, f"{type(language_model).__name__} has no list of layers"
    return max(lists, key=len)


def embedding_width(language_model: nn.Module) -> int:
    """Width of a token embedding (D): what a projector has to give.

    Returns:
        The width, which a few families project to another one within.
    """
    width: int = language_model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    return width


def logits(language_model: nn.Module, hidden_D: Tensor) -> Tensor:
    """What the language model makes of its decoder's output.

    Args:
        hidden_D: any number of hidden states, [..., D].

    Returns:
        [..., V], float32, or float64 where the hidden states are.
    """
    head: Any = language_model.get_output_embeddings()  # type: ignore[operator]
    logits_V: Tensor = head(hidden_D)
    config: Any = language_model.config
    kind = config.model_type
    if kind in ("gemma2", "gemma3_text") and config.final_logit_softcapping is not None:
        logits_V = torch.tanh(logits_V / config.final_logit_softcapping) * config.final_logit_softcapping
    elif kind in ("cohere", "cohere2"):
        logits_V = logits_V * config.logit_scale
    elif kind in ("granite", "granitemoe"):
        logits_V = logits_V / config.logits_scaling
    return logits_V if logits_V.dtype == torch.float64 else logits_V.float()


@torch.no_grad()
def check_language_model(language_model: nn.Module) -> None:
    """Compares :func:`logits` with the model's own: a forward pass of three tokens, and nothing for known families.

    Raises:
        UserError: if its family does something to its logits that is not known here.
    """
    kind = language_model.config.model_type  # type: ignore[union-attr]
    if kind in PLAIN:
        return
    device = next(language_model.parameters()).device
    id_1T = torch.arange(3, device=device)[None]
    try:
        expected_1TV = language_model(input_ids=id_1T).logits.float()
        found_1TV = logits(language_model, decoder(language_model)(input_ids=id_1T, use_cache=False).last_hidden_state)
    except (AttributeError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"language model of type '{kind}' is built in a way that is not known here ({error}); known: "
            f"{', '.join(sorted(PLAIN))}, and families with the same parts"
        ) from error
    difference = float((expected_1TV - found_1TV).abs().max())
    if difference > 1e-2 * max(1.0, float(expected_1TV.abs().max())):
        raise UserError(
            f"language model of type '{kind}' scales its logits in a way that is not known here (they differ by "
            f"{difference:.3g}); its losses would be wrong. Add the rule to rllava.model.causal_lm.logits"
        )


Copied = TypeVar("Copied", bound=nn.Module)


def copy_in_precision(module: Copied, dtype: torch.dtype) -> Copied:
    """A copy of a model with its weights rounded, but not the frequencies of rotary position embeddings.

    Weights are rounded one by one where they are: no second copy of the whole in its old precision, and none in host
    memory. ``Module.to`` rounds rotary frequencies as well, and their error grows with a token's place: in a 4-layer
    Llama in float16, logits after 600 tokens were off by twenty times as much as by the rounding of its weights.

    Args:
        module: with any language model inside.

    Returns:
        The copy, on the same device.
    """
    copies: dict[int, Any] = {}
    for part in module.modules():
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            rounded = tensor.is_floating_point() and not name.endswith("inv_freq")
            copied = tensor.detach().to(dtype if rounded else tensor.dtype, copy=True)
            is_weight = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(copied, requires_grad=tensor.requires_grad) if is_weight else copied
    return copy.deepcopy(module, copies)
