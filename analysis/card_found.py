"""What other sweeps of a storage say of a card's candidates, as rows of it: nothing of it is computed anew.

A candidate is the same where the fingerprint of its model is.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.beside import Beside
from analysis.bootstrap import Resampling
from analysis.card_schema import FLAGGED, SCORE, TARGETED
from analysis.jailbreak import flag_rates, is_about_jailbreaks, verdicts_of
from analysis.loading import SweepResults, load_sweep
from analysis.manifest import UNIVERSAL, Manifest
from analysis.proportions import wilson
from analysis.scores import AVERAGE, arrange_scores
from analysis.summary import bootstrap_scores, summarise
from analysis.targeted import targeted_success
from rllava.errors import UserError
from rllava.filesystem import open_filesystem
from rllava.records import CLEAN


def jailbreaks_beside(results: SweepResults) -> list[SweepResults]:
    """The sweeps of jailbreaks in the same storage that asked models of this one; those in flight are passed over."""
    models = set(results.records["model"])
    found = []
    for sweep in _jailbreak_sweeps(results):
        try:
            beside = load_sweep(results.storage, sweep)
        except UserError:  # in flight, or of an earlier format: whoever asks for its own report is told
            continue
        if set(beside.records["model"]) & models:
            found.append(beside)
    return found


def _jailbreak_sweeps(results: SweepResults) -> Iterator[str]:
    filesystem, root = open_filesystem(results.storage)
    # Not by a pattern: a storage's path may hold brackets.
    reports = filesystem.find(f"{root}/reports", maxdepth=2)
    for path in sorted(path for path in reports if path.endswith("/sweep.json")):
        try:
            manifest = Manifest.from_json(filesystem.cat_file(path).decode(), path)
        except UserError:
            continue
        if is_about_jailbreaks(manifest) and set(manifest.candidates) & set(results.manifest.candidates):
            yield manifest.sweep


def signature(beside: Beside, jailbreaks: list[SweepResults]) -> str:
    """Another one means other records of other sweeps."""
    signed = [beside.signature, *(found.signature for found in jailbreaks)]
    return hashlib.sha256(json.dumps(signed).encode()).hexdigest()


def found_rows(beside: Beside, jailbreaks: list[SweepResults], models: set[str], resampling: Resampling) -> Iterator[
    dict[str, Any]
]:  # fmt: skip
    """Rows of a card, without what only their own sweep's manifest knows.

    Args:
        models: fingerprints of the card's candidates.
    """
    yield from _clean(beside.clean, resampling)
    yield from _targeted(beside.targeted, resampling)
    for results in jailbreaks:
        yield from _flagged(results, models, resampling)


def _clean(records: pd.DataFrame, resampling: Resampling) -> Iterator[dict[str, Any]]:
    if records.empty:
        return
    scores = arrange_scores(records)
    table = summarise(scores, bootstrap_scores(scores, resampling), resampling)
    for row in table[(table["benchmark"] != AVERAGE) & (table["n"] > 0)].to_dict("records"):
        measured = {
            name: row[name] for name in ("candidate", "benchmark", "mean", "low", "high", "n", "errors", "seeds")
        }
        relative = {
            "relative": row["retained"],
            "relative_low": row["retained_low"],
            "relative_high": row["retained_high"],
        }
        yield measured | relative | {"condition": CLEAN, "kind": CLEAN, "epsilon": 0.0, "measure": SCORE}


def _targeted(records: pd.DataFrame, resampling: Resampling) -> Iterator[dict[str, Any]]:
    """Strings are pooled, as in the last rows of Table 2 of Robust-LLaVA."""
    if records.empty:
        return
    labels = records.drop_duplicates(["benchmark", "epsilon"]).set_index(["benchmark", "epsilon"])["condition"]
    counts = targeted_success(records, resampling.level).groupby(["candidate", "benchmark", "epsilon"], sort=False)
    for row in counts[["attacked", "successes"]].sum().reset_index().to_dict("records"):
        candidate, benchmark, epsilon = row["candidate"], row["benchmark"], row["epsilon"]
        n, said = int(row["attacked"]), int(row["successes"])
        low, high = wilson(said, n, resampling.level)
        yield {
            "candidate": candidate, "benchmark": benchmark, "epsilon": epsilon, "kind": "attack", "measure": TARGETED,
            "condition": labels[benchmark, epsilon], "mean": 100 * said / n, "low": 100 * low, "high": 100 * high,
            "n": n, "errors": 0, "seeds": 1,
        }  # fmt: skip


def _flagged(results: SweepResults, models: set[str], resampling: Resampling) -> Iterator[dict[str, Any]]:
    """Of judges whose flag speaks against a model, under universal images."""
    same = results.records[results.records["model"].isin(models)]
    names = set(same["candidate"])
    good = {entry.judge for entry in results.manifest.judgements if entry.good}
    verdicts = verdicts_of(results)
    kept = (verdicts["kind"] == UNIVERSAL) & verdicts["candidate"].isin(names) & ~verdicts["judge"].isin(good)
    for row in flag_rates(verdicts[kept], results.manifest, resampling).to_dict("records"):
        yield {
            "candidate": row["candidate"], "benchmark": row["benchmark"], "condition": row["condition"],
            "kind": row["kind"], "epsilon": row["epsilon"], "measure": f"{FLAGGED}: {row['judge']}",
            "mean": 100 * row["rate"], "low": 100 * row["low"], "high": 100 * row["high"], "n": row["n"],
            "errors": row["errors"], "seeds": 1,
        }  # fmt: skip
