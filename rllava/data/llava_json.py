"""LLaVA's training data: a JSON list of conversations, most of them about an image in a folder beside it.

Each row is ``{"id", "image": path in the folder (absent for text alone), "conversations": [{"from", "value"}, ...]}``
(LLaVA ``llava/train/train.py``, whose rules are kept, see :func:`read_instructions`).
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rllava.data.entries import Instruction
from rllava.data.files import ImageFile, check_layout, read_json
from rllava.errors import UserError

MARKER = "<image>"
"""Stands for the image in a text."""

_QUOTED_MARKER = "< image >"

_OTHER_KEYS = ("images", "image_path", "image_file", "video", "videos")
"""Under which other formats name what a question is about."""

_UNMARKED = "have an image but no <image> in a question (it is put before the first one)"
_SEVERAL = "hold <image> more than once (the first in a question stays)"
_QUOTED = "hold <image> but have no image (it is read as quoted text)"
_UNANSWERED = "have no answered question (they teach nothing)"
_ODDITIES = (_UNMARKED, _SEVERAL, _QUOTED, _UNANSWERED)


def read_instructions(path: Path, images: Path) -> list[Instruction]:
    """Reads a file of conversations.

    As in LLaVA, a leading turn of gpt is dropped, and an unanswered last turn, which carries no loss. A model takes one
    image: of several markers the first in a question stays. Where no question holds one, LLaVA trains without the
    image; here the marker comes first, as in its own data. A text without image that quotes the marker has blanks put
    into it. How many rows are of these kinds is logged, in one line.

    Args:
        path: the JSON file, read once.
        images: folder to which the rows' image paths are relative.

    Returns:
        All rows, in the file's order.

    Raises:
        UserError: if the file is missing or of another format, or a row has several images (the row is named), or a
            folder of images holds others.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path} is no list of conversations; it is another file than its name says")
    odd: Counter[str] = Counter()
    conversations = [_conversation(row, number, path, images, odd) for number, row in enumerate(rows)]
    files = (conversation.load_image for conversation in conversations)
    check_layout((file.path for file in files if isinstance(file, ImageFile)), path)
    if odd:
        counts = ", ".join(f"{odd[kind]} {kind}" for kind in _ODDITIES if odd[kind])
        logging.getLogger(__name__).warning("%s: of %d rows, %s", path, len(rows), counts)
    return conversations


def _conversation(row: Any, number: int, path: Path, images: Path, odd: Counter[str]) -> Instruction:
    try:
        turns = [(str(turn["from"]), str(turn["value"])) for turn in row["conversations"]]
        name = _image_name(row, f"{path}: row {number} (id {row.get('id', '')})")
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: row {number} is not in LLaVA's format ({reason}); fetch it again") from error
    turns = turns[1:] if turns and turns[0][0] == "gpt" else turns
    if any(role != ("human", "gpt")[index % 2] for index, (role, _) in enumerate(turns)):
        raise UserError(f"{path}: turns of row {number} do not alternate between human and gpt; mend or remove it")
    texts = [text for _, text in turns[: len(turns) // 2 * 2]]
    texts = _one_marker(texts, odd) if name is not None else _no_marker(texts, odd)
    image = None if name is None else ImageFile(f"{images}/{name}")
    return Instruction(f"{number}/{row.get('id', '')}", image, tuple(zip(texts[::2], texts[1::2], strict=True)))


def _image_name(row: Any, what: str) -> str | None:
    name = row.get("image")
    if isinstance(name, list):
        if len(name) > 1:
            raise UserError(f"{what} has {len(name)} images, and a model here takes one; split or remove the row")
        name = name[0] if name else None
    if not name and (others := [key for key in _OTHER_KEYS if row.get(key)]):
        raise UserError(f"{what} has '{others[0]}', which LLaVA's format does not; name its one image under 'image'")
    if name is not None and not isinstance(name, str):
        raise UserError(f"{what}: its image is a {type(name).__name__}; give the path of one file")
    return name or None


def _no_marker(texts: Sequence[str], odd: Counter[str]) -> list[str]:
    if not texts:
        odd[_UNANSWERED] += 1
    elif any(MARKER in text for text in texts):
        odd[_QUOTED] += 1
    return [text.replace(MARKER, _QUOTED_MARKER) for text in texts]


def _one_marker(texts: Sequence[str], odd: Counter[str]) -> list[str]:
    if not texts:
        odd[_UNANSWERED] += 1
        return []
    count = sum(text.count(MARKER) for text in texts)
    first = next((number for number, text in enumerate(texts) if number % 2 == 0 and MARKER in text), None)
    rest = [text.replace(MARKER, "").strip() if MARKER in text else text for text in texts]
    if first is None:
        odd[_UNMARKED] += 1
        return [f"{MARKER}\n{rest[0]}", *rest[1:]]
    if count > 1:
        odd[_SEVERAL] += 1
    before, _, after = texts[first].partition(MARKER)
    rest[first] = f"{before}{MARKER}{after.replace(MARKER, '')}"
    return rest
