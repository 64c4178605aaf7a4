"""The sweep's manifest (``reports/<sweep>/sweep.json``): what was run, written by the sweep, read by the analysis."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rllava.errors import UserError


@dataclass(frozen=True)
class RecordsEntry:
    """One records artifact of a sweep: a candidate on a benchmark at a budget.

    Attributes:
        path: folder, relative to the storage, e.g. ``records/<name>-<fingerprint>``.
        candidate: ``a`` (end-to-end), ``a+b`` (ensemble) or ``b@a`` (b plugged into the LLaVA of a).
        benchmark: data set + prompt + metric.
        epsilon: budget in 1/255.
        seconds: wall-clock time of the evaluation; NaN where unknown.
        reused: whether an earlier run had computed it.
    """

    path: str
    candidate: str
    benchmark: str
    epsilon: float
    seconds: float
    reused: bool


@dataclass(frozen=True)
class ModelEntry:
    """One trained LLaVA of a sweep; ``seconds`` is its training's wall-clock time (NaN: unknown)."""

    name: str
    path: str
    seconds: float
    reused: bool
    parameters: int | None
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What a sweep ran: the grid (candidates, benchmarks, budgets in 1/255), its artifacts, versions and times."""

    sweep: str
    candidates: tuple[str, ...]
    benchmarks: tuple[str, ...]
    budgets: tuple[float, ...]
    protocol: str
    samples: int
    preset: str
    records: tuple[RecordsEntry, ...]
    models: tuple[ModelEntry, ...]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    started: str
    finished: str
    wall_seconds: float


def parse_manifest(text: str, where: str) -> Manifest:
    """Parses a manifest. The grid and the artifacts are required; versions, machine and times may be missing.

    Args:
        text: the JSON text.
        where: the file's path or URL, for the error message.

    Returns:
        The manifest; budgets are floats in 1/255, in increasing order.

    Raises:
        UserError: if the text is no JSON, or a required key is missing or of the wrong kind.
    """
    try:
        raw = json.loads(text)
        return Manifest(
            sweep=str(raw["sweep"]),
            candidates=_names(raw, "candidates"),
            benchmarks=_names(raw, "benchmarks"),
            budgets=tuple(sorted(float(budget) for budget in raw["budgets"])),
            protocol=str(raw["protocol"]),
            samples=int(raw["samples"]),
            preset=str(raw.get("preset", "")),
            records=tuple(_records_entry(entry) for entry in raw["records"]),
            models=tuple(_model_entry(entry) for entry in raw.get("models", ())),
            versions={str(name): str(version) for name, version in raw.get("versions", {}).items()},
            machine=dict(raw.get("machine", {})),
            started=str(raw.get("started") or ""),
            finished=str(raw.get("finished") or ""),
            wall_seconds=float(raw.get("wall_seconds") or 0.0),
        )
    except KeyError as error:
        raise UserError(f"{where}: no sweep manifest, key {error} is missing; run the sweep again") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: no sweep manifest ({error}); run the sweep again") from error


def _names(raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = raw[key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"'{key}' must be a list of names")
    return tuple(names)


def _seconds(raw: Mapping[str, Any]) -> float:
    seconds = raw.get("seconds")
    return float("nan") if seconds is None else float(seconds)


def _records_entry(raw: Mapping[str, Any]) -> RecordsEntry:
    return RecordsEntry(
        path=str(raw["path"]).strip("/"),
        candidate=str(raw["candidate"]),
        benchmark=str(raw["benchmark"]),
        epsilon=float(raw["epsilon"]),
        seconds=_seconds(raw),
        reused=bool(raw.get("reused", False)),
    )


def _model_entry(raw: Mapping[str, Any]) -> ModelEntry:
    parameters = raw.get("parameters")
    return ModelEntry(
        name=str(raw["name"]),
        path=str(raw.get("path", "")).strip("/"),
        seconds=_seconds(raw),
        reused=bool(raw.get("reused", False)),
        parameters=None if parameters is None else int(parameters),
        spec=dict(raw.get("spec") or {}),
    )
