"""The sweep's manifest (``reports/<sweep>/sweep.json``): what was run. The sweep writes it, the analysis reads it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rllava.errors import UserError

MANIFEST_FORMAT = 2
"""Raised when what the file holds means something else. A file of before the second one does not say its format."""

SHOWN = "shown"
"""Kind of the conditions that show every sample the same picture, or none."""

UNIVERSAL = "universal"
"""Kind of the conditions that show every sample one image, which was made against a corpus of sentences."""

UNCONSTRAINED = 255.0
"""Budget of an image that has none, in 1/255."""


@dataclass(frozen=True)
class ConditionEntry:
    """What models were shown.

    Attributes:
        label: name and version, as records carry it.
        kind: ``clean``, ``attack``, ``corruption``, or a plug-in's own word.
        epsilon: budget in 1/255; None where there is none.
        targeted: whether an attack wants a text said.
        adaptive: whether what was searched for, if anything was, was searched for against what answered. A number of
            one that was not bounds no robustness; its label says non-adaptive.
        source: candidate whose stored images were shown; empty: no other one's.
        stored: label of the attack that found the stored images which were shown; empty: none were.
        label_budget: budget of the images that were shown or looked for, in 1/255, where the label alone has it.
    """

    label: str
    kind: str
    epsilon: float | None = None
    severities: tuple[int, ...] = ()
    targeted: bool = False
    adaptive: bool = True
    source: str = ""
    stored: str = ""
    label_budget: float | None = None


@dataclass(frozen=True)
class RecordsEntry:
    """One records artifact of a sweep: a candidate on a benchmark under a condition.

    Attributes:
        path: folder, relative to the storage, e.g. ``records/<name>-<fingerprint>``.
        candidate: ``a`` (end-to-end), ``a+b`` (ensemble) or ``b@a`` (b plugged into the LLaVA of a).
        epsilon: budget in 1/255; None where there is none.
        parts: how many of its first parts the sweep asked for; None: all.
        seconds: wall-clock time of the evaluation; NaN where unknown.
        reused: whether an earlier run had computed it.
        seed: of the candidate's training; None for a checkpoint from elsewhere.
    """

    path: str
    candidate: str
    benchmark: str
    condition: str
    epsilon: float | None = None
    parts: int | None = None
    seconds: float = math.nan
    reused: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class JudgementsEntry:
    """One judgements artifact of a sweep: what a judge says of one of its records artifacts.

    Attributes:
        path: folder, relative to the storage.
        description: what it looks for, in a few words.
        good: whether a flag speaks for the model.
        parts: how many of its first parts the sweep asked for; None: all.
        seconds: wall-clock time of the judging; NaN where unknown.
        reused: whether an earlier run had computed it.
    """

    path: str
    judge: str
    description: str = ""
    parts: int | None = None
    seconds: float = math.nan
    reused: bool = False
    good: bool = False


@dataclass(frozen=True)
class ImagesEntry:
    """One universal image of a sweep, made for one candidate.

    Attributes:
        path: folder, relative to the storage.
        condition: label of those under which it is shown.
        epsilon: budget in 1/255; 255: none.
        restart: its number.
        facts: what its making says of itself: ``steps, loss_clean, loss_best, linf, findings`` and others.
        seconds: wall-clock time of its making; NaN where unknown.
        reused: whether an earlier run had made it.
    """

    path: str
    candidate: str
    condition: str
    epsilon: float
    restart: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = math.nan
    reused: bool = False


@dataclass(frozen=True)
class ModelEntry:
    """One trained LLaVA of a sweep.

    Attributes:
        path: folder, relative to the storage.
        seconds: wall-clock time of its training; NaN where unknown.
        reused: whether an earlier run had trained it.
        parameters: how many it has; None where unknown.
        spec: every field, as JSON values.
    """

    name: str
    path: str
    seconds: float = math.nan
    reused: bool = False
    parameters: int | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What a sweep ran.

    Attributes:
        sweep: name of its folder below ``reports/``.
        candidates: rows of the grid, in their order.
        benchmarks: of the grid, in their order.
        conditions: of the grid, in their order.
        records: artifacts, one per cell of the grid.
        models: LLaVAs that the candidates are made of.
        judgements: artifacts, one per records artifact and judge.
        images: artifacts, one per candidate, recipe, budget and restart.
        allowed: those of the benchmarks whose requests a model should answer, where others are to be refused.
        machine: that it ran on; numbers and names.
        started: ISO 8601 with time zone; empty where unknown. So for ``finished``.
        finished: see ``started``.
    """

    sweep: str
    candidates: tuple[str, ...]
    benchmarks: tuple[str, ...]
    conditions: tuple[ConditionEntry, ...]
    samples: int
    records: tuple[RecordsEntry, ...]
    preset: str = ""
    models: tuple[ModelEntry, ...] = ()
    judgements: tuple[JudgementsEntry, ...] = ()
    images: tuple[ImagesEntry, ...] = ()
    allowed: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    wall_seconds: float = 0.0

    @property
    def budgets(self) -> tuple[float, ...]:
        """Of clean images (0) and attacks, in 1/255, increasing."""
        return tuple(sorted({entry.epsilon for entry in self.conditions if entry.epsilon is not None}))

    @property
    def protocol(self) -> str:
        """Name and version of the attacks' protocol; of several, all; empty if nothing was attacked."""
        return ", ".join(dict.fromkeys(entry.label for entry in self.conditions if entry.kind == "attack"))

    @property
    def targeted(self) -> bool:
        """Whether the attacks want a text said."""
        return any(entry.targeted for entry in self.conditions)

    def to_json(self) -> str:
        """As text, in which null stands for a time that is not known.

        Returns:
            What :meth:`from_json` reads.
        """
        content = asdict(self)
        for entry in (*content["records"], *content["models"], *content["judgements"], *content["images"]):
            entry["seconds"] = None if math.isnan(entry["seconds"]) else entry["seconds"]
        return json.dumps({"format": MANIFEST_FORMAT, **content}, indent=1)

    @staticmethod
    def from_json(text: str, where: str) -> "Manifest":
        """Parses a manifest.

        The grid and the artifacts are required; versions, machine and times may be missing. Keys that are not known,
        as of a later version, are passed over.

        Args:
            where: the file's path or URL, for the error message.

        Returns:
            The manifest; budgets in increasing order.

        Raises:
            UserError: if the text is no JSON, a required key is missing or of the wrong kind, or an earlier version
                wrote it.
        """
        try:
            raw = json.loads(text)
            found = Manifest(
                sweep=str(raw["sweep"]),
                candidates=_names(raw, "candidates"),
                benchmarks=_names(raw, "benchmarks"),
                conditions=tuple(_condition_entry(entry) for entry in raw["conditions"]),
                samples=int(raw["samples"]),
                records=tuple(_records_entry(entry) for entry in raw["records"]),
                preset=str(raw.get("preset", "")),
                models=tuple(_model_entry(entry) for entry in raw.get("models", ())),
                judgements=tuple(_judgements_entry(entry) for entry in raw.get("judgements", ())),
                images=tuple(_images_entry(entry) for entry in raw.get("images", ())),
                allowed=tuple(str(name) for name in raw.get("allowed", ())),
                versions={str(name): str(version) for name, version in raw.get("versions", {}).items()},
                machine=dict(raw.get("machine", {})),
                started=str(raw.get("started") or ""),
                finished=str(raw.get("finished") or ""),
                wall_seconds=float(raw.get("wall_seconds") or 0.0),
            )
            written = int(raw.get("format", 1))
        except KeyError as error:
            raise UserError(f"{where}: no sweep manifest, key {error} is missing; run the sweep again") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where}: no sweep manifest ({error}); run the sweep again") from error
        if written < MANIFEST_FORMAT:
            raise UserError(
                f"{where}: an earlier version of rllava wrote this manifest; read it with that version, or run the "
                "sweep again with this one"
            )
        return found


