"""Text without images: what the tiny language model and its tokenizer are pre-trained on."""

from rllava.data.easy_vqa_source import COLOURS, SHAPES, EasyImage, easy_images
from rllava.data.pairs import CAPTION_TEMPLATES, caption_of, captions_of

_QUESTIONS_PER_IMAGE = 4
_INSTRUCTIONS = (
    "Provide a short caption for this image.",
    "Answer the question using a single word or phrase.",
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
)


def easy_corpus() -> list[str]:
    """Writes the text corpus from the train split of easy-VQA.

    Every line stands alone: what images show, questions with their answers, an answer reasoned from a caption
    (so that the text alone teaches which answer follows from a colour and a shape), and the evaluation's instructions.

    Returns:
        About 40 000 lines, always the same ones in the same order.
    """
    lines = list(_INSTRUCTIONS) * 20
    for image in easy_images("train"):
        lines += _caption_lines(image) + _question_lines(image)
    for colour in COLOURS:
        for shape in SHAPES:
            lines += [caption_of(colour, shape, template) for template in range(len(CAPTION_TEMPLATES))]
    return lines


def _caption_lines(image: EasyImage) -> list[str]:
    if image.colour is None or image.shape is None:
        return []
    return captions_of(image.sample_id, image.colour, image.shape, 3)


def _question_lines(image: EasyImage) -> list[str]:
    lines = []
    for question in image.questions[:_QUESTIONS_PER_IMAGE]:
        asked = f"{question.text}\nAnswer the question using a single word or phrase."
        lines.append(f"{asked} {question.answer}")
        if image.colour is not None and image.shape is not None:
            lines.append(f"{caption_of(image.colour, image.shape)} {asked} {question.answer}")
    return lines
