"""Files of the Hugging Face hub: from its cache, else fetched.

The cache is asked for the files that are needed and no others: a repository's listing is cached too, and what was never
wanted of it must not make it incomplete.
"""

import fnmatch
import functools
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)

from rllava.errors import UserError

WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*mm_projector.bin")
PICKLED = (*WANTED, "pytorch_model*.bin")
"""Files of a model, the second where a repository has no safetensors."""

OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
OPEN_CLIP_CONFIG = "open_clip_config.json"
"""How open_clip calls the weights of its repositories, and what says which model they are."""

LAYOUTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (WANTED, OPEN_CLIP), (PICKLED, OPEN_CLIP), (WANTED, ()), ((*WANTED, OPEN_CLIP[1]), ()),
)  # fmt: skip
"""What is taken of a repository, and what is not: many have the same weights in the layouts of both libraries."""


def from_hub(name: str) -> Path | None:
    """A repository's model, or one of its files.

    Args:
        name: ``ORG/NAME`` or ``ORG/NAME/FILE``.

    Returns:
        A folder or file of the hub's cache; None if the hub cannot be reached, or has none of that name.

    Raises:
        UserError: if the name is none of the hub's, the repository may not be read, or it cannot be stored.
    """
    organisation, _, rest = name.partition("/")
    model, _, file = rest.partition("/")
    if not model:
        raise UserError(f"hub:{name}: a name of the hub is ORG/NAME")
    repository = f"{organisation}/{model}"
    try:
        cached = _cached(repository, file)
        if cached is not None or not reachable():
            return cached
        return _fetched(repository, file)
    except HFValidationError as error:
        raise UserError(f"hub:{name}: no name of the hub ({_first_line(error)}); write ORG/NAME") from error
    except GatedRepoError as error:
        raise UserError(
            f"hub:{name}: its authors ask for a licence to be accepted; do so on the hub's page, then run hf auth login"
        ) from error
    except (RepositoryNotFoundError, EntryNotFoundError):
        return None
    except HfHubHTTPError as error:
        raise UserError(f"hub:{name}: the hub refused it ({_first_line(error)})") from error
    except Exception as error:  # of the disk, or of the hub's HTTP client
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"hub:{name}: cannot be fetched ({reason}); mend that, or copy the files") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _cached(repository: str, file: str) -> Path | None:
    if file:
        found = huggingface_hub.try_to_load_from_cache(repository, file)
        return Path(found) if isinstance(found, str) else None
    for patterns, ignored in LAYOUTS:
        try:
            folder = _snapshot(repository, patterns, ignored, local_files_only=True)
        except OSError:  # not there, or not all of it
            continue
        if is_model(folder):
            return folder
    return None


def _snapshot(
    repository: str, patterns: tuple[str, ...], ignored: tuple[str, ...], local_files_only: bool = False
) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            repository,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored) or None,
            local_files_only=local_files_only,
        )
    )


def _fetched(repository: str, file: str) -> Path | None:
    if file:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    folder = _snapshot(repository, *layout(huggingface_hub.list_repo_files(repository)))
    return folder if is_model(folder) else None


def layout(files: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What to take of a repository: one set of weights, transformers' before open_clip's, safetensors before pickles.

    Returns:
        One of :data:`LAYOUTS`.
    """
    own = [file for file in files if file not in OPEN_CLIP]
    if any(file.endswith(".safetensors") for file in own):
        return LAYOUTS[0]
    if OPEN_CLIP[0] in files or OPEN_CLIP[1] in files:
        pickled = any(fnmatch.fnmatch(file, "pytorch_model*.bin") for file in own)
        return LAYOUTS[1] if pickled else LAYOUTS[2 if OPEN_CLIP[0] in files else 3]
    return LAYOUTS[1]


INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
"""How the weights of a folder are called: several files with an index, or one."""


def is_model(folder: Path) -> bool:
    """Whether a folder holds weights, of transformers' or open_clip's layout, or a LLaVA's projector alone.

    Returns:
        False also if a file that its index names is not there.
    """
    for index in INDEXES:
        if (folder / index).exists():
            return all((folder / name).exists() for name in index_files(folder / index))
    return any((folder / name).exists() for name in (*WHOLE, *OPEN_CLIP)) or any(folder.glob("*mm_projector.bin"))


def index_files(index: Path) -> list[str]:
    """The files that an index names.

    Args:
        index: of the weights of a folder.
    """
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))


@functools.cache
def reachable() -> bool:
    """Whether the hub can be reached; its own client would try for half a minute, per file."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True
    endpoint = urlparse(huggingface_hub.constants.ENDPOINT)
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
