"""What sources list: an image with what is asked about it, or with a conversation."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One image with what is asked about it and what people answered.

    Attributes:
        sample_id: unique within the data set.
        load_image: reads the encoded image; called once, when the sample's shard is written. None: there is no image.
        references: captions, or annotators' answers, in the source's order; may be empty (the row then gets no score,
            unless its task needs none).
        question: what replaces ``{question}`` in the prompt; empty for captioning.
        judged_as: what judges are told was asked; None: the prompt.
        written: the references as they were written, where those are normalised, in the same order; else empty.
    """

    sample_id: str
    load_image: Callable[[], bytes] | None
    references: tuple[str, ...]
    question: str = ""
    judged_as: str | None = None
    written: tuple[str, ...] = ()


@dataclass(frozen=True)
class Instruction:
    """One conversation, about one image or none.

    Attributes:
        load_image: reads the encoded image; called once, when the row's shard is written. None: there is no image.
        turns: (human, gpt) texts; one human turn holds the image marker, once, if there is an image.
    """

    sample_id: str
    load_image: Callable[[], bytes] | None
    turns: tuple[tuple[str, str], ...]
