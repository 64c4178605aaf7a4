"""ScienceQA: questions with two to five choices, half of them about an image (Lu et al. 2022, arXiv 2209.09513).

Questions come as LLaVA ships them (``llava_test_CQM-A.json``: context, question and choices in one text), choices and
answers from the data set's ``problems.json``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rllava.data.entries import Entry
from rllava.data.files import FILES, ImageFile, data_path, read_json
from rllava.errors import UserError
from rllava.metrics.choice import LETTERS

ALL, WITH_IMAGE = "test", "test_image"
"""Splits: all test questions (4241), and those about an image (2017)."""

_PROBED = 100


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
    questions, problems = read_json(questions_path), read_json(problems_path)
    if not isinstance(questions, list) or not isinstance(problems, dict):
        wrong = problems_path if isinstance(questions, list) else questions_path
        raise UserError(f"{wrong} is not in the format of ScienceQA; it is another file than its name says")
    entries = []
    for row, question in enumerate(questions):
        try:
            asked = _asked(question, images)
        except (KeyError, TypeError, IndexError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{questions_path}: entry {row} is not in LLaVA's format ({reason}); fetch it again"
            ) from error
        entries.append(replace(asked, references=(_letter(asked.sample_id, problems, problems_path, questions_path),)))
    with_image = [entry for entry in entries if entry.load_image is not None]
    _check_images([entry.load_image for entry in with_image], images, questions_path)
    return entries if split == ALL else with_image


def _asked(question: Mapping[str, Any], images: Path) -> Entry:
    """A question, without what is right."""
    # The published code takes the marker out as well, and puts it before what is left.
    text = str(question["conversations"][0]["value"]).replace("<image>", "").strip()
    image = ImageFile(f"{images}/{question['image']}") if "image" in question else None
    return Entry(str(question["id"]), image, (), text)


def _letter(name: str, problems: Mapping[str, Any], path: Path, questions: Path) -> str:
    try:
        choices, answer = list(problems[name]["choices"]), int(problems[name]["answer"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no choices and answer to question {name} of {questions}; fetch both") from error
    if not 2 <= len(choices) <= len(LETTERS) or not 0 <= answer < len(choices):
        raise UserError(
            f"{path}: question {name} has {len(choices)} choices, and number {answer} is right; expected 2 to "
            f"{len(LETTERS)}, the right one among them"
        )
    return LETTERS[answer]


def _check_images(loaders: Sequence[object], images: Path, named_by: Path) -> None:
    """As :func:`rllava.data.files.check_layout`, where every image has a folder of its own."""
    paths = [Path(loader.path) for loader in loaders[:_PROBED] if isinstance(loader, ImageFile)]
    if paths and not any(path.is_file() for path in paths):
        raise UserError(
            f"{images} lacks the images that {named_by} names: not one of the first {len(paths)} is there "
            f"(e.g. {paths[0].relative_to(images)}); unpack them so that they lie there"
        )
