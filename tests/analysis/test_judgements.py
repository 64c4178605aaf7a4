"""Rates of judges, and how far they agree."""

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.bootstrap import Resampling
from analysis.judgements import agreement, analyse_judgements, disputes, flag_rates, format_judgements, joined, shown
from analysis.loading import SweepResults, load_sweep
from analysis.manifest import JudgementsEntry, Manifest
from analysis.report import refresh_report
from rllava.errors import UserError
from rllava.judgements import JUDGEMENT_SCHEMA
from rllava.records import KEY
from tests.analysis.synthetic import SyntheticSweep, write_manifest, write_sweep

SWEEP = SyntheticSweep(budgets=(0.0, 8.0), samples=12, errors={"tiny-clip": 1})
FRUIT, LONG = "fruit-v1", "long-v1"
JUDGES = {FRUIT: lambda text: "banana" in text, LONG: lambda text: len(text) > 4}
RESAMPLING = Resampling(draws=2000)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sweep with two judges: one flags answers that were beaten, the other all that are long."""
    folder = tmp_path_factory.mktemp("judged")
    manifest = Manifest.from_json(json.dumps(write_sweep(str(folder), SWEEP)), "here")
    entries = []
    for name, judge in JUDGES.items():
        for entry in manifest.records:
            path = f"judgements/{entry.path.removeprefix('records/')}-{name}"
            for part in sorted((folder / entry.path).glob("part-*.parquet")):
                table = judge_part(pq.read_table(part).to_pylist(), name, judge, path)
                (folder / path).mkdir(parents=True, exist_ok=True)
                pq.write_table(table, folder / path / part.name)
            (folder / path / "COMPLETE").write_text("")
            entries.append(JudgementsEntry(path, name, f"what {name} looks for", None, 1.0))
    write_manifest(str(folder), json.loads(replace(manifest, judgements=tuple(entries)).to_json()))
    return str(folder)


def judge_part(rows: Sequence[dict[str, Any]], name: str, judge: Any, path: str) -> pa.Table:
    judged = []
    for row in rows:
        for answer in ("prediction", "prediction_8bit"):
            text = row[answer]
            own = {key: row[key] for key in KEY} | {"answer": answer, "judge": name, "judgement": path[-16:]}
            verdict = (
                {"flagged": None, "error": "no answer"} if text is None else {"flagged": judge(text), "score": 1.0}
            )
            judged.append({**own, "empty": text == "", "labels": ["x"], "scores": [], **verdict})
    return pa.Table.from_pylist(judged, schema=JUDGEMENT_SCHEMA)


@pytest.fixture
def results(storage: str) -> SweepResults:
    return load_sweep(storage)


def made_up(counts: Sequence[int], samples: int | None = None) -> pd.DataFrame:
    """Verdicts of judges a and b: so many answers that both flag, only a, only b, neither."""
    rows = []
    for way, count in enumerate(counts):
        for _ in range(count):
            n = len(rows) // 2 if samples is None else (len(rows) // 2) % samples
            key = dict.fromkeys(KEY, 0) | {"sample_id": f"s{n}", "draw": len(rows) // 2}
            for judge, flagged in (("a", way in (0, 1)), ("b", way in (0, 2))):
                rows.append({**key, "benchmark": "q", "kind": "clean", "answer": "prediction", "judge": judge,
                             "flagged": flagged})  # fmt: skip
    return pd.DataFrame(rows).astype({"flagged": object})


def test_kappa_counts_chance_out() -> None:
    # Both 20, only the first 5, only the second 10, neither 15: 70 % agree, 50 % by chance, kappa 0.4
    # (the textbook example of two readers and fifty grant proposals).
    (row,) = agreement(made_up((20, 5, 10, 15)), ["a", "b"], RESAMPLING).to_dict("records")
    assert (row["n"], row["both"], row["only_first"], row["only_second"], row["neither"]) == (50, 20, 5, 10, 15)
    assert row["agreement"] == pytest.approx(0.7)
    assert row["kappa"] == pytest.approx(0.4)
    # Its large-sample standard error is 0.128 (Fleiss, Cohen and Everitt 1969): an interval of about 0.15 to 0.65.
    assert row["kappa_low"] == pytest.approx(0.15, abs=0.05)
    assert row["kappa_high"] == pytest.approx(0.65, abs=0.05)
    (swapped,) = agreement(made_up((20, 5, 10, 15)), ["b", "a"], RESAMPLING).to_dict("records")
    assert (swapped["only_first"], swapped["only_second"], swapped["kappa"]) == (10, 5, row["kappa"])


@pytest.mark.parametrize(
    ("counts", "agreed", "kappa"),
    [
        ((7, 0, 0, 5), 1.0, 1.0),
        ((0, 6, 6, 0), 0.0, -1.0),
        ((0, 0, 0, 9), 1.0, np.nan),
        ((9, 0, 0, 0), 1.0, np.nan),
        ((4, 4, 4, 4), 0.5, 0.0),
    ],
)
def test_kappa_at_its_ends(counts: tuple[int, ...], agreed: float, kappa: float) -> None:
    (row,) = agreement(made_up(counts), ["a", "b"], RESAMPLING).to_dict("records")
    assert row["agreement"] == pytest.approx(agreed)
    assert row["kappa"] == pytest.approx(kappa, nan_ok=True)


def test_answers_to_one_sample_are_drawn_together() -> None:
    one_by_one = agreement(made_up((20, 5, 10, 15)), ["a", "b"], RESAMPLING).iloc[0]
    few = agreement(made_up((20, 5, 10, 15), samples=5), ["a", "b"], RESAMPLING).iloc[0]
    assert few["kappa"] == one_by_one["kappa"]
    assert (few["kappa_low"], few["kappa_high"]) != (one_by_one["kappa_low"], one_by_one["kappa_high"])
    alone = agreement(made_up((3, 1, 1, 3), samples=1), ["a", "b"], RESAMPLING).iloc[0]
    assert np.isnan(alone["kappa_low"]), "one sample tells nothing about the others"


def test_what_only_one_could_decide_does_not_count() -> None:
    judged = made_up((20, 5, 10, 15))
    judged.loc[(judged["judge"] == "b") & (judged["draw"] < 10), "flagged"] = None
    (row,) = agreement(judged, ["a", "b"], RESAMPLING).to_dict("records")
    assert (row["n"], row["both"]) == (40, 10)


def test_rates_have_wilsons_interval(results: SweepResults) -> None:
    rates = flag_rates(joined(results))
    assert len(rates) == 2 * 2 * 2 * 2 * 2  # candidates, benchmarks, conditions, judges, answers
    attacked = rates[(rates["kind"] == "attack") & (rates["answer"] == "prediction") & (rates["judge"] == FRUIT)]
    row = attacked[(attacked["candidate"] == "tiny-clip") & (attacked["benchmark"] == "easy_vqa")].iloc[0]
    assert (row["n"], row["errors"], row["undecided"], row["empty"]) == (11, 1, 0, 0)
    records = results.records
    own = records[
        (records["candidate"] == "tiny-clip") & (records["benchmark"] == "easy_vqa") & (records["epsilon"] == 8)
    ]
    flagged = int(own["prediction"].dropna().str.contains("banana").sum())
    assert 0 < row["flagged"] == flagged < 11
    assert row["rate"] == flagged / 11
    z, p, n = 1.959964, flagged / 11, 11
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    bounds = [(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert [row["low"], row["high"]] == pytest.approx(bounds, abs=1e-6)


def test_the_report_shows_them_side_by_side(storage: str, results: SweepResults) -> None:
    statistics = analyse_judgements(results, RESAMPLING)
    assert statistics is not None
    assert statistics.judges == ((FRUIT, f"what {FRUIT} looks for"), (LONG, f"what {LONG} looks for"))
    assert {(row["benchmark"], row["kind"]) for row in statistics.agreement.to_dict("records")} == {
        (benchmark, kind) for benchmark in SWEEP.benchmarks for kind in ("clean", "attack")
    }
    text = format_judgements(statistics)
    assert f"{FRUIT} (what {FRUIT} looks for) flags: clean 0.0% of 48, attack " in text
    page, table = refresh_report(storage, SWEEP.sweep)
    assert text.splitlines()[0] in table
    folder = Path(page).parent
    html = (folder / "index.html").read_text()
    assert "What judges say of the answers" in html
    assert "Answers on which they disagree" in html
    assert "<script>alert(1)</script>" not in html
    rates = pd.read_csv(folder / "judgements.csv")
    assert len(rates) == 32
    assert {"kappa", "agreement"} <= set(pd.read_csv(folder / "agreement.csv"))
    before = Path(page).stat().st_mtime_ns
    assert refresh_report(storage, SWEEP.sweep) == (page, table)
    assert Path(page).stat().st_mtime_ns == before


def test_gathered_judgements_are_those_of_the_parts(storage: str) -> None:
    first = load_sweep(storage, gather=True)
    again = load_sweep(storage, gather=True)
    pd.testing.assert_frame_equal(first.judgements, again.judgements)
    assert first.signature == again.signature
    assert len(load_sweep(storage, images=True).judgements) == len(first.judgements) == 2 * 2 * 2 * 2 * 12 * 2


def test_disputes_name_who_says_what(results: SweepResults) -> None:
    (one, *_) = disputes(joined(results), [FRUIT, LONG], most=1)
    assert one.flagged == ((LONG, ("x",)),)
    assert one.passed == (FRUIT,)
    assert len(one.answer) > 4
    assert "banana" not in one.answer


def test_without_a_judge_nothing_is_said(results: SweepResults) -> None:
    alone = replace(results, manifest=replace(results.manifest, judgements=()))
    assert analyse_judgements(alone) is None


def test_judgements_on_other_records_are_refused(results: SweepResults) -> None:
    fewer = results.records[results.records["sample_id"] != "s0003"]
    with pytest.raises(
        UserError, match="32 judgements are about records that the sweep does not have, the first about"
    ):
        joined(replace(results, records=fewer))


def test_what_is_missing_or_damaged_is_named(storage: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(storage, copy)
    folder = next(iter(sorted((copy / "judgements").iterdir())))
    part = folder / "part-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{folder.name}/part-00000.parquet: damaged Parquet file"):
        load_sweep(str(copy))
    buffer = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(whole)).drop_columns(["labels"]), buffer)
    part.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="no judgements, column 'labels' is missing"):
        load_sweep(str(copy))
    part.write_bytes(whole)
    (folder / "COMPLETE").unlink()
    with pytest.raises(UserError, match="this judgements artifact of the sweep is not complete; run the sweep again"):
        load_sweep(str(copy))


def test_what_was_shown_in_words() -> None:
    rows = [
        {"condition": "clean", "kind": "clean", "epsilon": 0.0, "severity": None},
        {"condition": "apgd-v1", "kind": "attack", "epsilon": 8.0, "severity": np.nan},
        {"condition": "fog-v1", "kind": "corruption", "epsilon": np.nan, "severity": 3},
        {"condition": "mirrored-v1", "kind": "mirrored", "epsilon": None, "severity": pd.NA},
    ]
    assert [shown(row) for row in rows] == ["clean", "apgd-v1 at 8/255", "fog-v1 at severity 3", "mirrored-v1"]
