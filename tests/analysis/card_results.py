"""A made-up sweep of a robustness card: three candidates, attacks, two corruptions, and a kind that nobody knows."""

import json
from dataclasses import replace
from typing import Any

from analysis.card_schema import CARD
from analysis.manifest import ConditionEntry, Manifest, RecordsEntry
from tests.analysis.synthetic import PROTOCOL, fake_fingerprint, make_png, make_record, write_artifact, write_manifest

SAMPLES, SEVERITIES = 12, (1, 2, 3, 4, 5)
FOG, SNOW, WORDED = "fog-v1", "snow-v1", "hinted-v2[aloud]"
CONDITIONS = (
    ConditionEntry("clean", "clean", 0.0),
    ConditionEntry(PROTOCOL, "attack", 4.0),
    ConditionEntry(PROTOCOL, "attack", 8.0),
    ConditionEntry(FOG, "corruption", None, SEVERITIES),
    ConditionEntry(SNOW, "corruption", None, SEVERITIES),
    ConditionEntry(WORDED, "hinted", 8.0),
)
CANDIDATES = ("a", "b", "b@a")
BENCHMARKS = ("easy_vqa", "easy_captions")


def right(candidate: str, entry: ConditionEntry, severity: int, index: int) -> bool:
    """Of 12 samples: a loses one per 1/255 and keeps all under fog; b loses half of that, and one per severity."""
    place = CANDIDATES.index(candidate)
    if entry.kind == "corruption":
        return place == 0 or index >= severity + (entry.label == SNOW)
    if entry.kind == "hinted":
        return index >= 2
    return index >= (entry.epsilon or 0) / (1, 2, 4)[place] - (0.5 if entry.epsilon else 0)


def rows_of(candidate: str, benchmark: str, entry: ConditionEntry) -> list[dict[str, Any]]:
    rows = []
    for index in range(SAMPLES):
        for severity in entry.severities or (0,):
            score = 100.0 * right(candidate, entry, severity, index)
            attacked = entry.kind == "attack"
            side = 8 if index < 2 and entry.kind in ("clean", "attack") else 0
            epsilon = entry.epsilon if attacked else 0.0
            row = make_record(candidate, benchmark, f"s{index:02d}", epsilon or 0.0, score=score, side=side)
            row["evaluation"] = fake_fingerprint(candidate, benchmark, entry.label, entry.epsilon)
            if entry.kind not in ("clean", "attack"):
                image = make_png(index, 8, "red", severity) if index < 2 else None
                row |= {"condition": entry.label, "kind": entry.kind, "epsilon": entry.epsilon, "shown_png": image}
                row |= {"severity": severity or None, "clean_png": None, "rounds": None, "score_8bit": None}
            rows.append(row)
    return rows


def write_card_sweep(storage: str, candidates: tuple[str, ...] = CANDIDATES) -> Manifest:
    """Writes records and manifest."""
    entries = []
    for candidate in candidates:
        for benchmark in BENCHMARKS:
            for entry in CONDITIONS:
                name = f"{entry.label.partition('[')[0]}-{entry.epsilon or 0:g}"
                folder = f"records/{candidate}-{benchmark}-{name}-0"
                write_artifact(storage, folder, rows_of(candidate, benchmark, entry))
                found = RecordsEntry(folder, candidate, benchmark, entry.label, entry.epsilon, seconds=2.5)
                entries.append(replace(found, reused=entry.kind == "attack"))
    made = Manifest(CARD, candidates, BENCHMARKS, CONDITIONS, SAMPLES, tuple(entries))
    write_manifest(storage, json.loads(made.to_json()))
    return made
