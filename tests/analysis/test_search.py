"""The statistics and the report of a search, on results whose numbers are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.bootstrap import Resampling
from analysis.loading import load_sweep
from analysis.objectives import Column, mean_over_benchmarks, sample_values
from analysis.scores import sweep_scores
from analysis.search import SearchStatistics, analyse_search, attainment, format_search, load_search
from analysis.search_page import write_search as write_report
from rllava.errors import UserError
from tests.analysis.notebook_runner import execute_notebook
from tests.analysis.search_results import write_search

NAMES = ["accurate", "robust", "both", "neither"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> str:
    storage = str(tmp_path_factory.mktemp("searched"))
    write_search(storage)
    write_search(storage, seed=3, shift=-5.0)
    return storage


@pytest.fixture(scope="module")
def found(searched: str) -> SearchStatistics:
    return analyse_search(load_search(searched, seed=0), Resampling(draws=400))


def test_values_are_those_of_the_samples_it_was_chosen_by(found: SearchStatistics) -> None:
    assert list(found.table["candidate"]) == NAMES
    records = found.results.records
    assert records.groupby(["candidate", "benchmark", "kind"]).size().unique().tolist() == [32]
    for name in NAMES:
        own = records[records["candidate"] == name]
        means = own[own["kind"] == "clean"].groupby("benchmark")["score"].mean()
        row = found.table.set_index("candidate").loc[name]
        assert row["clean"] == pytest.approx(means.mean())
        assert row["clean_low"] <= row["clean"] <= row["clean_high"]
    assert dict(zip(found.table["candidate"], found.table["on_front"], strict=True))["neither"] is False
    assert found.table["front_probability"].between(0, 1).all()


def test_fresh_samples_are_those_that_no_rung_has_seen(found: SearchStatistics) -> None:
    assert list(found.fresh["candidate"]) == ["accurate", "robust", "both"]
    assert set(found.fresh["samples"]) == {16}
    front = found.results.front_records
    unseen = front[(front["candidate"] == "both") & (front["kind"] == "clean") & (front["part"].str.contains("00002"))]
    row = found.fresh.set_index("candidate").loc["both"]
    assert row["clean"] == pytest.approx(unseen.groupby("benchmark")["score"].mean().mean())
    assert (row["clean_chosen"], row["robust@8_chosen"]) == (80.0, 50.0)


def test_a_column_is_the_mean_that_the_ablation_shows(searched: str) -> None:
    results = load_sweep(searched, "search_front")
    scores = sweep_scores(results)
    for kind, budget in (("clean", None), ("robust", 8.0)):
        values = sample_values(results.records, pd.DataFrame(), Column(kind, kind, budget=budget))
        for name in scores.candidates:
            c, e = scores.cell(name, budget or 0.0)
            expected = np.mean([np.nanmean(scores.values[b][:, c, e]) for b in scores.benchmarks])
            assert mean_over_benchmarks(values[values["candidate"] == name]) == pytest.approx(expected)
    with pytest.raises(UserError, match="objective robust@4: the records hold nothing"):
        sample_values(results.records, pd.DataFrame(), Column("robust@4", "robust", budget=4.0))


def test_the_course_is_of_what_finished_the_last_rung(found: SearchStatistics) -> None:
    own = found.course[found.course["seed"] == 0]
    assert own["hypervolume"].iloc[:14].eq(0).all(), "the first rung alone counts nothing"
    assert own["hypervolume"].is_monotonic_increasing
    # Boxes of (95, 10), (80, 50) and (70, 60) above the origin.
    assert own["hypervolume"].iloc[-1] == pytest.approx(95 * 10 + 80 * 40 + 70 * 10)
    assert own["hours"].iloc[-1] == 5.25
    assert set(found.course["seed"]) == {0, 3}


def test_attainment_is_what_one_half_and_all_searches_reach() -> None:
    first, second = np.array([[1.0, 3.0], [3.0, 1.0]]), np.array([[2.0, 2.0]])
    table = attainment([first, second])
    reached = {(row.searches, row.x): row.y for row in table.itertuples()}
    assert reached == {(1, 1.0): 3.0, (1, 2.0): 2.0, (1, 3.0): 1.0, (2, 1.0): 2.0, (2, 2.0): 1.0}


def test_importances_are_of_the_rung_that_enough_have_finished(found: SearchStatistics) -> None:
    clean = found.importances[found.importances["objective"] == "clean"]
    assert set(clean["setting"]) == {"encoders", "instruct_rate"}
    assert clean["importance"].sum() == pytest.approx(1.0)


def test_every_configuration_has_its_end(found: SearchStatistics) -> None:
    assert list(found.trials["end"]) == ["the last rung"] * 4 + ["not among the best 4 of 13 at rung 0"] * 9
    assert found.trials["hours"].tolist() == [0.75] * 4 + [0.25] * 9


def test_the_report_shows_both_numbers_and_loads_nothing(found: SearchStatistics, searched: str) -> None:
    page = Path(write_report(found)).read_text()
    assert "not among the best 4 of 13 at rung 0" in page
    assert "://" not in page.split("<script>")[0]
    told = format_search(found)
    assert "chosen by 32 samples of each benchmark, fresh ones 16" in told
    folder = Path(searched) / "reports/search"
    assert {"front.csv", "fresh.csv", "course.csv", "trials.csv", "front.png", "course.png"} <= {
        file.name for file in folder.iterdir()
    }


def test_a_search_that_is_not_there_is_told(searched: str) -> None:
    with pytest.raises(UserError, match=r"no search 'search' with seed 5 \(seeds here: 0, 3\)"):
        load_search(searched, seed=5)
    with pytest.raises(UserError, match=r"no search 'other' with seed 0 \(seeds here: none\)"):
        load_search(searched, "other")


@pytest.mark.processes
def test_the_notebook_draws_what_a_search_has_found(searched: str) -> None:
    notebook = execute_notebook(searched, "search", notebook="search.ipynb")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert "on the front" in printed
    assert sum("vega" in str(output) for output in outputs) >= 2
