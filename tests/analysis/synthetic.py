"""Synthetic results in the real schema: records, artifacts and a manifest whose true means the tests know."""

import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from analysis.manifest import ConditionEntry, Manifest, ModelEntry, RecordsEntry
from rllava.filesystem import open_filesystem
from rllava.records import CLEAN, RECORD_SCHEMA

PROTOCOL = "paper_ensemble_short-v1"
COLOURS = ("red", "blue", "green", "teal", "brown", "black", "gray", "yellow")


@dataclass(frozen=True)
class SyntheticSweep:
    """A sweep to make up: ``clean`` and ``decay`` give each candidate's chance of a right answer, clean * decay**ε."""

    sweep: str = "encoder_ablation"
    clean: Mapping[str, float] = field(default_factory=lambda: {"tiny-clip": 0.9, "tiny-robust": 0.7})
    decay: Mapping[str, float] = field(default_factory=lambda: {"tiny-clip": 0.7, "tiny-robust": 0.97})
    benchmarks: tuple[str, ...] = ("easy_vqa", "easy_captions")
    budgets: tuple[float, ...] = (0.0, 2.0, 4.0, 8.0, 16.0)
    samples: int = 24
    side: int = 32
    part_rows: int = 16
    errors: Mapping[str, int] = field(default_factory=dict)


def make_rows(sweep: SyntheticSweep, candidate: str, benchmark: str, epsilon: float) -> list[dict[str, Any]]:
    """Makes the records of one artifact; a candidate that is right at a budget is right at all smaller ones."""
    rows = []
    for index in range(sweep.samples):
        rng = np.random.default_rng([index, zlib.crc32(f"{benchmark}/{candidate}".encode())])
        shared = np.random.default_rng([index, zlib.crc32(benchmark.encode())])
        luck = 0.5 * rng.random() + 0.5 * shared.random()
        unit = 100.0 if benchmark.endswith("vqa") else float(60 + 80 * shared.random())
        clean_right = luck < sweep.clean[candidate]
        right = luck < sweep.clean[candidate] * sweep.decay[candidate] ** epsilon
        colour = COLOURS[index % len(COLOURS)]
        rows.append(
            make_record(
                candidate, benchmark, f"s{index:04d}", epsilon,
                score=unit * right, clean_score=unit * clean_right, answer=colour, side=sweep.side,
            )
        )  # fmt: skip
    for row in rows[: sweep.errors.get(candidate, 0)] if epsilon > 0 else []:
        row.update(error="OutOfMemory: <worker> died & was not replaced", score=None, prediction=None)
    return rows


def make_record(
    candidate: str, benchmark: str, sample_id: str, epsilon: float, *, score: float | None, clean_score: float = 100.0,
    answer: str = "red", side: int = 0, protocol: str = PROTOCOL, **others: Any,
) -> dict[str, Any]:  # fmt: skip
    """Makes one record; images only if ``side`` is positive."""
    attacked = epsilon > 0 and clean_score > 0
    broken = score is not None and score < clean_score
    seed = zlib.crc32(sample_id.encode())
    record = {
        "candidate": candidate,
        "benchmark": benchmark,
        "sample_id": sample_id,
        "condition": protocol if epsilon > 0 else CLEAN,
        "kind": "attack" if epsilon > 0 else CLEAN,
        "epsilon": epsilon,
        "beaten_at": None,
        "severity": None,
        "restart": None,
        "seed": 0,
        "draw": 0,
        "model": fake_fingerprint(candidate),
        "recipe": fake_fingerprint(candidate, "recipe"),
        "evaluation": fake_fingerprint(candidate, benchmark, epsilon, protocol),
        "prompt": "<image>\nWhat is the colour of the shape?",
        "question": None,
        "references": [answer] * 9 + [f"dark {answer}"],
        "clean_prediction": answer if clean_score > 0 else "unsure",
        "prediction": "a <script>alert(1)</script> banana" if broken else answer if clean_score > 0 else "unsure",
        "clean_score": clean_score,
        "score": score,
        "prediction_8bit": answer,
        "score_8bit": score,
        "linf": epsilon if attacked else 0.0,
        "steps": 100 if attacked else 0,
        "rounds": ["apgd_ce_fp32"] if attacked else [],
        "round_epsilons": None,
        "round_predictions": ["banana"] if attacked else [],
        "round_scores": [score] if attacked else [],
        "best_round": "apgd_ce_fp32" if broken else "clean",
        "loss_clean": 0.4,
        "loss_best": 0.4 + 0.5 * epsilon,
        "loss_last_rise": 0.002 * epsilon,
        "zero_gradient_share": 0.001,
        "clean_png": make_png(seed, side, answer, 0) if side and epsilon == 0 else None,
        "adversarial_png": make_png(seed, side, answer, int(epsilon)) if side and attacked else None,
        "adversarial_rest": bytes(3 * side * side) if side and attacked else None,
        "checked": True if attacked else None,
        "findings": [] if attacked else None,
        "error": None,
    }
    return {**record, **others}


