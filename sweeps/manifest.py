"""Writes what a sweep consists of: the analysis reads this and the records, nothing else."""

import datetime
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from analysis.manifest import ConditionEntry, ImagesEntry, JudgementsEntry, Manifest, ModelEntry, RecordsEntry
from cluster.machine import usable_cores
from rllava.conditions.attack import Attack
from rllava.fingerprint import to_json
from rllava.snapshot import Snapshot
from rllava.store import Artifact
from sweeps.plan import Plan

PACKAGES = ("rllava", "ray", "torch", "transformers", "deepspeed", "pyarrow", "numpy")


def write_manifest(plan: Plan, found: Snapshot, before: set[str], machine: dict[str, Any], started: float) -> Manifest:
    """Writes the manifest of a sweep that has ended.

    Args:
        before: artifacts that were complete when it started.
    """
    entries = _Entries(plan, found, before)
    finished = time.time()
    manifest = Manifest(
        sweep=plan.sweep,
        preset=plan.grid.name,
        candidates=tuple(dict.fromkeys(candidate.name for candidate in plan.grid.candidates)),
        benchmarks=tuple(benchmark.name for benchmark in plan.grid.benchmarks),
        conditions=tuple(dict.fromkeys(entries.conditions())),
        samples=max(map(plan.samples, plan.grid.benchmarks)),
        records=tuple(entries.records()),
        models=tuple(entries.models()),
        judgements=tuple(entries.judgements()),
        images=tuple(entries.images()),
        allowed=tuple(spec.name for spec in plan.grid.benchmarks if getattr(spec.task, "allowed", False)),
        versions={package: version(package) for package in PACKAGES},
        machine=machine or {"cpus": usable_cores(), "gpus": 0, "memory_gib": None},
        started=datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        finished=datetime.datetime.fromtimestamp(finished, datetime.UTC).isoformat(timespec="seconds"),
        wall_seconds=round(finished - started, 1),
    )
    plan.store.write(f"{plan.store.root}/reports/{plan.sweep}/sweep.json", manifest.to_json().encode())
    return manifest


@dataclass(frozen=True)
class _Entries:
    """What a plan has led to, kind by kind."""

    plan: Plan
    found: Snapshot
    before: set[str]

    def _facts(self, artifact: Artifact) -> dict[str, Any]:
        """Of its marker; none of a checkpoint from elsewhere."""
        return self.found.facts(artifact.relative) if self.found.is_finished(artifact.relative) else {}

    def _made(self, artifact: Artifact) -> dict[str, Any]:
        """Where it lies, how long it took, and whether it was there before."""
        seconds = self._facts(artifact).get("seconds")
        took = math.nan if seconds is None else float(seconds)
        return {"path": artifact.relative, "seconds": took, "reused": artifact.relative in self.before}

    def conditions(self) -> Iterator[ConditionEntry]:
        """Of the grid; images that differ in their number alone are shown under equal ones."""
        for condition in self.plan.grid.conditions:
            stored = condition.stored_under
            yield ConditionEntry(
                label=condition.label,
                kind=condition.kind,
                epsilon=condition.epsilon,
                severities=tuple(part["severity"] for part in condition.parts if "severity" in part),
                targeted=isinstance(condition, Attack) and condition.targeted,
                adaptive=condition.adaptive,
                source=condition.source,
                stored="" if stored is None else stored.label,
                label_budget=condition.label_budget,
            )

    def records(self) -> Iterator[RecordsEntry]:
        """One per cell."""
        for candidate in self.plan.grid.candidates:
            for spec, artifact in self.plan.evaluations(candidate):
                yield RecordsEntry(
                    candidate=candidate.name,
                    seed=candidate.seed,
                    benchmark=spec.benchmark.name,
                    condition=spec.condition.label,
                    epsilon=spec.condition.epsilon,
                    parts=self.plan.shards(spec.benchmark),
                    **self._made(artifact),
                )

    def models(self) -> Iterator[ModelEntry]:
        """One per LLaVA."""
        models = map(self.plan.model, self.plan.grid.candidates)
        for spec, artifact in {artifact.relative: (spec, artifact) for spec, artifact in models}.values():
            parameters = self._facts(artifact).get("parameters")
            yield ModelEntry(name=spec.name, parameters=parameters, spec=to_json(spec), **self._made(artifact))

    def judgements(self) -> Iterator[JudgementsEntry]:
        """One per cell and judge."""
        for candidate in self.plan.grid.candidates:
            for spec, artifact in self.plan.judgements(candidate):
                yield JudgementsEntry(
                    judge=spec.judge.label,
                    description=spec.judge.description,
                    good=spec.judge.flags_good,
                    parts=self.plan.shards(spec.evaluation.benchmark),
                    **self._made(artifact),
                )

    def images(self) -> Iterator[ImagesEntry]:
        """One per candidate and image made for it."""
        for candidate in self.plan.grid.candidates:
            for spec, artifact in self.plan.images(candidate):
                yield ImagesEntry(
                    candidate=candidate.name,
                    condition=spec.making.recipe.label,
                    epsilon=spec.making.epsilon,
                    restart=spec.restart,
                    facts=self._facts(artifact),
                    **self._made(artifact),
                )
