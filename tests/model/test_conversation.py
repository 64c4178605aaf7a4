"""Templates, tokens and label masks."""

import pytest

from rllava.errors import UserError
from rllava.model.conversation import IGNORE, IMAGE_TOKEN, TEMPLATES, Tokens, image_first, pieces, tokenize
from rllava.model.language import TINY_LLAMA, load_language_model

_, TOKENIZER = load_language_model(TINY_LLAMA)


def tokens(template: str, *turns: tuple[str, str | None]) -> Tokens:
    return tokenize(TOKENIZER, pieces(TEMPLATES.get(template), turns))


def text(ids: tuple[int, ...]) -> str:
    if IMAGE_TOKEN in ids:
        place = ids.index(IMAGE_TOKEN)
        return f"{text(ids[:place])}<image>{text(ids[place + 1 :])}"
    return str(TOKENIZER.decode(ids))


def labelled(sample: Tokens) -> str:
    assert all(label in (IGNORE, token) for token, label in zip(sample.ids, sample.labels, strict=True))
    return text(tuple(label for label in sample.labels if label != IGNORE))


def test_vicuna_text_is_that_of_llava() -> None:
    sample = tokens("vicuna_v1", ("<image>\nwhat is it?", "a circle"), ("and its color?", "red"))
    assert text(sample.ids) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nwhat is it? ASSISTANT: a circle</s>"
        "USER: and its color? ASSISTANT: red</s>"
    )


@pytest.mark.parametrize("answer", ["red", "a red circle.", "two words", "ünïcode – ≠", "", "12"])
def test_loss_is_on_answers_and_end_tokens_alone(answer: str) -> None:
    sample = tokens("vicuna_v1_short", ("<image>\nwhat is it?", answer), ("sure?", "yes"))
    first = f" {answer}</s>" if answer else ""  # an empty answer is left out with its end, as in LLaVA
    assert labelled(sample) == f"{first} yes</s>"


def test_plain_drops_the_instruction_and_ends_with_a_newline() -> None:
    sample = tokens("plain", ("<image>\nDescribe the image.", "A red circle."))
    assert text(sample.ids) == "<s><image>A red circle.\n"
    assert labelled(sample) == "A red circle.\n"


def test_plain_puts_no_image_where_there_is_none() -> None:
    assert text(tokens("plain", ("Write a poem.", "Roses are red.")).ids) == "<s>Roses are red.\n"


def test_a_prompt_is_a_prefix_of_the_same_conversation_with_an_answer() -> None:
    question = "<image>\nwhat color is the shape?\nAnswer the question using a single word or phrase."
    prompt, whole = tokens("vicuna_v1_short", (question, None)), tokens("vicuna_v1_short", (question, "red"))
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert set(whole.labels[: len(prompt.ids)]) == {IGNORE}
    assert IGNORE not in whole.labels[len(prompt.ids) :]


def test_llama_2_text_is_that_of_llava() -> None:
    sample = tokens("llava_llama_2", ("<image>\nwhat is it?", "a circle"), ("and its color?", "red"))
    assert text(sample.ids) == (
        "<s>[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual "
        "content that the user provides, and assist the user with a variety of tasks using natural language.\n"
        "<</SYS>>\n\n<image>\nwhat is it? [/INST] a circle </s><s>[INST] and its color? [/INST] red </s>"
    )
    assert labelled(sample) == " a circle </s> red </s>"


def test_the_image_moves_to_the_front() -> None:
    assert image_first("what is <image> this?") == "<image>\nwhat is  this?"
    assert image_first("no image") == "no image"
    assert tokens("vicuna_v1_short", ("what is this?\n<image>", None)).ids.count(IMAGE_TOKEN) == 1


def test_slow_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False
        name_or_path = "slow"

    with pytest.raises(UserError, match="fast tokenizer"):
        tokenize(Slow(), [])
