"""MultiTrust's adversarial images (Zhang et al. 2024, arXiv 2406.07057): made against other models, and labels.

100 images of NIPS 2017's competition, labelled anew; each clean, attacked so that it shall look like nothing of the
kind, and attacked so that it shall look like something else. A model is asked for a description of each; whether that
names the label is the score. Nothing of it was searched for against the model that answers, so the names of the
benchmarks of attacked images say ``nonadaptive``.
"""

from pathlib import Path

from rllava.data.entries import Entry
from rllava.data.files import FILES, ImageFile, data_path, read_json_lines
from rllava.errors import UserError

LABELS = {"clean": "untarget", "untarget": "untarget", "target": "target"}
"""By split: the list of the label file whose first name counts. Of ``target`` it is what the attacker wants seen."""

BENCHMARKS_OF = {split: f"multitrust_{split}{'' if split == 'clean' else '_nonadaptive'}" for split in LABELS}
"""Names of sources and benchmarks, by split."""

_TOLD = 3


def multitrust_images(split: str) -> list[Entry]:
    """Reads the images of a split with their labels; the id is the label file's.

    Args:
        split: ``"clean"``, ``"untarget"`` or ``"target"``.

    Returns:
        One entry per line, in the order of the file: the label is the reference, and what judges are told.

    Raises:
        UserError: if the file is missing or of another format, a labelled image is not there, an image has no label, or
            there is no such split.
    """
    if split not in LABELS:
        raise UserError(f"multitrust has no split '{split}' here; use {', '.join(LABELS)}")
    files = FILES[BENCHMARKS_OF[split]]
    path, images = data_path(files[0].path), data_path(files[1].path)
    entries, names = [], []
    for number, row in read_json_lines(path):
        try:
            name, label = str(row["image_name"]), str(row[LABELS[split]][0])
            sample_id = str(row["image_id"])
        except (KeyError, TypeError, IndexError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{path}: line {number} is not in the format of MultiTrust ({reason}); fetch it again"
            ) from error
        names.append(name)
        entries.append(Entry(sample_id, ImageFile(f"{images}/{name}"), (label,), judged_as=label))
    _check_complete(path, images, names)
    return entries


def _check_complete(labels: Path, images: Path, names: list[str]) -> None:
    there = {image.name for image in images.iterdir() if image.is_file() and not image.name.startswith(".")}
    lacking, unlabelled = sorted(set(names) - there), sorted(there - set(names))
    if lacking:
        raise UserError(
            f"{images} lacks {len(lacking)} images that {labels} labels ({_some(lacking)}); unpack them there"
        )
    if unlabelled:
        raise UserError(
            f"{images} has {len(unlabelled)} images without a label in {labels} ({_some(unlabelled)}); label them, or "
            "take them out"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_TOLD]) + (", …" if len(names) > _TOLD else "")
