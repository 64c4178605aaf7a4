"""Weights files: where they lie, what is in them, and whether they fit.

A spec says where its weights are in one of these forms:

    asset:NAME            shipped with the package
    package:MODULE/FILE   a file of another installed package
    hub:ORG/NAME          a repository of the Hugging Face hub (a folder with config.json)
    hub:ORG/NAME/FILE     one file of it
    FILE                  a path; a relative one is also looked for below the weights folder

Everything but the first two is looked for below the weights folder first (``$RLLAVA_WEIGHTS``, or
``~/.cache/rllava/weights``), under the same name; files of the hub then in the hub's cache, then on the hub.

Pickles are opened by ``torch.load(weights_only=True)`` alone: a file that wants to run code is refused.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib.resources
import importlib.util
import os
import pickle
import pickletools
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rllava.errors import UserError
from rllava.hub import INDEXES, WHOLE, from_hub, index_files, reachable
from rllava.missing import Missing
from rllava.pinned import NOTHINGS_HASH, Pinned, Weights

EMA = ("state_dict_ema", "model_ema")
PLAIN = ("state_dict", "model")
"""Under which a training script keeps the weights in its checkpoint; the averaged ones first (as timm does)."""

PREFIXES = ("module.", "_orig_mod.", "base_model.")
"""What wrappers put before every key: data parallelism, ``torch.compile``, AdvXL's normalising wrapper."""

HUB = "hub:"
_PACKAGE = "package:"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files that make a tokenizer; one of them has to be there."""

TOKENIZER_SETTINGS = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.*",
)  # fmt: skip
"""Files (patterns) beside it that decide what it makes of a text."""

TOKENIZER_FILES = (*TOKENIZERS, *TOKENIZER_SETTINGS)

_OLDER = {"open_clip_model.safetensors": "open_clip_pytorch_model.bin"}
"""What repositories of the hub that were never converted have instead."""

_RELEASED = {
    f"{method}_eps_{epsilon}.pt": f"hub:chs20/{method}{epsilon}-clip/open_clip_pytorch_model.bin"
    for method in ("fare", "tecoa")
    for epsilon in (2, 4)
}
"""Where weights are released today that were once files of their own; the files stay valid."""

_SHOWN = 5


def weights_folder() -> Path:
    """Where weights files are looked for.

    Returns:
        ``$RLLAVA_WEIGHTS``, or ``~/.cache/rllava/weights``.
    """
    return Path(os.environ.get("RLLAVA_WEIGHTS") or "~/.cache/rllava/weights").expanduser()


def weights_path(weights: str) -> Path:
    """Where weights lie on this machine, or would lie.

    Returns:
        A path; existence is not checked, and nothing is fetched.
    """
    if weights.startswith("asset:"):
        return Path(str(importlib.resources.files("rllava"))) / "assets" / weights.removeprefix("asset:")
    if weights.startswith(_PACKAGE):
        module, _, file = weights.removeprefix(_PACKAGE).partition("/")
        found = importlib.util.find_spec(module)
        return (Path(str(found.origin)).parent if found else Path("site-packages") / module) / file
    path = Path(weights.removeprefix(HUB)).expanduser()
    return path if not weights.startswith(HUB) and path.exists() else weights_folder() / path


def find_weights(weights: str) -> Path | None:
    """Looks for weights on this machine, then on the hub; there also under the names that they have or had elsewhere.

    Returns:
        The file or folder; None if it is neither here nor can be fetched.
    """
    found = _find(weights)
    before, _, file = weights.rpartition("/")
    if found is None and weights.startswith(HUB) and file in _OLDER:
        found = _find(f"{before}/{_OLDER[file]}")
    if found is None and weights in _RELEASED:
        found = _find(_RELEASED[weights])
    return found


def _find(weights: str) -> Path | None:
    path = weights_path(weights)
    if path.exists():
        return path
    if not weights.startswith(HUB):
        return None
    return from_hub(weights.removeprefix(HUB))


def digest(path: Path) -> str:
    """Hash of a weights file, or of the weights files of a folder with their configuration.

    Returns:
        sha256, hexadecimal. Of a folder: of the sorted names and hashes of its configuration, its tokenizer's files,
        and those of its weights that are read.
    """
    if path.is_file():
        stat = path.stat()
        return _file_digest(str(path), stat.st_size, stat.st_mtime_ns)
    files = sorted({file for name in ("config.json", *TOKENIZER_FILES) for file in path.glob(name)} | {*files_of(path)})
    return hashlib.sha256("\n".join(f"{file.name} {digest(file)}" for file in files).encode()).hexdigest()


@functools.cache
def _file_digest(path: str, size: int, changed_ns: int) -> str:  # size and time are part of the cache's key
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@runtime_checkable
class Weighted(Protocol):
    """A spec that names weights."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def weights(self) -> Weights | None:
        """Where they come from; None: random ones."""

    @property
    def origin(self) -> str:
        """Where they can be had."""


