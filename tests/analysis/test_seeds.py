"""Candidates that were trained several times: what is the spread of training, and what that of samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.bootstrap import Resampling
from analysis.comparisons import compare
from analysis.loading import load_sweep
from analysis.manifest import RecordsEntry
from analysis.report import write_statistics
from analysis.scores import AVERAGE, Scores, arrange_scores
from analysis.statistics import analyse
from analysis.summary import bootstrap_scores, draw_trainings, summarise, training_spread
from analysis.tables import covers, format_table
from rllava.errors import UserError
from tests.analysis.synthetic import (
    PROTOCOL,
    SyntheticSweep,
    fake_fingerprint,
    make_record,
    make_rows,
    manifest_of,
    write_artifact,
    write_manifest,
)

RESAMPLING = Resampling(draws=2000)
SAMPLES, SEEDS = 40, 4
BUDGETS = (0.0, 8.0)


def records(effect: dict[str, list[float]], noise: float = 10.0) -> pd.DataFrame:
    """Scores of 100 + the effect of a training + noise of a sample, which all trainings share."""
    rows: list[dict[str, Any]] = []
    for benchmark in ("easy_vqa", "easy_captions"):
        shared = np.random.default_rng(len(benchmark)).normal(0, noise, SAMPLES)
        for candidate, effects in effect.items():
            for seed, added in enumerate(effects):
                for epsilon in BUDGETS:
                    for index in range(SAMPLES):
                        score = 100 + added + shared[index] - 2 * epsilon
                        row = make_record(candidate, benchmark, f"s{index:02d}", epsilon, score=score)
                        marks = {"model": fake_fingerprint(candidate, seed), "seed": seed}
                        evaluation = fake_fingerprint(candidate, seed, benchmark, epsilon)
                        rows.append(row | marks | {"evaluation": evaluation})
    frame = pd.DataFrame(rows)
    return frame.astype({"seed": "Int64", "severity": "Int64", "restart": "Int64"})


def half_width(scores: Scores, candidate: str) -> float:
    table = summarise(scores, bootstrap_scores(scores, RESAMPLING), RESAMPLING)
    row = table[(table["candidate"] == candidate) & (table["benchmark"] == AVERAGE) & (table["epsilon"] == 8)].iloc[0]
    return float(row["high"] - row["low"]) / 2


def test_trainings_are_told_apart_and_averaged() -> None:
    scores = arrange_scores(records({"a": [0.0, 3.0, 6.0, 9.0], "b": [0.0]}))
    assert list(scores.seeds) == [4, 1]
    assert scores.trainings is not None
    assert scores.trainings["easy_vqa"].shape == (4, SAMPLES, 2, 2)
    assert scores.values["easy_vqa"][:, 0, 0] == pytest.approx(scores.values["easy_vqa"][:, 1, 0] + 4.5)
    assert np.isnan(scores.trainings["easy_vqa"][1:, :, 1]).all()


def test_the_spread_of_training_is_that_of_the_trainings_means() -> None:
    effects = [0.0, 3.0, 6.0, 9.0]
    scores = arrange_scores(records({"a": effects, "b": [1.0]}))
    for benchmark in ("easy_vqa", AVERAGE):
        spread_CE = training_spread(scores, benchmark)
        assert spread_CE[0] == pytest.approx(np.std(effects, ddof=1))
        assert np.isnan(spread_CE[1]).all()


def test_intervals_cover_training_and_samples() -> None:
    """Trainings that are all alike add nothing; trainings that differ add their own spread."""
    once = arrange_scores(records({"a": [0.0]}))
    alike = arrange_scores(records({"a": [0.0] * SEEDS}))
    assert half_width(alike, "a") == pytest.approx(half_width(once, "a"), rel=1e-9)
    effects = [-12.0, -4.0, 4.0, 12.0]
    apart = arrange_scores(records({"a": effects}))
    # Of a bootstrap's mean over n trainings the variance is that of the trainings over n (without Bessel's correction).
    samples_sd = np.mean([half_width(once, "a") / 1.96])
    expected = 1.96 * np.sqrt(samples_sd**2 + np.var(effects) / SEEDS)
    assert half_width(apart, "a") == pytest.approx(expected, rel=0.1)
    assert half_width(apart, "a") > 3 * half_width(once, "a")


def test_without_noise_of_samples_all_spread_is_of_training() -> None:
    scores = arrange_scores(records({"a": [0.0, 10.0]}, noise=0.0))
    draws_BK = bootstrap_scores(scores, RESAMPLING)[AVERAGE].draws
    assert sorted(set(np.round(draws_BK[:, 0], 9))) == [100.0, 105.0, 110.0]
    shares = [float((np.abs(draws_BK[:, 0] - value) < 1e-9).mean()) for value in (100.0, 105.0, 110.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.04)  # 2000 draws: 4 standard errors
    assert np.array_equal(draws_BK[:, 0] - draws_BK[:, 1], np.full(2000, 16.0)), "budgets see the same trainings"
    share_BTC = draw_trainings(scores, RESAMPLING)
    assert share_BTC is not None
    assert np.allclose(share_BTC.sum(axis=1), 1)


def test_a_comparisons_interval_covers_training_too() -> None:
    alike = compare(arrange_scores(records({"a": [0.0] * SEEDS, "b": [-5.0] * SEEDS})), "a", RESAMPLING)
    apart = compare(
        arrange_scores(records({"a": [-12.0, -4.0, 4.0, 12.0], "b": [-15.0, -9.0, -1.0, 5.0]})), "a", RESAMPLING
    )
    rows = [table[(table["benchmark"] == AVERAGE) & (table["epsilon"] == 8)].iloc[0] for table in (alike, apart)]
    assert [row["difference"] for row in rows] == pytest.approx([-5.0, -5.0])
    assert rows[0]["high"] < 0 < rows[1]["high"], "trainings that differ by as much leave the difference open"


def test_one_training_gives_the_numbers_that_it_gave_before() -> None:
    frame = records({"a": [0.0], "b": [5.0]})
    scores = arrange_scores(frame)
    assert scores.trainings is None
    assert draw_trainings(scores, RESAMPLING) is None
    summary = summarise(scores, bootstrap_scores(scores, RESAMPLING), RESAMPLING)
    assert set(summary["seeds"]) == {1}
    assert covers(summary).startswith("one training per candidate: intervals cover the choice of samples")


def test_a_candidate_of_two_models_of_one_seed_is_refused() -> None:
    frame = records({"a": [0.0, 1.0]})
    frame.loc[(frame["seed"] == 1) & (frame["sample_id"] == "s00"), "model"] = "f" * 16
    with pytest.raises(UserError, match="candidate 'a' stands for 2 models"):
        arrange_scores(frame)


def test_the_report_of_several_trainings(tmp_path: Path) -> None:
    """Page, figures, gallery and terminal."""
    sweep = SyntheticSweep(budgets=(0.0, 8.0), samples=12)
    entries = []
    for seed in range(2):
        for candidate in sweep.clean:
            for benchmark in sweep.benchmarks:
                for epsilon in sweep.budgets:
                    evaluation = fake_fingerprint(candidate, seed, benchmark, epsilon)
                    marks = {"seed": seed, "model": fake_fingerprint(candidate, seed), "evaluation": evaluation}
                    rows = [row | marks for row in make_rows(sweep, candidate, benchmark, epsilon)]
                    folder = f"records/{candidate}-{benchmark}-{epsilon:g}-{evaluation}"
                    write_artifact(str(tmp_path), folder, rows)
                    label = PROTOCOL if epsilon else "clean"
                    entries.append(RecordsEntry(folder, candidate, benchmark, label, epsilon, seed=seed))
    write_manifest(str(tmp_path), json.loads(manifest_of(sweep, entries).to_json()))
    results = load_sweep(str(tmp_path))
    assert "2 trainings per candidate: intervals cover training and samples" in format_table(results)
    statistics = analyse(results, resampling=RESAMPLING)
    assert len(statistics.evidence) == 2
    page = Path(write_statistics(statistics).index).read_text()
    assert "2 trainings per candidate: intervals cover training and samples" in page
    summary = pd.read_csv(tmp_path / "reports/encoder_ablation/summary.csv")
    assert set(summary["seeds"]) == {2}
    assert summary["training_sd"].notna().all()
