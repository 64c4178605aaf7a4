"""The formats that are known, and which files of a checkpoint they read."""

import hashlib
from pathlib import Path

from rllava.errors import UserError
from rllava.model.checkpoint import hugging_face, original, projector, trained
from rllava.model.checkpoint.files import folders_of
from rllava.model.checkpoint.layout import Layout
from rllava.model.checkpoint_spec import CheckpointSpec, Format
from rllava.weights import TOKENIZER_SETTINGS, TOKENIZERS, digest, files_of

LAYOUTS: dict[Format, Layout] = {
    "original": original.LAYOUT,
    "projector": projector.LAYOUT,
    "hugging_face": hugging_face.LAYOUT,
    "trained": trained.LAYOUT,
}


def read_files(spec: CheckpointSpec) -> list[Path]:
    """Every file that decides what a checkpoint computes, its encoders' excluded.

    Raises:
        UserError: if weights or tokenizer are missing.
    """
    what = f"checkpoint '{spec.name}'"
    folders = folders_of(spec.weights, what)
    tokenizer = [folders[-1] / file for file in TOKENIZERS if (folders[-1] / file).exists()]
    if not tokenizer:
        raise UserError(
            f"{what}: {folders[-1]} has no tokenizer; copy tokenizer.json, or tokenizer.model and "
            "tokenizer_config.json, from the language model it was made of"
        )
    settings = sorted(file for pattern in TOKENIZER_SETTINGS for file in folders[-1].glob(pattern))
    configs = [folder / "config.json" for folder in (folders if LAYOUTS[spec.format].configured else folders[-1:])]
    return [*configs, *settings, *tokenizer, *weights_files(spec)]


def weights_files(spec: CheckpointSpec) -> list[Path]:
    """The files with the weights, projectors' first where they have their own."""
    folders = folders_of(spec.weights, f"checkpoint '{spec.name}'")
    return [*LAYOUTS[spec.format].projectors(spec, folders[0]), *files_of(folders[-1])]


def checkpoint_digest(spec: CheckpointSpec) -> str:
    """Hash of the names and contents of :func:`read_files`.

    Args:
        spec: its own ``sha256`` is not looked at.

    Returns:
        Hexadecimal sha256.
    """
    return hashlib.sha256("\n".join(f"{file.name} {digest(file)}" for file in read_files(spec)).encode()).hexdigest()
