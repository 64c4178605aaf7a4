"""A bank of a benchmark's own answers, from which wrong ones are taken as targets."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rllava.data.shards import list_shards, read_shard

BANK_SIZE = 32
"""Answers that the model ranks for a sample: about as many tokens as a forward pass of a prompt of 600."""

DECOYS_VERSION = 1
"""Raised when other answers come into the bank, or other ones of it are aimed at."""


def answer_bank(filesystem: Any, folder: str) -> tuple[str, ...]:
    """The most common first references of a benchmark's fixed sample list.

    It depends on the sample list alone, so that a sample's decoys do not depend on the shard it is in.

    Args:
        filesystem: fsspec file system.
        folder: of the benchmark's shards.

    Returns:
        At most :data:`BANK_SIZE` different texts.
    """
    shards = list_shards(filesystem, folder)
    columns = [read_shard(filesystem, shard, ["references"]).column("references").to_pylist() for shard in shards]
    return most_common_answers([references or () for column in columns for references in column])


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
