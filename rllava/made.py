"""Encoders that a step made, from the storage to this machine."""

import dataclasses
import os
import tempfile
from pathlib import Path

from rllava.encoders.base import EncoderSpec
from rllava.errors import UserError
from rllava.pinned import WEIGHTS, MadeBy, Pinned
from rllava.store import Artifact, Store
from rllava.weights import weights_folder


def place_of(made: MadeBy, store: Store) -> Artifact:
    """Where a step leaves weights.

    Args:
        made: by which step.
        store: results folder.

    Returns:
        An artifact of kind ``encoders``.
    """
    return store.artifact("encoders", made.spec.name, made.spec)


def at_hand(spec: EncoderSpec, store: Store) -> EncoderSpec:
    """An encoder whose weights are files of this machine.

    What a step made is read where it lies, if the storage is a folder, else copied once, whole, into the weights
    folder; its hash, which the step noted, is checked when it is read.

    Args:
        spec: of the encoder.
        store: results folder.

    Returns:
        The spec; another one than was asked for, to build the encoder from and for nothing else.

    Raises:
        UserError: if the step has not been made, or its weights are missing.
    """
    if not isinstance(spec.weights, MadeBy):
        return spec
    artifact = place_of(spec.weights, store)
    try:
        sha256 = str(store.facts(artifact)["sha256"])
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise UserError(
            f"{spec.label}: {store.url} holds no finished {artifact.relative}, which its weights come from; run the "
            "sweep that makes it"
        ) from error
    path = Path(artifact.path) / WEIGHTS if store.is_local else _copy_of(artifact, store, sha256)
    return dataclasses.replace(spec, weights=Pinned(str(path), sha256))


def _copy_of(artifact: Artifact, store: Store, sha256: str) -> Path:
    folder = weights_folder() / "made"
    path = folder / f"{sha256}.safetensors"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            store.fetch(f"{artifact.path}/{WEIGHTS}", Path(scratch) / WEIGHTS)
        except FileNotFoundError as error:
            raise UserError(
                f"{store.url}/{artifact.relative} lacks {WEIGHTS}; delete the folder and run the sweep again"
            ) from error
        os.replace(Path(scratch) / WEIGHTS, path)  # workers of one machine may copy at the same time
    return path
