"""Weights of large models, shard by shard from their files to the device, without a second copy in host memory.

A module is built without memory (:func:`bare`), its keys are compared with those of the files (:func:`contents`,
:func:`matched`), and only then the tensors are read (:func:`stream`). Files are mapped for a stretch at a time, so that
what was copied leaves the host's memory.
"""

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rllava.errors import UserError
from rllava.weights import is_safetensors, listed, load_pickle, readable

STRETCH = 32 << 20
"""Bytes of a file that are mapped at a time, but for a tensor that is larger."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes at four a number; a file that cannot be mapped is read at once, so nothing counts."""
        mapped = is_safetensors(self.file) or zipfile.is_zipfile(self.file)
        return 4 * torch.Size(self.shape).numel() if mapped else 0


@contextlib.contextmanager
def bare() -> Iterator[None]:
    """A stretch of code in which parameters of modules get no memory: they are on the meta device.

    Buffers stay as they are, so that those that no file holds, such as rotary frequencies, are right.

    Yields:
        Nothing.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def contents(files: Sequence[Path], what: str) -> dict[str, Stored]:
    """What weights files hold; no tensor is read.

    Args:
        files: safetensors, or written by ``torch.save``.

    Raises:
        UserError: if a file is missing, damaged or wants to run code.
    """
    found: dict[str, Stored] = {}
    for file in files:
        with readable(file, what):
            if is_safetensors(file):
                with safe_open(file, framework="pt") as opened:
                    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            else:
                state = load_pickle(file, "meta")
                if not isinstance(state, Mapping):
                    raise UserError(f"{file} holds no weights by name")
                shapes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
        found |= {name: Stored(file, name, shape) for name, shape in shapes.items()}
    return found


def matched(module: nn.Module, stored: Mapping[str, Stored], what: str) -> None:
    """Compares a module with what is to be loaded into it.

    Raises:
        UserError: if a key is missing, unexpected or mis-shaped; they are listed.
    """
    if found := problems(module, stored):
        raise UserError(f"{what} does not fit its configuration: {listed(found)}")


def problems(module: nn.Module, stored: Mapping[str, Stored]) -> list[str]:
    """What keeps weights from being read into a module.

    Returns:
        A phrase per key that is missing, unexpected or mis-shaped.
    """
    expected = module.state_dict(keep_vars=True)
    present = {id(value) for key, value in expected.items() if key in stored}
    found = [f"missing {key}" for key, value in expected.items() if id(value) not in present]  # tied ones need one
    found += [f"unexpected {entry.name}" for key, entry in stored.items() if key not in expected]
    found += [
        f"{entry.name} has shape {list(entry.shape)}, expected {list(expected[key].shape)}"
        for key, entry in stored.items()
        if key in expected and entry.shape != tuple(expected[key].shape)
    ]
    return found


def stream(module: nn.Module, stored: Mapping[str, Stored], device: torch.device, dtype: torch.dtype,
           what: str) -> None:  # fmt: skip
    """Reads weights into a module that was built :func:`bare`.

    Args:
        module: whose parameters :func:`matched` was content with.

    Raises:
        UserError: if a file is damaged.
    """
    for stretch in _stretches(stored):
        file = stretch[0][1].file
        with readable(file, what), _opened(file) as read:
            state = {key: _on(read(entry.name), device, dtype) for key, entry in stretch}
        module.load_state_dict(state, strict=False, assign=True)
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)


def _on(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def _stretches(stored: Mapping[str, Stored]) -> Iterator[list[tuple[str, Stored]]]:
    waiting: list[tuple[str, Stored]] = []
    for key, entry in sorted(stored.items(), key=lambda pair: (pair[1].file, pair[1].name)):
        size = sum(before.size for _, before in waiting)
        if waiting and (entry.file != waiting[0][1].file or size + entry.size > STRETCH):
            yield waiting
            waiting = []
        waiting.append((key, entry))
    if waiting:
        yield waiting


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Callable[[str], Tensor]]:
    if is_safetensors(file):
        with safe_open(file, framework="pt") as opened:
            yield opened.get_tensor
    else:
        state = load_pickle(file)
        assert isinstance(state, Mapping)
        yield state.__getitem__
