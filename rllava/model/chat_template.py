"""The chat template of a language model's tokenizer: which part of its text is the assistant's.

Nothing is asked of a template but that it lays a conversation out as text. Answers are found by rendering stand-ins in
their place, so ``{% generation %}`` marks are not needed, and an answer stays as it is whatever it contains.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rllava.errors import UserError

# For templates that write today's date into their system prompt: a record must not depend on when it was made. The day
# is the one that Llama 3.1 falls back to.
_DAY = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
_FIXED_DAY = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{code}', '{value}')" for code, value in _DAY.items())
    + " }}{%- endmacro %}"
)


_OF_PARTS = re.compile(r"selectattr\(\s*['\"]type|\[['\"]type['\"]\]|\.type\b")
"""In templates of multi-modal processors, whose messages are lists of parts; a few take a text as well."""


@dataclass(frozen=True)
class Stretch:
    """Laid-out text.

    Attributes:
        text: may contain image markers and special tokens.
        token: that the text ends with; None: no particular one.
    """

    text: str
    labelled: bool = False
    token: int | None = None


def end_of_turn(tokenizer: Any) -> Stretch:
    """What a chat template puts after an answer, up to the token that ends the turn.

    Returns:
        Text and token, labelled: the model has to write them.

    Raises:
        UserError: if there is no template, or no special token after an answer.
    """
    mark = "\ue000"
    text = _render(tokenizer, [("user", "?"), ("assistant", mark)])
    tail = text.partition(mark)[2]
    known = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = [(tail.index(token), -len(token), token) for token in known if token in tail]
    if not found:
        raise UserError(
            f"{_template_of(tokenizer)} puts no special token after an answer, so generation could not stop; end the "
            "assistant's turn with one, or choose another conversation, e.g. vicuna_v1"
        )
    start, _, token = min(found)
    return Stretch(tail[: start + len(token)], True, tokenizer.convert_tokens_to_ids(token))


def rendered(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> list[Stretch]:
    """Lays a conversation out by the tokenizer's chat template.

    Args:
        messages: (role, text); if the last one is not the assistant's, the text ends where generation begins.

    Returns:
        Stretches in order; labelled is what the model has to write: answers and what ends their turns.

    Raises:
        UserError: if there is no template, it refuses the conversation or leaves a part of it out, or its generation
            prompt is not what stands before answers.
    """
    said = "".join(text for _, text in messages)
    mark = next(mark for mark in map(chr, range(0xE000, 0xF8FF)) if mark not in said)
    marked = [(role, mark if role == "assistant" else text) for role, text in messages]
    answers = [text for role, text in messages if role == "assistant"]
    whole = _render(tokenizer, marked)
    before, *after = whole.split(mark)
    missing = next((role for role, text in marked if role != "assistant" and text.strip() not in whole), None)
    if len(after) != len(answers):
        missing = "assistant"
    if missing is not None:
        raise UserError(
            f"{_template_of(tokenizer)} does not write the {missing}'s text once and as it is; choose another template"
        )
    blank = _blank_before_answers(tokenizer, marked, mark)
    end = end_of_turn(tokenizer)
    stretches = []
    for answer, rest in zip(answers, after, strict=True):
        own = blank if before.endswith(blank) else ""
        stretches += [Stretch(before.removesuffix(own)), Stretch(own + answer, True)]
        if rest.startswith(end.text):
            stretches.append(end)
            rest = rest.removeprefix(end.text)
        before = rest
    return [*stretches, Stretch(before)]


def _blank_before_answers(tokenizer: Any, marked: Sequence[tuple[str, str]], mark: str) -> str:
    """What the template puts between its generation prompt and an answer: the model writes it, and it must be blank."""
    last = max((row for row, (role, _) in enumerate(marked) if role == "assistant"), default=None)
    if last is None:
        return ""
    opening = _render(tokenizer, marked[:last])
    answered = _render(tokenizer, marked[: last + 1])
    between = answered.removeprefix(opening).partition(mark)[0]
    if not answered.startswith(opening) or between.strip():
        raise UserError(
            f"{_template_of(tokenizer)}: its generation prompt is not what stands before an answer, so generation "
            "would begin elsewhere than the loss; mend what it does with add_generation_prompt"
        )
    return between


def _render(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path} has no chat template; set chat_template in its config, or choose "
            "another conversation, e.g. vicuna_v1"
        )
    try:
        template = tokenizer.get_chat_template()
        in_parts = _OF_PARTS.search(template) and "is string" not in template
        text: str = tokenizer.apply_chat_template(
            [
                # The text holds the image's place, so the image is no part of its own.
                {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
                for role, text in messages
            ],
            chat_template=_FIXED_DAY + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=messages[-1][0] != "assistant",
            enable_thinking=False,  # the answer is asked for, without a text before it
        )
    except Exception as error:  # a template is a program of its own
        reason = str(error).strip().split("\n", 1)[0]
        roles = ", ".join(dict.fromkeys(role for role, _ in messages))
        raise UserError(
            f"{_template_of(tokenizer)} refuses a conversation of {roles} ({reason}); choose another template, or one "
            "without what it refuses"
        ) from error
    return text


def _template_of(tokenizer: Any) -> str:
    return f"chat template of tokenizer {tokenizer.name_or_path}"
