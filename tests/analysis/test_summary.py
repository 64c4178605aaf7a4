"""Tables of means and comparisons on records whose true values are known."""

import numpy as np
import pandas as pd
import pytest

from analysis.bootstrap import Resampling
from analysis.comparisons import COMPARISON_COLUMNS, compare
from analysis.scores import AVERAGE, arrange_scores, default_epsilon
from analysis.summary import best_candidate, bootstrap_scores, summarise
from rllava.errors import UserError
from tests.analysis.synthetic import make_record

QUICK = Resampling(draws=1000)


def frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows).assign(part="p")


def grid(scores: dict[tuple[str, str, float], list[float | None]]) -> pd.DataFrame:
    rows = []
    for (candidate, benchmark, epsilon), values in scores.items():
        for index, score in enumerate(values):
            error = None if score is not None else "out of memory"
            rows.append(make_record(candidate, benchmark, f"s{index}", epsilon, score=score, error=error))
    return frame(rows)


def summary_of(records: pd.DataFrame, **names: object) -> pd.DataFrame:
    scores = arrange_scores(records, **names)  # type: ignore[arg-type]
    table = summarise(scores, bootstrap_scores(scores, QUICK), QUICK)
    return table.set_index(["candidate", "benchmark", "epsilon"])


def test_errors_are_counted_and_left_out_of_the_mean() -> None:
    row = summary_of(grid({("a", "vqa", 0.0): [100, 0, None, 50]})).loc["a", "vqa", 0.0]
    assert row["mean"] == pytest.approx(50.0)
    assert (row["n"], row["errors"]) == (3, 1)


def test_a_record_with_an_error_and_a_score_is_an_error() -> None:
    records = frame(
        [make_record("a", "vqa", "s0", 0.0, score=100.0, error="late"), make_record("a", "vqa", "s1", 0.0, score=0.0)]
    )
    row = summary_of(records).loc["a", "vqa", 0.0]
    assert (row["mean"], row["n"], row["errors"]) == (0.0, 1, 1)


def test_average_is_the_plain_mean_over_benchmarks_whatever_their_sizes() -> None:
    table = summary_of(grid({("a", "vqa", 0.0): [100, 100, 100, 100, 0], ("a", "captions", 0.0): [20, 40]}))
    row = table.loc["a", AVERAGE, 0.0]
    assert row["mean"] == pytest.approx((80 + 30) / 2)
    assert row["n"] == 7
    assert row["low"] < row["mean"] < row["high"]


def test_average_needs_every_benchmark() -> None:
    table = summary_of(grid({("a", "vqa", 0.0): [100], ("b", "vqa", 0.0): [0], ("b", "captions", 0.0): [20]}))
    assert np.isnan(table.loc[("a", AVERAGE, 0.0), "mean"])
    assert table.loc[("b", AVERAGE, 0.0), "mean"] == 10.0


def test_retained_share_is_the_ratio_of_means_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    clean = [100.0 if value < 0.8 else 0.0 for value in rng.random(200)]
    robust = [score if value < 0.5 else 0.0 for score, value in zip(clean, rng.random(200), strict=True)]
    row = summary_of(grid({("a", "vqa", 0.0): list(clean), ("a", "vqa", 8.0): list(robust)})).loc["a", "vqa", 8.0]
    assert row["retained"] == pytest.approx(sum(robust) / sum(clean))
    broken = sum(score > 0 for score in robust) / sum(score > 0 for score in clean)
    error = np.sqrt(broken * (1 - broken) / sum(score > 0 for score in clean))  # of a share of the right answers
    assert row["retained_high"] - row["retained_low"] == pytest.approx(2 * 1.96 * error, rel=0.12)


def test_retained_share_of_nothing_is_unknown() -> None:
    assert np.isnan(
        summary_of(grid({("a", "vqa", 0.0): [0, 0], ("a", "vqa", 8.0): [0, 0]})).loc[("a", "vqa", 8.0), "retained"]
    )


def test_order_follows_the_sweep_and_a_candidate_without_records_stays() -> None:
    scores = arrange_scores(grid({("b", "vqa", 8.0): [1], ("a", "vqa", 0.0): [1]}), ["c", "b"], ["vqa"], [0.0, 4.0])
    assert scores.candidates == ("c", "b", "a")
    assert scores.epsilons == (0.0, 4.0, 8.0)
    assert np.isnan(scores.values["vqa"][:, 0]).all()


