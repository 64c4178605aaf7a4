"""Conversation templates, tokenisation and label masks.

A conversation becomes token ids with one :data:`IMAGE_TOKEN` per image and a mask of the tokens that carry loss: the
answers and their end token. The mask comes from character offsets in the whole text, never from counting tokens of
parts, so it does not depend on how a tokenizer treats the seams (source of the rules: LLaVA ``llava/train/train.py``,
``preprocess_plain`` and ``preprocess_v1``; ``llava/conversation.py`` for the texts).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rllava.errors import UserError
from rllava.registry import Registry

IMAGE_TOKEN = -200
"""Stands for an image in token ids; the model puts the visual tokens in its place."""

IMAGE_MARKER = "<image>"
"""Stands for an image in text."""

IGNORE = -100
"""Label of a token without loss."""


@dataclass(frozen=True)
class Template:
    """How turns become text.

    Attributes:
        name: as registered.
        system: sentence before the first turn; empty: none.
        user: role of the user.
        assistant: role of the assistant.
        plain: stage 1 style: the user's turn is the bare image, the answer ends with a newline and no end token.
    """

    name: str
    system: str = ""
    user: str = "USER"
    assistant: str = "ASSISTANT"
    plain: bool = False


TEMPLATES: Registry[Template] = Registry("conversation template")

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

for _template in (
    Template("plain", plain=True),
    Template("vicuna_v1", system=_VICUNA_SYSTEM),
    Template("vicuna_v1_short"),  # without the system sentence: half the tokens of a short question
):
    TEMPLATES.register(_template.name, _template)


@dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        text: may contain image markers.
        labelled: whether its tokens carry loss.
        end: whether an end token follows, with the same loss.
    """

    text: str
    labelled: bool = False
    end: bool = False


@dataclass(frozen=True)
class Tokens:
    """A tokenised conversation.

    Attributes:
        ids: token ids; :data:`IMAGE_TOKEN` where an image belongs.
        labels: the same ids where loss is taken, :data:`IGNORE` elsewhere.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]


def image_first(text: str) -> str:
    """Moves the image marker of a turn to its front, as LLaVA does.

    Args:
        text: a user's turn.

    Returns:
        ``"<image>\\n"`` and the rest; unchanged without marker.
    """
    if IMAGE_MARKER not in text:
        return text
    return f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}".strip()


def pieces(template: Template, turns: Sequence[tuple[str, str | None]]) -> list[Piece]:
    """Lays out a conversation.

    Args:
        template: style.
        turns: (user's text, assistant's answer) per round; an answer of None ends the text where generation begins.

    Returns:
        Pieces in order.
    """
    if template.plain:
        # Stage 1 drops the instruction: the projector learns to say what the image shows.
        laid_out = []
        for user, answer in turns:
            laid_out.append(Piece(IMAGE_MARKER if IMAGE_MARKER in user else ""))
            laid_out.append(Piece((answer or "").strip() + "\n", labelled=True))
        return laid_out
    laid_out = [Piece(f"{template.system} ")] if template.system else []
    for user, answer in turns:
        laid_out.append(Piece(f"{template.user}: {image_first(user)} {template.assistant}:"))
        if answer is not None:
            laid_out.append(Piece(f" {answer.strip()}", labelled=True, end=True))
    return laid_out


def tokenize(tokenizer: Any, laid_out: Sequence[Piece]) -> Tokens:
    """Token ids and labels of a conversation.

    Args:
        tokenizer: a fast Hugging Face tokenizer (offsets are needed).
        laid_out: see :func:`pieces`.

    Returns:
        Ids with a beginning token first, where the tokenizer has one, and labels.

    Raises:
        UserError: if the tokenizer cannot give offsets or lacks an end token that is needed.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer {tokenizer.name_or_path}: a fast tokenizer is needed; save it as tokenizer.json")
    ids: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    labels: list[int] = [IGNORE] * len(ids)
    run: list[Piece] = []

    def flush() -> None:
        text = "".join(piece.text for piece in run)
        if text:
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            bounds, position = [], 0
            for piece in run:
                bounds.append((position, position + len(piece.text), piece.labelled))
                position += len(piece.text)
            for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                centre = last - 1 if last > first else first
                labelled = any(start <= centre < stop and flag for start, stop, flag in bounds)
                ids.append(token)
                labels.append(token if labelled else IGNORE)
        run.clear()

    for piece in laid_out:
        for part, text in enumerate(piece.text.split(IMAGE_MARKER)):
            if part > 0:
                flush()
                ids.append(IMAGE_TOKEN)
                labels.append(IGNORE)
            run.append(Piece(text, piece.labelled))
        if piece.end:
            flush()
            if tokenizer.eos_token_id is None:
                raise UserError(f"tokenizer {tokenizer.name_or_path} has no end token; set eos_token in its config")
            ids.append(tokenizer.eos_token_id)
            labels.append(tokenizer.eos_token_id if piece.labelled else IGNORE)
    flush()
    return Tokens(tuple(ids), tuple(labels))