def weights_of(spec: Weighted) -> str | None:
    """Where the weights of a spec are, if that is known before anything is made.

    Returns:
        See the module; None for random weights and those that a step makes.
    """
    return spec.weights.path if isinstance(spec.weights, Pinned) else None


def hash_of(spec: Weighted) -> str | None:
    """The hash of a spec's weights, if it is known.

    Returns:
        sha256, hexadecimal, or None.
    """
    return spec.weights.sha256 if isinstance(spec.weights, Pinned) else None


def check_weights(spec: Weighted) -> Path | None:
    """Finds weights and checks their hash, without reading them into a model.

    Returns:
        Their file or folder; None for random weights.

    Raises:
        UserError: if they are missing or have another hash.
    """
    if spec.weights is None:
        return None
    assert isinstance(spec.weights, Pinned), f"{spec.label}: what a step made has to be fetched first (rllava.made)"
    path = located(spec)
    if not holds_weights(path):
        raise _not_there(spec)
    if path.is_dir():
        try:
            files_of(path)
        except UserError as error:
            raise UserError(f"{spec.label}: {error}") from error
    expected = hash_of(spec)
    if expected is not None and (found := digest(path)) != expected:
        raise UserError(
            f"{spec.label}: weights {path} have sha256 {found[:12]}…, expected {expected[:12]}…; "
            "fetch them again, or give the new weights another name"
        )
    return path


def located(spec: Weighted) -> Path:
    """Where weights are, whatever is in them.

    Returns:
        A file or folder, which may lack the weights themselves.

    Raises:
        UserError: if there is nothing.
    """
    weights = weights_of(spec)
    path = None if weights is None else find_weights(weights)
    if path is None:
        raise _not_there(spec)
    return path


def _not_there(spec: Weighted) -> UserError:
    missing = missing_weights(spec)
    return UserError(
        f"{spec.label}: weights {missing.where} do not exist; put them there; they come from {missing.source}"
    )


def has_weights(spec: Weighted) -> bool:
    """Whether weights are there, or none are needed yet; an empty folder holds none.

    Returns:
        True if they can be read or fetched.
    """
    weights = weights_of(spec)
    path = None if weights is None else find_weights(weights)
    return weights is None or (path is not None and holds_weights(path))


def holds_weights(path: Path) -> bool:
    """Whether something is a file, or a folder of transformers' layout with weights in it.

    Returns:
        False for a folder with a configuration alone.
    """
    return path.is_file() or any((path / name).exists() for name in (*INDEXES, *WHOLE))


def missing_weights(spec: Weighted) -> Missing:
    """Weights that are not there.

    Returns:
        Which file is looked for, where it has to go, where it comes from.
    """
    weights = weights_of(spec)
    assert weights is not None
    where, source = str(weights_path(weights)), spec.origin or "wherever they were made"
    of_hub = weights.startswith(HUB)
    if of_hub and weights.count("/") == 1:
        where += "/ (a folder: config.json, weights, and what else is beside them)"
    if (of_hub or weights in _RELEASED) and not reachable():
        source += ", which cannot be reached from here"
    return Missing(spec.label, where, source)


Spec = TypeVar("Spec", bound=Weighted)


def pin_weights(spec: Spec) -> Spec:
    """A spec that means one set of weights: with their hash.

    Returns:
        The spec with their hash; as it is if they are random, or a step makes them.

    Raises:
        UserError: if the weights are missing or have another hash.
    """
    if not isinstance(spec.weights, Pinned):
        return spec
    path = check_weights(spec)
    if path is None or spec.weights.sha256 is not None:
        return spec
    return dataclasses.replace(spec, weights=Pinned(spec.weights.path, digest(path)))  # type: ignore[type-var]


def stand_in(spec: Spec) -> Spec:
    """A spec that has a fingerprint, though nobody looks at its weights: nothing is found by it.

    Returns:
        The spec with a hash that nothing has; as it is if it has one.
    """
    if not isinstance(spec.weights, Pinned) or spec.weights.sha256 is not None:
        return spec
    return dataclasses.replace(spec, weights=Pinned(spec.weights.path, NOTHINGS_HASH))  # type: ignore[type-var]


