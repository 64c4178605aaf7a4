"""Reading weights through transformers, which knows older names of its models' keys: strictly, and in silence."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from rllava.errors import UserError
from rllava.weights import listed

_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|attn\.bias|attn\.masked_bias)$")
"""What older releases stored although it follows from the configuration."""


def read_pretrained(
    kind: Any, what: str, folder: Path, state: dict[str, Tensor] | None = None, **arguments: Any
) -> Any:
    """Reads a model of transformers; every key has to fit.

    Args:
        kind: class of the model, or an ``AutoModel``.
        state: weights to read instead of the folder's; ``arguments`` have to hold a ``config`` then.
        **arguments: further ones of ``from_pretrained``.

    Raises:
        UserError: if a key is missing, unexpected or mis-shaped; they are listed.
    """
    source = folder if state is None else None
    given = {} if state is None else {"state_dict": state}
    with quiet():
        model, facts = kind.from_pretrained(
            source, **given, **arguments, output_loading_info=True, ignore_mismatched_sizes=True
        )
    problems = [f"missing {key}" for key in sorted(facts["missing_keys"])]
    problems += [f"unexpected {key}" for key in sorted(facts["unexpected_keys"]) if not _BUFFERS.search(key)]
    problems += [
        f"{key} has shape {list(found)}, expected {list(expected)}"
        for key, found, expected in sorted(facts["mismatched_keys"])
    ]
    if problems:
        raise UserError(f"{what}: {folder} does not fit the architecture: {listed(problems)}")
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from printing progress bars and the keys that it leaves out.

    Yields:
        Nothing.
    """
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
