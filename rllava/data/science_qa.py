"""ScienceQA: questions with two to five choices, half of them about an image (Lu et al. 2022, arXiv 2209.09513).

Questions come as LLaVA ships them (``llava_test_CQM-A.json``: context, question and choices in one text), choices and
answers from the data set's ``problems.json``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rllava.data.entries import Entry
from rllava.data.files import FILES, ImageFile, data_path, read_json
from rllava.errors import UserError
from rllava.metrics.choice import LETTERS

ALL, WITH_IMAGE = "test", "test_image"
"""Splits: all test questions (4241), and those about an image (2017)."""


def science_qa_questions(split: str) -> list[Entry]:
    """Reads ScienceQA's test questions; the id is the data set's.

    Args:
        split: ``"test"`` or ``"test_image"``.

    Returns:
        One entry per question, in the order of LLaVA's file; its reference is the right letter.

    Raises:
        UserError: if a file is missing or of another format, a question has too few choices or its answer is none of
            them, or there is no such split.
    """
    if split not in (ALL, WITH_IMAGE):
        raise UserError(f"scienceqa has no split '{split}' here; use {ALL} or {WITH_IMAGE}")
    questions_path, problems_path, images = (data_path(file.path) for file in FILES["scienceqa"])
    problems = read_json(problems_path)
    if not isinstance(problems, dict):
        raise UserError(f"{problems_path} is no object of problems; it is another file than its name says")
    questions = read_json(questions_path)
    if not isinstance(questions, list):
        raise UserError(f"{questions_path} is no list of questions; it is another file than its name says")
    entries = []
    for row, question in enumerate(questions):
        try:
            entry = _entry(question, images)
        except (KeyError, TypeError, IndexError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{questions_path}: entry {row} is not in LLaVA's format ({reason}); fetch it again"
            ) from error
        entries.append(_with_letter(entry, problems, problems_path, questions_path))
    with_image = [entry for entry in entries if entry.load_image is not None]
    files = (entry.load_image for entry in with_image)
    check_images = [file.path for file in files if isinstance(file, ImageFile)]
    _check_images(check_images, images, questions_path)
    return entries if split == ALL else with_image


def _entry(question: Mapping[str, Any], images: Path) -> Entry:
    """Without what is right."""
    # The published code takes the marker out as well, and puts it before what is left.
    text = str(question["conversations"][0]["value"]).replace("<image>", "").strip()
    image = ImageFile(f"{images}/{question['image']}") if "image" in question else None
    return Entry(str(question["id"]), image, (), text)


def _with_letter(entry: Entry, problems: Mapping[str, Any], path: Path, questions: Path) -> Entry:
    try:
        choices, answer = list(problems[entry.sample_id]["choices"]), int(problems[entry.sample_id]["answer"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has no choices and answer to question {entry.sample_id} of {questions}; fetch both again"
        ) from error
    if not 2 <= len(choices) <= len(LETTERS) or not 0 <= answer < len(choices):
        raise UserError(
            f"{path}: question {entry.sample_id} has {len(choices)} choices, and number {answer} is right; expected 2 "
            f"to {len(LETTERS)} of them with the right one among them"
        )
    return Entry(entry.sample_id, entry.load_image, (LETTERS[answer],), entry.question)


def _check_images(paths: list[str], images: Path, named_by: Path) -> None:
    """As :func:`check_layout`, where every image has a folder of its own: the first ones have to be there."""
    if paths and not any(Path(path).is_file() for path in paths[:100]):
        raise UserError(
            f"{images} lacks the images that {named_by} names: not one of the first {len(paths[:100])} is there "
            f"(e.g. {Path(paths[0]).relative_to(images)}); unpack them so that they lie there"
        )