def fake_fingerprint(*identity: object) -> str:
    """Sixteen hexadecimal digits that stand for what a name or a cell of the grid is made from."""
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


def make_png(seed: int, side: int, colour: str, epsilon: int) -> bytes:
    """Draws a coloured disc on white, changed by at most epsilon/255 per pixel."""
    image = Image.new("RGB", (side, side), (235, 232, 226))
    ImageDraw.Draw(image).ellipse((side // 5, side // 5, side * 4 // 5, side * 4 // 5), fill=colour)
    pixels = np.asarray(image, dtype=np.int16)
    noise = np.random.default_rng(seed).choice([-epsilon, epsilon], size=pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_artifact(storage: str, folder: str, rows: Sequence[Mapping[str, Any]], part_rows: int = 16) -> None:
    """Writes a complete records artifact: parts, spec, marker."""
    filesystem, root = open_filesystem(storage)
    for part, start in enumerate(range(0, max(len(rows), 1), part_rows)):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows[start : start + part_rows]), schema=RECORD_SCHEMA), buffer)
        filesystem.pipe_file(f"{root}/{folder}/part-{part:05d}.parquet", buffer.getvalue())
    filesystem.pipe_file(f"{root}/{folder}/spec.json", b"{}")
    filesystem.pipe_file(f"{root}/{folder}/COMPLETE", b"")


def write_sweep(storage: str, sweep: SyntheticSweep = SyntheticSweep()) -> dict[str, Any]:
    """Writes the artifacts and the manifest of a synthetic sweep, and returns the manifest as JSON."""
    entries = []
    for candidate in sweep.clean:
        for benchmark in sweep.benchmarks:
            for epsilon in sweep.budgets:
                folder = f"records/{candidate}-{benchmark}-{epsilon:g}-0123abcd"
                write_artifact(storage, folder, make_rows(sweep, candidate, benchmark, epsilon), sweep.part_rows)
                label = PROTOCOL if epsilon else CLEAN
                entry = RecordsEntry(folder, candidate, benchmark, label, epsilon, None, 12.3, reused=epsilon == 0)
                entries.append(entry)
    manifest: dict[str, Any] = json.loads(manifest_of(sweep, entries).to_json())
    write_manifest(storage, manifest)
    return manifest


def manifest_of(sweep: SyntheticSweep, records: Sequence[RecordsEntry]) -> Manifest:
    """Makes up the manifest of a sweep."""
    return Manifest(
        sweep=sweep.sweep,
        candidates=tuple(sweep.clean),
        benchmarks=sweep.benchmarks,
        conditions=tuple(
            ConditionEntry(PROTOCOL, "attack", size) if size else ConditionEntry(CLEAN, CLEAN, 0.0)
            for size in sweep.budgets
        ),
        samples=sweep.samples,
        preset="tiny",
        records=tuple(records),
        models=tuple(
            ModelEntry(
                name, f"models/{name}-4567", 40.1, parameters=700_000,
                spec={"encoder": {"name": name, "image_size": 32}, "stages": [{"steps": 300}, {"steps": 300}]},
            )
            for name in sweep.clean
            if "@" not in name
        ),
        versions={"rllava": "0.1.0", "ray": "2.60.0"},
        machine={"cpus": 2, "gpus": 0, "memory_gib": 24},
        started="2025-01-01T10:00:00+00:00",
        finished="2025-01-01T10:05:01+00:00",
        wall_seconds=301.2,
    )  # fmt: skip


def write_manifest(storage: str, manifest: Mapping[str, Any]) -> None:
    """Writes a sweep's manifest."""
    filesystem, root = open_filesystem(storage)
    filesystem.pipe_file(f"{root}/reports/{manifest['sweep']}/sweep.json", json.dumps(manifest).encode())