def read_state(path: Path, ema: bool = True) -> dict[str, Tensor]:
    """Reads all tensors of a weights file, or of a Hugging Face folder.

    Args:
        path: safetensors, a file written by ``torch.save``, or a folder that holds one or several of them.
        ema: of a training checkpoint that holds averaged weights too, take those.

    Returns:
        Tensors by name, on the CPU, without the prefixes of wrappers. Files are mapped, not copied, where they can be.

    Raises:
        UserError: if a file is damaged, wants to run code, or holds no weights.
    """
    if path.is_dir():
        state: dict[str, Tensor] = {}
        for file in files_of(path):
            state |= read_state(file, ema)
        return state
    state = _tensors(load_file(path) if is_safetensors(path) else load_pickle(path), ema)
    if not state:
        raise UserError(f"{path} holds no weights; give a file with a state_dict, or a Hugging Face folder")
    for prefix in PREFIXES:
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def files_of(folder: Path) -> list[Path]:
    """The weights files of a folder in Hugging Face format.

    Args:
        folder: with one file, or with several and their index.

    Raises:
        UserError: if there are none, or one that the index names is missing.
    """
    for index in INDEXES:
        if (folder / index).exists():
            names = index_files(folder / index)
            missing = [name for name in names if not (folder / name).exists()]
            if missing:
                raise UserError(f"{folder}: {', '.join(missing)} of {index} is missing; copy the whole folder")
            return [folder / name for name in names]
    for whole in WHOLE:
        if (folder / whole).exists():
            return [folder / whole]
    raise UserError(f"{folder} holds neither {WHOLE[0]} nor {WHOLE[1]} nor an index of several such files")


def is_safetensors(path: Path) -> bool:
    """Tells safetensors from files written by ``torch.save``.

    Returns:
        By its name, else by its first bytes.
    """
    if path.suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:9] == b"{" and not zipfile.is_zipfile(path)


def load_pickle(path: Path, device: str = "cpu") -> object:
    """Opens a file written by ``torch.save``, without running any code of it.

    Args:
        device: where to; ``meta`` for names and shapes alone.

    Returns:
        What it holds; tensors are mapped where the file allows it.
    """
    # Training scripts keep their arguments beside the weights; a Namespace is as harmless as a dictionary.
    mapped = device == "cpu" and zipfile.is_zipfile(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location=device, weights_only=True, mmap=mapped)


def _tensors(found: object, ema: bool) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        return {}
    for name in (*EMA, *PLAIN) if ema else (*PLAIN, *EMA):
        if isinstance(found.get(name), Mapping):
            found = found[name]
            break
    assert isinstance(found, Mapping)
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}


def read_weights(path: Path, what: str, ema: bool = True) -> dict[str, Tensor]:
    """:func:`read_state`, with the library's errors in our words.

    Args:
        what: whose weights, for messages: ``"encoder 'fare4'"``.
        ema: see :func:`read_state`.

    Raises:
        UserError: if a file is damaged, wants to run code, or holds no weights.
    """
    with readable(path, what):
        return read_state(path, ema)


@contextlib.contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Says the errors of the libraries that read weights in our words.

    Yields:
        Nothing.

    Raises:
        UserError: if the file is damaged, wants to run code, or holds no weights.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or _calls(path):
            raise UserError(
                f"{what}: {path} is a pickle that wants to run code and was not opened; save its tensors alone, "
                "e.g. with safetensors.torch.save_file"
            ) from error
        raise UserError(f"{what}: {path} is damaged or no weights file; fetch it again") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(f"{what}: {path} is damaged or no weights file ({reason}); fetch it again") from error


def _calls(path: Path) -> bool:
    """Whether a file is a bare pickle that calls something; it is only parsed."""
    if path.is_dir():
        return False
    with open(path, "rb") as file:
        try:
            return any(opcode.name in ("REDUCE", "INST", "OBJ", "NEWOBJ") for opcode, *_ in pickletools.genops(file))
        except ValueError:
            return False


def misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps weights from fitting an architecture.

    Returns:
        One phrase per missing, unexpected or mis-shaped key.
    """
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} has shape {list(state[key].shape)}, expected {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    return problems


def listed(problems: list[str]) -> str:
    """The first problems, and how many more there are."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def fitting(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    what: str,
    dropped: Collection[str] = (),
) -> dict[str, Tensor]:
    """The weights an architecture takes, every key of which must fit.

    Args:
        dropped: keys that belong to the training and not to the module.

    Returns:
        The state without what was dropped.

    Raises:
        UserError: if a key is missing, unexpected or mis-shaped; they are listed.
    """
    kept = {key: value for key, value in state.items() if key not in dropped}
    if problems := misfits(expected, kept):
        raise UserError(f"{what} does not fit the architecture: {listed(problems)}")
    return kept
