"""Wrong answers that an attack can aim at: a bank of a benchmark's own answers."""

from collections import Counter
from collections.abc import Iterable, Sequence

BANK_SIZE = 32
"""Answers that the model ranks for a sample: about as many tokens as a forward pass of a prompt of 600."""

DECOYS_VERSION = 1
"""Raised when other answers come into the bank, or other ones of it are aimed at."""


def most_common_answers(references_of_each_sample: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The most common first references.

    Args:
        references_of_each_sample: in the order of the sample list; of equally common ones the earlier comes first.

    Returns:
        At most :data:`BANK_SIZE` different texts.
    """
    first: Counter[str] = Counter()
    for references in references_of_each_sample:
        first.update([text for text in references if text.strip()][:1])
    return tuple(text for text, _ in first.most_common(BANK_SIZE))
