"""Fixed sample lists: which rows of a source are taken, and in which order."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from rllava.errors import UserError


def sample_list(available: int, samples: int, seed: int) -> list[int]:
    """Draws rows of a source without replacement, as the paper's code does.

    That is ``np.random.seed(seed); np.random.choice(available, samples, replace=False)`` of Robust-LLaVA's
    ``vlm_eval/run_evaluation.py``, without touching the global state. NumPy keeps this stream frozen, so the list
    depends on nothing but the three numbers; a shorter list of the same seed is the beginning of a longer one.

    Returns:
        ``samples`` different indices in [0, available), in drawing order.

    Raises:
        UserError: if ``samples`` is not between 1 and ``available``.
    """
    if not 1 <= samples <= available:
        raise UserError(f"{samples} samples asked of a source that has {available}; ask for 1 to {available}")
    return [int(index) for index in np.random.RandomState(seed).choice(available, samples, replace=False)]


def check_unique(sample_ids: Iterable[str], source: str) -> None:
    """Checks that no two rows of a source have the same id.

    Args:
        sample_ids: the ids of all rows.
        source: the source's name, for the message.

    Raises:
        UserError: if an id occurs twice; the message names up to three.
    """
    doubled = [sample_id for sample_id, count in Counter(sample_ids).items() if count > 1]
    if doubled:
        named = ", ".join(doubled[:3])
        raise UserError(f"source '{source}' has {len(doubled)} sample ids more than once ({named}); make them unique")
