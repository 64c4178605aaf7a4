"""Conversation templates, tokenisation and label masks.

A conversation becomes token ids with one :data:`IMAGE_TOKEN` per image and a mask of the tokens that carry loss: the
answers and their end token. The mask comes from character offsets in the whole text, never from counting tokens of
parts, so it does not depend on how a tokenizer treats the seams (source of the rules: LLaVA ``llava/train/train.py``,
``preprocess_plain``, ``preprocess_v1`` and ``preprocess_llama_2``; ``llava/conversation.py`` for the texts).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rllava.errors import UserError
from rllava.model.chat_template import Stretch, end_of_turn, rendered
from rllava.registry import Registry

IMAGE_TOKEN = -200
"""Stands for an image in token ids; the model puts the visual tokens in its place."""

IMAGE_MARKER = "<image>"
"""Stands for an image in text."""

IGNORE = -100
"""Label of a token without loss."""


Style = Literal["roles", "plain", "inst", "chat"]


@dataclass(frozen=True)
class Template:
    """How turns become text.

    Attributes:
        system: text before the first turn; empty: none, or what a chat template says by itself.
        user: role of the user, where the style writes roles.
        assistant: role of the assistant, likewise.
        style: ``roles``: ``USER: ... ASSISTANT: ...``; ``plain``: the bare image and an answer that ends with a newline
            and no end token (stage 1); ``inst``: Llama 2's ``[INST] ... [/INST]``; ``chat``: the chat template of the
            language model's tokenizer.
        version: raised when the texts it makes change.
    """

    name: str
    system: str = ""
    user: str = "USER"
    assistant: str = "ASSISTANT"
    style: Style = "roles"
    version: int = 1


TEMPLATES: Registry[Template] = Registry("conversation template", "rllava.conversations")

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

for _template in (
    Template("plain", style="plain"),
    Template("vicuna_v1", system=_VICUNA_SYSTEM),
    Template("vicuna_v1_short"),  # without the system sentence: half the tokens of a short question
    Template("llava_llama_2", system=_LLAMA_2_SYSTEM, style="inst"),
    Template("chat", style="chat"),
):
    TEMPLATES.register(_template.name, _template)


@dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        labelled: whether its tokens carry loss.
        end: whether an end token follows, with the same loss.
        begin: whether a begin token comes before, without loss; the first one of a conversation comes by itself.
        role: who says it, where the tokenizer's chat template lays the text out; empty: the text is laid out.
    """

    text: str
    labelled: bool = False
    end: bool = False
    begin: bool = False
    role: Literal["", "system", "user", "assistant"] = ""


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

    Returns:
        ``"<image>\\n"`` and the rest; unchanged without marker.
    """
    if IMAGE_MARKER not in text:
        return text
    return f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}".strip()


def pieces(template: Template, turns: Sequence[tuple[str, str | None]], bare: bool = False) -> list[Piece]:
    """Lays out a conversation.

    Args:
        turns: (user's text, assistant's answer) per round; an answer of None ends the text where generation begins.
        bare: the user's texts are laid out as they are, wherever their image markers stand and however they end, and
            no end follows an answer but what a chat template writes: as attacks lay out what a model shall begin with.
    """
    front = str if bare else image_first
    if template.style == "plain":
        # Stage 1 drops the instruction: the projector learns to say what the image shows.
        laid_out = []
        for user, answer in turns:
            laid_out.append(Piece(IMAGE_MARKER if IMAGE_MARKER in user else ""))
            laid_out.append(Piece((answer or "").strip() + "\n", labelled=True))
        return laid_out
    if template.style == "chat":
        laid_out = [Piece(template.system, role="system")] if template.system else []
        for user, answer in turns:
            laid_out.append(Piece(front(user), role="user"))
            if answer is not None:
                laid_out.append(Piece(answer.strip(), labelled=True, role="assistant"))
        return laid_out
    if template.style == "inst":
        laid_out = []
        for position, (user, answer) in enumerate(turns):
            system = f"<<SYS>>\n{template.system}\n<</SYS>>\n\n" if template.system and position == 0 else ""
            laid_out.append(Piece(f"[INST] {system}{front(user)} [/INST]", begin=position > 0))
            if answer:  # an empty one has no end token either, as in LLaVA: it teaches nothing
                blank = "" if bare else " "
                laid_out.append(Piece(f" {answer.strip()}{blank}", labelled=True, end=not bare))
        return laid_out
    laid_out = [Piece(f"{template.system} ")] if template.system else []
    for user, answer in turns:
        laid_out.append(Piece(f"{template.user}: {front(user)} {template.assistant}:"))
        if answer:
            laid_out.append(Piece(f" {answer.strip()}", labelled=True, end=not bare))
    return laid_out


def tokenize(tokenizer: Any, laid_out: Sequence[Piece]) -> Tokens:
    """Token ids and labels of a conversation.

    Args:
        tokenizer: a fast Hugging Face tokenizer (offsets are needed).
        laid_out: see :func:`pieces`.

    Returns:
        Ids and labels; a begin token comes first where the tokenizer has one, or where its chat template writes one.

    Raises:
        UserError: if the tokenizer cannot give offsets, or lacks a begin token, end token or chat template that is
            needed.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer {tokenizer.name_or_path}: a fast tokenizer is needed; save it as tokenizer.json")
    ids: list[int] = []
    if any(piece.role for piece in laid_out):
        stretches = rendered(tokenizer, [(piece.role, piece.text) for piece in laid_out])
    else:
        stretches = _stretches(tokenizer, laid_out)
        if tokenizer.bos_token_id is not None:
            ids.append(tokenizer.bos_token_id)
    labels: list[int] = [IGNORE] * len(ids)
    runs: list[list[Stretch]] = [[]]
    for stretch in stretches:
        first, *others = stretch.text.split(IMAGE_MARKER)
        runs[-1].append(Stretch(first, stretch.labelled, stretch.token))
        runs += [[Stretch(other, stretch.labelled)] for other in others]
    for position, run in enumerate(runs):
        if position > 0:
            ids.append(IMAGE_TOKEN)
            labels.append(IGNORE)
        _encode(tokenizer, run, ids, labels)
    return Tokens(tuple(ids), tuple(labels))


