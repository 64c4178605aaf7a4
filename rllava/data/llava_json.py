"""LLaVA's training data: a JSON list of conversations, most of them about an image in a folder beside it.

Each row is ``{"id", "image": path in the folder (absent for text alone), "conversations": [{"from", "value"}, ...]}``
(LLaVA ``llava/train/train.py``, whose rules are kept, see :func:`read_conversations`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rllava.data.files import check_layout, read_json
from rllava.errors import UserError

_MARKER = "<image>"
_QUOTED_MARKER = "< image >"


@dataclass(frozen=True)
class Conversation:
    """One row.

    Attributes:
        sample_id: place in the file and the row's id, as ids occur more than once in the 665k mix.
        image: path of its file; None for text alone.
        turns: (human, gpt) texts; only one human turn holds the image marker, none of a row without image does.
    """

    sample_id: str
    image: str | None
    turns: tuple[tuple[str, str], ...]


def read_conversations(path: Path, images: Path) -> list[Conversation]:
    """Reads a file of conversations.

    As in LLaVA, a leading turn of gpt is dropped, and an unanswered last turn, which carries no loss. A model takes one
    image: of several markers the first stays. A text without image that quotes the marker has blanks put into it.

    Args:
        path: the JSON file, read once.
        images: folder to which the rows' image paths are relative.

    Returns:
        All rows, in the file's order.

    Raises:
        UserError: if the file is missing or of another format (the row is named), or a folder of images holds others.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path} is no list of conversations; it is another file than its name says")
    conversations = [_conversation(row, place, path, images) for place, row in enumerate(rows)]
    check_layout((conversation.image for conversation in conversations if conversation.image is not None), path)
    return conversations


def _conversation(row: Any, place: int, path: Path, images: Path) -> Conversation:
    try:
        turns = [(str(turn["from"]), str(turn["value"])) for turn in row["conversations"]]
        name = row.get("image")
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: row {place} is not in LLaVA's format ({reason}); fetch it again") from error
    turns = turns[1:] if turns and turns[0][0] == "gpt" else turns
    if any(role != ("human", "gpt")[index % 2] for index, (role, _) in enumerate(turns)):
        raise UserError(f"{path}: turns of row {place} do not alternate between human and gpt; mend or remove it")
    texts = _one_marker([text for _, text in turns], name is not None)
    image = None if name is None else f"{images}/{name}"
    return Conversation(f"{place}/{row.get('id', '')}", image, tuple(zip(texts[::2], texts[1::2], strict=False)))


def _one_marker(texts: Sequence[str], has_image: bool) -> list[str]:
    if not has_image:
        return [text.replace(_MARKER, _QUOTED_MARKER) for text in texts]
    first = next((place for place, text in enumerate(texts) if place % 2 == 0 and _MARKER in text), None)
    return [
        text.replace(_MARKER, "").strip() if _MARKER in text and place != first else text
        for place, text in enumerate(texts)
    ]
