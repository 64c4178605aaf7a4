"""Text without images: what the tiny language model and its tokenizer are pre-trained on."""

from typing import NamedTuple

from rllava.data.easy_vqa_source import EasyImage, easy_images
from rllava.data.pairs import CAPTION_TEMPLATES, captions_of
from rllava.tasks.captioning import CAPTION_PROMPT
from rllava.tasks.short_answer import VQA_PROMPT

_QUESTIONS_PER_IMAGE = 4
_ASK = VQA_PROMPT.rsplit("\n", 1)[1]
_DESCRIBE = CAPTION_PROMPT.rsplit("\n", 1)[1]
_INSTRUCTIONS = (
    _DESCRIBE,
    _ASK,
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
)


class Line(NamedTuple):
    """One text, which stands alone.

    Attributes:
        prompt: read without being learned; empty for plain text.
    """

    prompt: str
    text: str


def easy_corpus() -> list[Line]:
    """Writes the text corpus from the train split of easy-VQA.

    What images show, questions with their answers, and conversations about a description given in words, in the form
    that is later used with an image in the description's place. Like a chat-tuned language model, the tiny one can
    then read before it sees: what LLaVA training adds is the image.

    Returns:
        About 58 000 lines, always the same ones in the same order.
    """
    plain = list(_INSTRUCTIONS) * 20
    conversations = []
    for image in easy_images("train"):
        chosen = image.questions[:_QUESTIONS_PER_IMAGE]
        plain += [f"{question.text}\n{_ASK} {question.answer}" for question in chosen]
        if image.colour is not None and image.shape is not None:
            plain += captions_of(image.sample_id, image.colour, image.shape, 3)
            conversations += _conversations(image, image.colour, image.shape)
    return [Line("", text) for text in plain] + conversations


def _conversations(image: EasyImage, colour: str, shape: str) -> list[Line]:
    descriptions = captions_of(f"read {image.sample_id}", colour, shape, len(CAPTION_TEMPLATES))
    lines = [
        Line(_asked(VQA_PROMPT.replace("{question}", question.text), description), f" {question.answer}")
        for description, question in zip(descriptions, image.questions, strict=False)
    ]
    return [*lines, Line(_asked(CAPTION_PROMPT, descriptions[-1]), f" {descriptions[0]}")]


def _asked(prompt: str, description: str) -> str:
    return f"USER: {prompt.replace('<image>', description)} ASSISTANT:"
