"""Counts what modules do without doing it: parameters, operations, memory, on tensors without content.

Nothing of a model's size is ever allocated: a 7B is counted on a laptop in seconds.

Shapes: B batch, C channel, H/W image, T sequence, D width.
"""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_COUNT_FORWARD: Callable[..., int] = sdpa_flop_count
_COUNT_BACKWARD: Callable[..., int] = sdpa_backward_flop_count
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: _COUNT_FORWARD(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: _COUNT_BACKWARD(*shapes[:4])
    ),
}
"""Operators that PyTorch's counter leaves out; from shapes to operations."""


@dataclass(frozen=True)
class Pass:
    """What one pass through a module takes.

    Attributes:
        forward: floating-point operations, a multiplication and an addition counting as two.
        backward: the same of the pass back, where there is one.
        kept: bytes that lie there between the two.
        peak: most bytes at a time on top of the module's weights and its input.
    """

    forward: float = 0.0
    backward: float = 0.0
    kept: float = 0.0
    peak: float = 0.0

    @property
    def flops(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def at_size(small: Pass, larger: Pass, sizes: tuple[int, int], size: int) -> Pass:
    """A pass at a size, from two others: what repeats (equal layers, samples) adds the same every time.

    Args:
        sizes: of the two.
    """
    share = (size - sizes[0]) / (sizes[1] - sizes[0])
    return Pass(*(one + share * (two - one) for one, two in zip(_fields(small), _fields(larger), strict=True)))


def _fields(found: Pass) -> tuple[float, ...]:
    return (found.forward, found.backward, found.kept, found.peak)


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up operations, and the bytes of what has been made and is still held, within ``with Tally() as tally``.

    A storage counts from the operator that made it until nothing refers to it any more; views cost nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0
        self.bytes = 0
        self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def ignore(self, *tensors: Tensor) -> None:
        """Leaves out what was there before."""
        for tensor in tensors:
            self._seen[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in CPU_ATTENTION:
            shapes = [arg.shape if isinstance(arg, Tensor) else arg for arg in args]
            self.flops += CPU_ATTENTION[packet](*shapes)
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.bytes -= size


@contextmanager
def without_content() -> Iterator[None]:
    """Within, tensors that are made have no content. Data that is looked at raises."""
    with FakeTensorMode():
        yield


def emptied(module: nn.Module, dtype: torch.dtype) -> Any:
    """A module that was made on the meta device, with tensors that count as a CPU's, within :func:`without_content`.

    Attention is then counted as fused: no matrix of all pairs of tokens is kept, as on a GPU.

    Args:
        dtype: of floating-point weights; rotary frequencies keep theirs.
    """
    known: dict[int, Any] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                if id(weight) not in known:  # tied weights stay one
                    made = torch.empty(weight.shape, dtype=dtype)
                    known[id(weight)] = nn.Parameter(made, requires_grad=weight.requires_grad)
                part._parameters[name] = known[id(weight)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                rounded = buffer.is_floating_point() and not name.endswith("inv_freq")
                part._buffers[name] = torch.empty(buffer.shape, dtype=dtype if rounded else buffer.dtype)
    return module


def run_pass(call: Callable[[Tensor], Tensor], inputs: Tensor, module: nn.Module) -> Pass:
    """Counts one call, forward and back to its input, within :func:`without_content`.

    Args:
        call: from the input to what is differentiated, summed over.
        inputs: floating point. If neither it nor a weight asks for a gradient, there is no way back.
        module: whose weights were there before. Gradients of those that are trained are let go as soon as they are
            there, as ZeRO does: the peak holds the largest one.
    """
    there = [*module.parameters(), *module.buffers()]
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(_drop) for weight in trained]  # type: ignore[no-untyped-call]
    with Tally() as tally:
        tally.ignore(inputs, *there)
        out = call(inputs * 1 if inputs.requires_grad else inputs)
        forward, kept = tally.flops, tally.bytes
        if out.requires_grad:
            out.float().sum().backward()  # type: ignore[no-untyped-call]
        del out
    for hook in hooks:
        hook.remove()
    return Pass(forward, tally.flops - forward, kept, tally.peak)


def _drop(weight: Tensor) -> None:
    weight.grad = None


def parameters_of(module: nn.Module) -> int:
    """How many a module has; tied ones once."""
    return sum(math.prod(weight.shape) for weight in module.parameters())
