"""POPE: whether an object is in an image of COCO (Li et al. 2023, arXiv 2305.10355), from the files that LLaVA uses.

Half of the questions, of ``random`` a little more, are about objects that are there. The others are about absent ones:
``random``, ``popular`` (the most frequent in the data set) or ``adversarial`` (those that co-occur most with what is
there).
"""

from rllava.data.entries import Entry
from rllava.data.files import FILES, ImageFile, data_path, laid_out, read_json_lines
from rllava.errors import UserError

SAMPLES = {"random": 2910, "popular": 3000, "adversarial": 3000}
"""Questions of each strategy."""

_SAID = {"yes": "Yes", "no": "No"}
"""As LLaVA answers."""


def pope_questions(split: str) -> list[Entry]:
    """Reads the questions of a strategy; the id is the file's number of the question.

    Args:
        split: ``"random"``, ``"popular"`` or ``"adversarial"``.

    Returns:
        One entry per question, in the order of the file; its reference is "Yes" or "No".

    Raises:
        UserError: if the file is missing or of another format, or there is no such split.
    """
    if split not in SAMPLES:
        raise UserError(f"pope has no split '{split}' here; use {', '.join(SAMPLES)}")
    place = next(file.path for file in FILES["pope"] if f"_{split}." in file.path)
    path, images = data_path(place), data_path(FILES["pope"][-1].path)
    entries = []
    for number, row in read_json_lines(path):
        try:
            image = ImageFile(f"{images}/{row['image']}")
            entries.append(Entry(str(row["question_id"]), image, (_SAID[row["label"]],), str(row["text"])))
        except (KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}: line {number} is not in the format of POPE ({reason}); fetch it again") from error
    return laid_out(entries, path)
