"""Statistics and report of a sweep of corruptions, on made-up records."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.condition_page import heat_map, shown_samples
from analysis.conditions import ALL, analyse_conditions, columns_of, conditions_answer, format_conditions
from analysis.loading import SweepResults, load_records, load_sweep
from analysis.manifest import ConditionEntry, Manifest, RecordsEntry
from analysis.report import main, refresh_report, write_conditions
from analysis.scores import AVERAGE, sweep_scores
from rllava.errors import UserError
from tests.analysis.synthetic import fake_fingerprint, make_png, make_record, write_artifact, write_manifest

FOG, SNOW = "fog-v1", "snow-v1"
SEVERITIES = (1, 2, 3, 4, 5)
SAMPLES = 12
CONDITIONS = (
    ConditionEntry("clean", "clean", 0.0),
    ConditionEntry(FOG, "corruption", None, SEVERITIES),
    ConditionEntry(SNOW, "corruption", None, SEVERITIES),
)


def kept(candidate: str, label: str, severity: int, index: int) -> bool:
    """b loses nothing to fog; a loses two samples per severity, and everything to snow at severity 5."""
    if label == SNOW:
        return severity < 5
    return candidate == "b" or index >= 2 * severity


def rows_of(candidate: str, benchmark: str, entry: ConditionEntry) -> list[dict[str, object]]:
    rows = []
    for index in range(SAMPLES):
        for severity in entry.severities or (0,):
            score = 100.0 * (not severity or kept(candidate, entry.label, severity, index))
            row = make_record(candidate, benchmark, f"s{index:02d}", 0.0, score=score)
            row |= {"evaluation": fake_fingerprint(candidate, benchmark, entry.label), "clean_png": None}
            if severity:
                changed = {"condition": entry.label, "kind": "corruption", "epsilon": None, "severity": severity}
                image = make_png(index, 8, "red", severity) if index < 2 else None
                row |= {**changed, "shown_png": image, "rounds": None, "score_8bit": None}
            rows.append(row)
    return rows


@pytest.fixture
def storage(tmp_path: Path) -> str:
    entries = []
    for candidate in ("a", "b"):
        for benchmark in ("easy_vqa", "easy_captions"):
            for entry in CONDITIONS:
                folder = f"records/{candidate}-{benchmark}-{entry.label}-0"
                write_artifact(str(tmp_path), folder, rows_of(candidate, benchmark, entry))
                entries.append(RecordsEntry(folder, candidate, benchmark, entry.label, entry.epsilon))
    made = Manifest("corruptions", ("a", "b"), ("easy_vqa", "easy_captions"), CONDITIONS, SAMPLES, tuple(entries))
    write_manifest(str(tmp_path), json.loads(made.to_json()))
    return str(tmp_path)


@pytest.fixture
def results(storage: str) -> SweepResults:
    return load_sweep(storage, "corruptions")


def cell(table: pd.DataFrame, **wanted: object) -> pd.Series:  # type: ignore[type-arg]
    found = table[np.logical_and.reduce([table[name] == value for name, value in wanted.items()])]
    assert len(found) == 1
    return found.iloc[0]


def test_what_is_lost_is_a_share_of_the_candidates_own_clean_score(results: SweepResults) -> None:
    statistics = analyse_conditions(results)
    assert len(columns_of(results)) == 11
    fog = [cell(statistics.table, candidate="a", benchmark=AVERAGE, condition=FOG, severity=s) for s in SEVERITIES]
    assert [row["mean"] for row in fog] == pytest.approx([100 * (SAMPLES - 2 * s) / SAMPLES for s in SEVERITIES])
    assert [row["drop"] for row in fog] == pytest.approx([2 * s / SAMPLES for s in SEVERITIES])
    assert all(row["drop_low"] < row["drop"] < row["drop_high"] for row in fog)
    clean = cell(statistics.table, candidate="a", benchmark="easy_vqa", condition="clean", severity=0)
    assert (clean["mean"], clean["drop"], clean["n"]) == (100.0, 0.0, SAMPLES)
    nothing = cell(statistics.table, candidate="b", benchmark="easy_vqa", condition=SNOW, severity=5)
    assert (nothing["mean"], nothing["drop"]) == (0.0, 1.0)


def test_means_over_severities_stand_beside_them_with_intervals(results: SweepResults) -> None:
    statistics = analyse_conditions(results)
    fog = cell(statistics.means, candidate="a", benchmark=AVERAGE, condition=FOG)
    assert fog["drop"] == pytest.approx(np.mean([2 * s / SAMPLES for s in SEVERITIES]))
    assert fog["drop_low"] < fog["drop"] < fog["drop_high"]
    snow = cell(statistics.means, candidate="b", benchmark=AVERAGE, condition=SNOW)
    everything = cell(statistics.means, candidate="b", benchmark=AVERAGE, condition=ALL)
    assert (snow["drop"], everything["drop"]) == (pytest.approx(0.2), pytest.approx(0.1))
    assert conditions_answer(statistics) == (
        "b keeps most of its own clean score, 90%; fog-v1 takes most (25% on average over candidates)."
    )


def test_a_share_of_the_clean_score_is_one_of_the_same_samples(results: SweepResults) -> None:
    """Half of the samples have no score in the fog; they score nothing clean, the others lose nothing."""
    records = results.records.copy()
    lacking = records["sample_id"] >= f"s{SAMPLES // 2:02d}"
    clean, fog = records["kind"] == "clean", records["condition"] == FOG
    records.loc[clean & lacking, "score"] = 0.0
    records.loc[fog, "score"] = 100.0
    records.loc[fog & lacking, ["score", "error"]] = [np.nan, "not attacked"]
    statistics = analyse_conditions(SweepResults(results.storage, results.manifest, records))
    for benchmark in ("easy_vqa", AVERAGE):
        own = {"candidate": "a", "benchmark": benchmark, "condition": FOG}
        cells = [cell(statistics.table, **own, severity=severity) for severity in SEVERITIES]
        assert [(row["mean"], row["drop"]) for row in cells] == [(100.0, 0.0)] * len(SEVERITIES)
        assert cell(statistics.means, **own)["drop"] == 0.0
        clean = cell(statistics.table, candidate="a", benchmark=benchmark, condition="clean", severity=0)
        assert clean["mean"] == 50.0


def test_candidates_are_compared_on_the_same_samples(results: SweepResults) -> None:
    statistics = analyse_conditions(results)
    assert statistics.baseline == "b", "the best over everything"
    statistics = analyse_conditions(results, baseline="b")
    row = cell(statistics.comparisons, candidate="a", benchmark=AVERAGE, condition=FOG, severity=5)
    assert row["difference"] == pytest.approx(-100 * 10 / SAMPLES)
    assert row["p_holm"] < 0.01
    same = cell(statistics.comparisons, candidate="a", benchmark=AVERAGE, condition=SNOW, severity=1)
    assert (same["difference"], same["p"]) == (0.0, 1.0)
    with pytest.raises(UserError, match="candidate 'c' is not in the results"):
        analyse_conditions(results, baseline="c")


def test_no_corruption_is_taken_for_an_attack(results: SweepResults, storage: str) -> None:
    scores = sweep_scores(results)
    assert scores.epsilons == (0.0,)
    assert len(load_records(storage)) == 2 * 2 * SAMPLES * 11


def test_two_evaluations_of_one_corruption_are_refused(results: SweepResults) -> None:
    records = results.records
    records.loc[(records["severity"] == 3) & (records["candidate"] == "a"), "evaluation"] = "f" * 16
    records.loc[(records["severity"] == 3) & (records["sample_id"] == "s01"), "evaluation"] = "e" * 16
    with pytest.raises(UserError, match=r"'a' on easy_vqa at fog-v1 comes from 2 evaluations"):
        analyse_conditions(results)


def test_the_report_has_its_files_and_shows_every_severity(results: SweepResults, storage: str) -> None:
    page = Path(write_conditions(analyse_conditions(results)))
    names = {path.name for path in page.parent.iterdir()}
    assert names >= {"index.html", "conditions.csv", "means.csv", "comparisons.csv", "heatmap.png", "heatmap.svg"}
    table = pd.read_csv(page.parent / "conditions.csv")
    assert len(table) == 2 * 2 * 11
    text = page.read_text()
    assert "b keeps most of its own clean score" in text
    assert text.count('<div class="card">') == 2 * 2 * 3  # benchmarks, corruptions, severities shown
    assert "<script>alert(1)</script>" not in text
    assert (page.parent / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_the_gallery_shows_what_was_shown(results: SweepResults) -> None:
    statistics = analyse_conditions(results)
    samples = shown_samples(statistics)
    assert [sample.benchmark for sample in samples] == ["easy_vqa", "easy_captions"]
    picture = next(p for p in samples[0].pictures if (p.condition, p.severity) == (FOG, 5))
    assert {name: score for name, _, score in picture.answers} == {"a": 0.0, "b": 100.0}
    assert picture.image.startswith("data:image/png;base64,")
    assert len(heat_map(statistics).to_dict()["concat"]) == 2


def test_the_terminal_shows_corruptions_by_candidate(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    page, table = refresh_report(storage, "corruptions")
    lines = table.splitlines()
    assert lines[0].split() == ["condition", "a", "b"]
    assert [line.split()[0] for line in lines[2:4]] == [FOG, SNOW]
    assert lines[2].split()[1:] == ["50", lines[2].split()[2], "0", "±0"]
    before = Path(page).stat().st_mtime_ns
    assert refresh_report(storage, "corruptions") == (page, table)
    assert Path(page).stat().st_mtime_ns == before
    assert main(["--storage", storage, "--sweep", "corruptions"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == page
    assert format_conditions(analyse_conditions(load_sweep(storage, "corruptions"))) == table


def test_without_clean_answers_nothing_is_compared(results: SweepResults) -> None:
    bare = SweepResults(results.storage, results.manifest, results.records[results.records["kind"] != "clean"])
    with pytest.raises(UserError, match="no clean answers to compare with"):
        analyse_conditions(bare)