def stop_ids(tokenizer: Any, template: Template) -> tuple[int, ...]:
    """The tokens at which an answer ends.

    Returns:
        First the token that carries the loss of the answer's end, then the tokenizer's own end token if it differs.

    Raises:
        UserError: if there is no such token.
    """
    if template.style == "chat":
        ends = [end_of_turn(tokenizer).token, tokenizer.eos_token_id]
    else:
        ends = [_special(tokenizer, "eos").token]
    return tuple(dict.fromkeys(token for token in ends if token is not None))


def _special(tokenizer: Any, kind: Literal["bos", "eos"], labelled: bool = False) -> Stretch:
    token = getattr(tokenizer, f"{kind}_token_id")
    if token is None:
        name = {"bos": "begin", "eos": "end"}[kind]
        raise UserError(f"tokenizer {tokenizer.name_or_path} has no {name} token; set {kind}_token in its config")
    return Stretch(getattr(tokenizer, f"{kind}_token"), labelled, token)


def _stretches(tokenizer: Any, laid_out: Sequence[Piece]) -> list[Stretch]:
    stretches = []
    for piece in laid_out:
        if piece.begin:
            stretches.append(_special(tokenizer, "bos"))
        stretches.append(Stretch(piece.text, piece.labelled))
        if piece.end:
            stretches.append(_special(tokenizer, "eos", piece.labelled))
    return stretches


def _encode(tokenizer: Any, run: Sequence[Stretch], ids: list[int], labels: list[int]) -> None:
    """Appends the tokens of text between two images, encoded in one go: special tokens stand in it as text."""
    text = "".join(stretch.text for stretch in run)
    if not text:
        return
    labelled = [stretch.labelled for stretch in run for _ in stretch.text]
    special: dict[int, Stretch] = {}
    position = 0
    for stretch in run:
        position += len(stretch.text)
        if stretch.token is not None:
            special[position - 1] = stretch
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        # A token belongs where its last character does: " red" to the answer, however the blank before it is laid out;
        # but blanks that a special token swallows are not its own. Blanks alone may come with empty offsets.
        written = len(text[first:last].rstrip())
        position = max(first + (written or last - first) - 1, 0)
        ids.append(token)
        labels.append(token if labelled[position] else IGNORE)
        if position in special and special[position].token == token:
            del special[position]
    if special:
        missed = next(iter(special.values())).text
        raise UserError(
            f"tokenizer {tokenizer.name_or_path} does not see '{missed}' within a text as the token it is; set "
            "'special' to true and 'normalized' to false for it in tokenizer.json"
        )
