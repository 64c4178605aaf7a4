"""Encoders that a step made, alone or within a LLaVA, from the storage to this machine."""

import dataclasses
import os
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from rllava.encoders import Encoder, EncoderSpec, build_encoder
from rllava.errors import UserError
from rllava.model.assemble import ENCODERS
from rllava.pinned import WEIGHTS, MadeBy, Pinned
from rllava.store import Artifact, Store
from rllava.weights import weights_folder


def place_of(made: MadeBy, store: Store) -> Artifact:
    """Where a step leaves weights.

    Returns:
        An artifact of kind ``encoders``, or ``models`` where a LLaVA's training made them.
    """
    return store.artifact("encoders" if made.index is None else "models", made.spec.name, made.spec)


def build_at_hand(spec: EncoderSpec, store: Store) -> Encoder:
    """Builds an encoder, wherever its weights come from.

    Returns:
        See :func:`rllava.encoders.build_encoder`.

    Raises:
        UserError: if the step has not been made, or its weights are missing or do not fit.
    """
    made = spec.weights
    if not isinstance(made, MadeBy) or made.index is None:
        return build_encoder(at_hand(spec, store))
    artifact = place_of(made, store)
    encoder = build_encoder(dataclasses.replace(spec, weights=None))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / WEIGHTS
        name = f"{artifact.relative}/{trained_file(len(made.spec.stages), made.index)}"
        try:
            store.fetch(f"{store.root}/{name}", file)
            encoder.load_state_dict(load_file(file))
        except FileNotFoundError as error:
            raise UserError(
                f"{spec.label}: {store.url} holds no {name}, which its weights are; run the sweep that makes it"
            ) from error
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise UserError(
                f"{spec.label}: {store.url}/{name} does not fit ({reason}); delete the model's folder and run the "
                "sweep again"
            ) from error
    return encoder.requires_grad_(False).eval()


def trained_file(stage: int, index: int) -> str:
    """Where a training stage leaves an encoder, in the model's artifact.

    Args:
        stage: number, from 1.
        index: of the encoder in the LLaVA.
    """
    return f"stage{stage}/{ENCODERS}/{index}.safetensors"


def at_hand(spec: EncoderSpec, store: Store) -> EncoderSpec:
    """An encoder whose weights are files of this machine.

    What a step made is read where it lies, if the storage is a folder, else copied once, whole, into the weights
    folder; its hash, which the step noted, is checked when it is read.

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
