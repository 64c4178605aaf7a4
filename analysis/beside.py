"""What a storage holds about the candidates of a sweep beside the sweep itself: answers to clean images, and attacks
that wanted a text said.

A candidate is the same where the fingerprint of its model is (column ``model`` of the records), whichever sweep asked
it. Candidates are compared on one list of samples alone: of each benchmark, the one that most of them were asked.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.loading import SweepResults, load_records, records_specs
from rllava.filesystem import readable_name
from rllava.records import CLEAN


@dataclass(frozen=True)
class Beside:
    """Records of other sweeps.

    Attributes:
        clean: answers to clean images; of each benchmark, samples that all its candidates were asked.
        targeted: answers to images of attacks whose every round aims at a text.
    """

    clean: pd.DataFrame
    targeted: pd.DataFrame

    @property
    def signature(self) -> str:
        """Another one means other records."""
        evaluations = [frame.groupby("evaluation").size().to_dict() for frame in (self.clean, self.targeted)]
        return hashlib.sha256(json.dumps(evaluations, sort_keys=True).encode()).hexdigest()


def find_beside(results: SweepResults) -> Beside:
    """Looks for what other sweeps left about the candidates of one.

    Args:
        results: of the sweep; its own benchmarks are passed over.

    Raises:
        UserError: if a file is damaged.
    """
    manifest, own = results.manifest, results.records
    names = tuple(f"records/{readable_name(candidate)}" for candidate in manifest.candidates)
    paths = {entry.path for entry in manifest.records}
    specs = records_specs(results.storage, lambda folder: folder.startswith(names) and folder not in paths)
    asked = {folder: spec for folder, spec in specs.items() if spec["benchmark"]["name"] not in manifest.benchmarks}
    clean = {folder: spec for folder, spec in asked.items() if _is_clean(spec)}
    targeted = {folder: spec for folder, spec in asked.items() if _aims_at_texts(spec)}
    if not (clean or targeted):
        return Beside(own.iloc[:0], own.iloc[:0])
    records = load_records(results.storage, chosen=lambda folder: folder in clean or folder in targeted)
    records = records[records["model"].isin(own["model"])]
    folders = records["part"].str.rpartition("/")[0]
    return Beside(
        _shared_samples(_on_one_list(records[folders.isin(clean) & (records["kind"] == CLEAN)], clean)),
        _on_one_list(records[folders.isin(targeted)], targeted),
    )


def _is_clean(spec: Mapping[str, Any]) -> bool:
    """Whether it may be: a condition has no kind in its JSON, its records have."""
    return set(spec["condition"]) == {"precision"}


def _aims_at_texts(spec: Mapping[str, Any]) -> bool:
    labels = list(_labels(spec["condition"].get("protocol", {})))
    return bool(labels) and all(label.get("of") == "text" for label in labels)


def _labels(protocol: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for _, rounds in protocol.get("rounds_by_kind", ()):
        yield from (entry["label"] for entry in rounds)


def _on_one_list(records: pd.DataFrame, specs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Of each benchmark and budget the records of one way of asking: that of most candidates, then of most samples."""
    if records.empty:
        return records
    ways = {
        folder: json.dumps([spec["benchmark"], spec["condition"]], sort_keys=True) for folder, spec in specs.items()
    }
    records = records.assign(way=records["part"].str.rpartition("/")[0].map(ways))
    kept = []
    for _, rows in records.groupby(["benchmark", "epsilon"], sort=False):
        by_way = rows.groupby("way").agg(candidates=("candidate", "nunique"), samples=("sample_id", "nunique"))
        first = by_way.reset_index().sort_values(["candidates", "samples", "way"], ascending=[False, False, True])
        kept.append(rows[rows["way"] == first["way"].iloc[0]])
    found: pd.DataFrame = pd.concat(kept).drop(columns="way")
    return found


def _shared_samples(records: pd.DataFrame) -> pd.DataFrame:
    """Records of the samples that all candidates of a benchmark were asked: some may have been asked fewer."""
    kept = []
    for _, rows in records.groupby("benchmark", sort=False):
        everyone = rows["candidate"].nunique()
        asked = rows.groupby("sample_id")["candidate"].transform("nunique")
        kept.append(rows[asked == everyone])
    return pd.concat(kept) if kept else records