def _names(raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = raw[key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"'{key}' must be a list of names")
    return tuple(names)


def _seconds(raw: Mapping[str, Any]) -> float:
    seconds = raw.get("seconds")
    return math.nan if seconds is None else float(seconds)


def _number(raw: Mapping[str, Any], key: str) -> float | None:
    return None if raw.get(key) is None else float(raw[key])


def _condition_entry(raw: Mapping[str, Any]) -> ConditionEntry:
    return ConditionEntry(
        label=str(raw["label"]),
        kind=str(raw["kind"]),
        epsilon=_number(raw, "epsilon"),
        severities=tuple(int(severity) for severity in raw.get("severities", ())),
        targeted=bool(raw.get("targeted", False)),
        adaptive=bool(raw.get("adaptive", True)),
        source=str(raw.get("source", "")),
        stored=str(raw.get("stored", "")),
        label_budget=_number(raw, "label_budget"),
    )


def _records_entry(raw: Mapping[str, Any]) -> RecordsEntry:
    return RecordsEntry(
        path=str(raw["path"]).strip("/"),
        candidate=str(raw["candidate"]),
        benchmark=str(raw["benchmark"]),
        condition=str(raw["condition"]),
        epsilon=_number(raw, "epsilon"),
        parts=None if raw.get("parts") is None else int(raw["parts"]),
        seed=None if raw.get("seed") is None else int(raw["seed"]),
        seconds=_seconds(raw),
        reused=bool(raw.get("reused", False)),
    )


def _judgements_entry(raw: Mapping[str, Any]) -> JudgementsEntry:
    return JudgementsEntry(
        path=str(raw["path"]).strip("/"),
        judge=str(raw["judge"]),
        description=str(raw.get("description", "")),
        good=bool(raw.get("good", False)),
        parts=None if raw.get("parts") is None else int(raw["parts"]),
        seconds=_seconds(raw),
        reused=bool(raw.get("reused", False)),
    )


def _images_entry(raw: Mapping[str, Any]) -> ImagesEntry:
    return ImagesEntry(
        path=str(raw["path"]).strip("/"),
        candidate=str(raw["candidate"]),
        condition=str(raw["condition"]),
        epsilon=float(raw["epsilon"]),
        restart=int(raw["restart"]),
        facts=dict(raw.get("facts") or {}),
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