def test_two_protocols_at_one_sample_are_refused() -> None:
    rows = [
        make_record("a", "vqa", "s0", 8.0, score=1.0),
        make_record("a", "vqa", "s0", 8.0, score=2.0, protocol="long-v1"),
    ]
    with pytest.raises(UserError, match=r"several protocols \(long-v1, paper_ensemble_short-v1\)"):
        arrange_scores(frame(rows))


def test_unknown_names_are_told_with_the_known_ones() -> None:
    scores = arrange_scores(grid({("a", "vqa", 0.0): [1]}))
    with pytest.raises(UserError, match=r"'z' is not in the results; choose from a"):
        scores.cell("z", 0.0)
    with pytest.raises(UserError, match="budget ε = 3/255 is not in the results; choose from 0"):
        scores.cell("a", 3.0)
    with pytest.raises(UserError, match="no records"):
        bootstrap_scores(arrange_scores(grid({("a", "vqa", 0.0): [1]}).iloc[:0]))


def test_headline_budget_is_eight_or_the_largest() -> None:
    assert default_epsilon((0.0, 2.0, 8.0, 16.0)) == 8.0
    assert default_epsilon((0.0, 2.0, 4.0)) == 4.0


def test_a_benchmark_keeps_its_interval_when_another_joins() -> None:
    rng = np.random.default_rng(1)
    one = {("a", "vqa", 0.0): list(rng.random(30))}
    alone = summary_of(grid(dict(one))).loc["a", "vqa", 0.0]
    joined = summary_of(grid({**one, ("a", "captions", 0.0): [1.0, 2.0]})).loc["a", "vqa", 0.0]
    pd.testing.assert_series_equal(alone, joined)


def test_benchmarks_are_resampled_independently() -> None:
    values = list(np.random.default_rng(4).normal(50, 10, size=100))
    table = summary_of(grid({("a", "vqa", 0.0): list(values), ("a", "captions", 0.0): list(values)}))
    width = table["high"] - table["low"]
    assert width["a", AVERAGE, 0.0] == pytest.approx(width["a", "vqa", 0.0] / np.sqrt(2), rel=0.1)


def paired_records() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    hard = rng.random(80)
    cells = {}
    for benchmark in ("vqa", "captions"):
        for name, skill in (("weak", 0.4), ("strong", 0.75), ("same", 0.75)):
            noise = 0.1 * np.random.default_rng(len(name) + len(benchmark)).random(80)
            cells[name, benchmark, 8.0] = [
                100.0 if value + extra < skill else 0.0 for value, extra in zip(hard, noise, strict=True)
            ]
    return grid({key: list(values) for key, values in cells.items()})


def test_comparison_is_paired_and_names_the_difference() -> None:
    records = paired_records()
    scores = arrange_scores(records)
    assert best_candidate(scores, 8.0) in {"strong", "same"}
    table = compare(scores, "strong", QUICK).set_index(["candidate", "benchmark"])
    assert tuple(table.reset_index().columns[:2]) == ("candidate", "benchmark")
    means = records.groupby(["candidate", "benchmark"])["score"].mean()
    weak = table.loc[("weak", "vqa")]
    assert weak["difference"] == pytest.approx(means["weak", "vqa"] - means["strong", "vqa"])
    assert weak["high"] < 0
    assert weak["p_holm"] < 0.01
    assert table.loc[("same", AVERAGE), "p_holm"] > 0.05
    assert table.loc[("weak", AVERAGE), "n"] == 160
    unpaired = 2 * 1.96 * np.sqrt(2 * 50.0**2 / 80)
    assert weak["high"] - weak["low"] < 0.8 * unpaired  # the shared difficulty of the samples cancels


def test_holm_families_are_the_candidates_of_one_benchmark_and_budget() -> None:
    table = compare(arrange_scores(paired_records()), "strong", QUICK)
    for _, family in table.groupby(["benchmark", "epsilon"]):
        smallest = family["p"].min()
        assert family["p_holm"].min() == pytest.approx(min(1.0, 2 * smallest))


def test_comparison_uses_only_samples_that_both_scored() -> None:
    table = compare(
        arrange_scores(grid({("a", "vqa", 0.0): [0, 10, None, 0], ("b", "vqa", 0.0): [None, 30, 99, 10]})), "a", QUICK
    )
    row = table[table["benchmark"] == "vqa"].iloc[0]
    assert (row["difference"], row["n"]) == (15.0, 2)


def test_comparison_without_another_candidate_is_empty_with_all_columns() -> None:
    table = compare(arrange_scores(grid({("a", "vqa", 0.0): [0, 10]})), "a", QUICK)
    assert tuple(table.columns) == COMPARISON_COLUMNS
    assert table.empty
