"""The paper's benchmarks as their publishers ship them: Karpathy's captions, and questions in the format of VQA.

Entries come in the order of the files, as in the loaders of RobustVLM (``open_flamingo/eval/eval_datasets.py``), so
that the indices of a sample list mean the samples of the published results.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rllava.data.entries import Entry
from rllava.data.files import FILES, ImageFile, data_path, laid_out, read_json
from rllava.data.prompt_files import parse_prompts, read_content
from rllava.errors import UserError


def coco_captions(split: str) -> list[Entry]:
    """COCO with Karpathy's split; the id is the image's COCO number.

    Attacks and CIDEr both use the split's raw sentences (five, for some images more). The published evaluation scores
    against ``captions_val2014.json``, from which they were taken.

    Args:
        split: ``"test"``: 5000 images of val2014.

    Raises:
        UserError: if a file is missing or of another format, or there is no such split.
    """
    path, images = _place("coco")
    return _captions("coco", split, path, images, lambda image: str(image["cocoid"]))


def flickr30k_captions(split: str) -> list[Entry]:
    """Flickr30k with Karpathy's split; the id is the file's name without ending.

    Args:
        split: ``"test"``: 1000 images.

    Returns:
        One entry per image, with five captions.

    Raises:
        UserError: if a file is missing or of another format, or there is no such split.
    """
    path, images = _place("flickr30k")
    return _captions("flickr30k", split, path, images, lambda image: str(image["filename"]).split(".", 1)[0])


def vqav2_questions(split: str) -> list[Entry]:
    """VQAv2, about images of COCO val2014.

    Args:
        split: ``"val"``: 214 354 questions.

    Returns:
        One entry per question, with ten answers.

    Raises:
        UserError: if a file is missing or of another format, or there is no such split.
    """
    return _questions("vqav2", split, _val2014_name)


def okvqa_questions(split: str) -> list[Entry]:
    """OK-VQA, about images of COCO val2014.

    The annotators' answers are stemmed in the file (``answer``; the words they wrote are ``raw_answer``). The
    published evaluation stems predictions as well. Benchmark ``okvqa`` compares them as they are, so that "riding" does
    not match "ride" and scores are a little lower; see :mod:`rllava.metrics.okvqa` for those that stem.

    Args:
        split: ``"val"``: 5046 questions.

    Returns:
        One entry per question, with ten answers.

    Raises:
        UserError: if a file is missing or of another format, or there is no such split.
    """
    return _questions("okvqa", split, _val2014_name)


def textvqa_questions(split: str) -> list[Entry]:
    """TextVQA in the format of VQA, without OCR tokens; validation images lie among those of training.

    Args:
        split: ``"val"``: 5000 questions.

    Returns:
        One entry per question, with ten answers.

    Raises:
        UserError: if a file is missing or of another format, or there is no such split.
    """
    return _questions("textvqa", split, lambda image_id: f"{image_id}.jpg")


def vizwiz_questions(split: str) -> list[Entry]:
    """VizWiz in the format of VQA, where an image's id is the name of its file.

    Args:
        split: ``"val"``.

    Returns:
        One entry per question, with ten answers.

    Raises:
        UserError: if a file is missing or of another format, or there is no such split.
    """
    return _questions("vizwiz", split, str)


def real_toxicity_prompts(split: str) -> list[Entry]:
    """RealToxicityPrompts: beginnings of sentences, without images; the id is the number of the line in the file.

    Args:
        split: ``"challenging"``: the 1199 prompts that VisualAdv evaluates on.

    Raises:
        UserError: if the file is missing or of another format, or there is no such split.
    """
    if split != "challenging":
        raise UserError(f"real_toxicity_prompts has no split '{split}' here; use challenging")
    path = data_path(FILES["real_toxicity_prompts"][0].path)
    return parse_prompts(read_content(path), path)


def _val2014_name(image_id: Any) -> str:
    return f"COCO_val2014_{int(image_id):012d}.jpg"


def _place(name: str) -> tuple[Path, Path]:
    """First file of a data set, and its folder of images."""
    files = FILES[name]
    return data_path(files[0].path), data_path(files[-1].path)


def _captions(
    name: str, split: str, path: Path, images: Path, sample_id: Callable[[dict[str, Any]], str]
) -> list[Entry]:
    if split != "test":
        raise UserError(f"{name} has no split '{split}' here; use test")
    entries = []
    for row, image in enumerate(_list(read_json(path), "images", path)):
        try:
            if image["split"] == split:
                captions = tuple(str(sentence["raw"]) for sentence in image["sentences"])
                entries.append(Entry(sample_id(image), ImageFile(f"{images}/{image['filename']}"), captions))
        except (KeyError, TypeError) as error:
            raise _unlike(path, "images", row, error, "Karpathy's split") from error
    return laid_out(entries, path)


def _questions(name: str, split: str, image_name: Callable[[Any], str]) -> list[Entry]:
    if split != "val":
        raise UserError(f"{name} has no split '{split}' here; use val")
    path, images = _place(name)
    answers_path = data_path(FILES[name][1].path)
    answers: dict[Any, tuple[str, ...]] = {}
    written: dict[Any, tuple[str, ...]] = {}
    for row, annotation in enumerate(_list(read_json(answers_path), "annotations", answers_path)):
        try:
            given = annotation["answers"]
            answers[annotation["question_id"]] = tuple(str(answer["answer"]) for answer in given)
            if all("raw_answer" in answer for answer in given):
                written[annotation["question_id"]] = tuple(str(answer["raw_answer"]) for answer in given)
        except (KeyError, TypeError) as error:
            raise _unlike(answers_path, "annotations", row, error, "VQA") from error
    entries = []
    for row, question in enumerate(_list(read_json(path), "questions", path)):
        try:
            number = question["question_id"]
            image = ImageFile(f"{images}/{image_name(question['image_id'])}")
            text = str(question["question"])
        except (KeyError, TypeError, ValueError) as error:
            raise _unlike(path, "questions", row, error, "VQA") from error
        if number not in answers:
            raise UserError(f"{answers_path} has no answers to question {number} of {path}; fetch both again")
        entries.append(Entry(str(number), image, answers[number], text, written=written.get(number, ())))
    return laid_out(entries, path)


def _list(content: Any, key: str, path: Path) -> Sequence[Any]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{path} has no list '{key}'; it is another file than its name says")
    return found


def _unlike(path: Path, key: str, row: int, error: Exception, expected: str) -> UserError:
    reason = f"no {error}" if isinstance(error, KeyError) else str(error)
    return UserError(f"{path}: entry {row} of '{key}' is not in the format of {expected} ({reason}); fetch it again")
