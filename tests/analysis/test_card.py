"""Robustness cards: their numbers, files and page, on made-up records."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import vl_convert

from analysis.bootstrap import Resampling
from analysis.card import CardStatistics, analyse_card, card_answer, fronts, signed_means
from analysis.card_check import checked_card, main, problems, submit
from analysis.card_columns import Column, own_rows
from analysis.card_page import card_map, format_card, front_chart
from analysis.card_schema import CARD, CARD_KEY, CARD_SCHEMA, TARGETED
from analysis.loading import load_sweep
from analysis.report import refresh_report, write_card
from rllava.errors import UserError
from tests.analysis.card_results import BENCHMARKS, CANDIDATES, FOG, SAMPLES, SNOW, WORDED, write_card_sweep
from tests.analysis.synthetic import PROTOCOL, make_record, write_artifact

QUICK = Resampling(draws=500)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("card"))
    write_card_sweep(root)
    return root


@pytest.fixture(scope="module")
def card(storage: str) -> CardStatistics:
    return analyse_card(load_sweep(storage, CARD), QUICK)


def row(table: pd.DataFrame, **wanted: object) -> Any:
    for name, value in wanted.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_a_column_per_benchmark_and_condition_with_details_beside(card: CardStatistics) -> None:
    assert list(card.headings.values())[:4] == [
        "easy_vqa · clean", "easy_vqa · ε = 4", "easy_vqa · ε = 8", "easy_vqa · fog-v1"
    ]  # fmt: skip
    names = [card.headings[column] for column in card.main_columns]
    assert names[3:5] == [f"easy_vqa · {WORDED} ε = 8", "easy_vqa · mean of corruption"]
    assert len(names) == 2 * 5
    # clean, two budgets, the hint; two corruptions at five severities, over them, and both together
    assert len(card.table) == len(CANDIDATES) * len(BENCHMARKS) * (4 + 2 * 5 + 2 + 1)
    assert not card.table.duplicated(list(CARD_KEY)).any()


def test_means_and_what_is_kept_of_the_clean_score(card: CardStatistics) -> None:
    at = {"candidate": "b", "benchmark": "easy_vqa", "severity": None}
    attacked = row(card.table, **at, condition=PROTOCOL, epsilon=8.0)
    assert attacked["mean"] == pytest.approx(100 * 8 / SAMPLES)
    assert attacked["relative"] == pytest.approx(8 / SAMPLES)
    assert attacked["low"] < attacked["mean"] < attacked["high"]
    assert attacked["relative_low"] < attacked["relative"] < attacked["relative_high"]
    assert (attacked["n"], attacked["steps"], attacked["seconds"]) == (SAMPLES, 100 * SAMPLES, 2.5)
    fog = row(card.table, **at, condition=FOG)
    snow = row(card.table, **at, condition=SNOW)
    assert fog["mean"] == pytest.approx(100 * np.mean([SAMPLES - s for s in range(1, 6)]) / SAMPLES)
    both = row(card.table, **at, condition="mean of corruption")
    assert both["mean"] == pytest.approx((fog["mean"] + snow["mean"]) / 2)
    assert both["seconds"] == 5.0
    # Another condition at the same budget is a column of its own.
    assert row(card.table, **at, condition=WORDED, epsilon=8.0)["mean"] == pytest.approx(100 * 10 / SAMPLES)
    third = row(card.table, candidate="a", benchmark="easy_vqa", condition=FOG, severity=3)
    assert (third["mean"], third["relative"]) == (100.0, 1.0)
    assert card_answer(card).endswith("of 10 columns, of 3 candidates.")


def test_correlations_are_over_candidates_and_exact(card: CardStatistics) -> None:
    pair = row(card.correlations, first="easy_vqa · ε = 4", second="easy_vqa · ε = 8")
    # Ranks agree: of the six orders of three candidates, two correlate as much, this one and its reverse.
    assert (pair["rho"], pair["p"], pair["n"], pair["permutations"]) == (pytest.approx(1.0), pytest.approx(1 / 3), 3, 6)
    against = row(card.correlations, first="easy_vqa · ε = 8", second="easy_vqa · mean of corruption")
    assert against["rho"] == pytest.approx(-np.sqrt(3) / 2)  # a is worst under attack, best under corruptions; b ties
    assert np.isnan(row(card.correlations, first="easy_vqa · clean", second="easy_vqa · ε = 8")["rho"])


def test_fronts_of_every_pair_turn_round_what_is_better_when_smaller() -> None:
    shares = {"x": (3.0, 1.0), "y": (2.0, 0.0), "z": (1.0, 2.0)}
    columns = [Column("q", "clean", "clean", 0.0), Column("q", "aimed-v1", "attack", 8.0, TARGETED)]
    table = pd.DataFrame([
        {"candidate": name, "benchmark": "q", "condition": column.condition, "epsilon": column.epsilon,
         "severity": None, "measure": column.measure, "mean": value}
        for name, values in shares.items() for column, value in zip(columns, values, strict=True)
    ])  # fmt: skip
    assert signed_means(table, columns).tolist() == [[3.0, -1.0], [2.0, 0.0], [1.0, -2.0]]
    found = fronts(table, columns)
    assert found.shape == (2, 2, 3)
    assert found[0, 1].tolist() == [True, True, False]
    assert found[0, 0].tolist() == [True, False, False]


def test_the_page_holds_card_fronts_and_galleries(storage: str, card: CardStatistics) -> None:
    page = Path(write_card(card))
    text = page.read_text(encoding="utf-8")
    assert "fewer than 10, no verdict is given" in text
    assert "<h3>Attacks at ε = 8/255</h3>" in text
    assert text.count("severity 5</span>") == 2 * len(BENCHMARKS)
    assert "<script>alert(1)</script>" not in text
    assert "datum.fronts[across]" in text
    assert (page.parent / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    # The page's own expressions run without a browser: a front of clean against the largest budget.
    chart = front_chart(card)
    assert isinstance(chart, alt.LayerChart)
    assert [parameter["value"] for parameter in chart.to_dict()["params"] if "bind" in parameter] == [0, 2]
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    assert all(f">{name}<" in svg for name in CANDIDATES)
    assert len(card_map(card).to_dict()["layer"]) == 2


def test_its_files_are_in_the_schema(storage: str, card: CardStatistics) -> None:
    folder = Path(write_card(card)).parent
    table = pq.read_table(folder / "card.parquet")
    assert table.schema.equals(CARD_SCHEMA, check_metadata=False)
    assert table.schema.metadata[b"rllava.schema"] == b"card-v1"
    as_text = pd.read_csv(folder / "card.csv")
    assert list(as_text.columns) == CARD_SCHEMA.names
    assert problems(as_text.assign(source="us")) == []
    assert problems(table.to_pandas().assign(source="us")) == []


def test_the_terminal_shows_columns_by_candidate(storage: str) -> None:
    page, table = refresh_report(storage, CARD)
    lines = table.splitlines()
    assert lines[0].split() == ["column", *CANDIDATES]
    attacked = next(line for line in lines if line.startswith("easy_vqa · ε = 8"))
    assert [word for word in attacked.split() if word.endswith("%")] == ["33%", "67%", "83%"]
    before = Path(page).stat().st_mtime_ns
    assert refresh_report(storage, CARD) == (page, table)
    assert Path(page).stat().st_mtime_ns == before
    assert format_card(analyse_card(load_sweep(storage, CARD))) == table


def test_what_other_sweeps_left_is_found(tmp_path: Path) -> None:
    write_card_sweep(str(tmp_path), ("a", "b"))
    for name in ("a", "b"):
        spec: dict[str, Any] = {"benchmark": {"name": "other"}, "condition": {"precision": "float32"}}
        rows = [
            make_record(name, "other", f"s{index}", 0.0, score=100.0 * (index < 3), side=0) for index in range(4)
        ]  # fmt: skip
        write_artifact(str(tmp_path), f"records/{name}-other-clean-0", rows)
        (tmp_path / f"records/{name}-other-clean-0/spec.json").write_text(json.dumps(spec))
        label = {"of": "text", "text": "give up"}
        aimed = {"protocol": {"rounds_by_kind": [["short_answer", [{"label": label}]]]}, "budget": {}}
        spec = {"benchmark": {"name": "third"}, "condition": aimed}
        rows = [
            make_record(name, "third", f"s{index}", 8.0, score=0.0)
            | {"rounds": ["target-give up"], "round_predictions": ["I give up" if index < 1 else "red"]}
            for index in range(4)
        ]  # fmt: skip
        write_artifact(str(tmp_path), f"records/{name}-third-aimed-0", rows)
        (tmp_path / f"records/{name}-third-aimed-0/spec.json").write_text(json.dumps(spec))
    card = analyse_card(load_sweep(str(tmp_path), CARD), QUICK)
    found = {card.headings[column]: column for column in card.columns if column.found}
    assert list(found) == ["other · clean", f"third · targeted {PROTOCOL} ε = 8"]
    assert own_rows(card.table, found["other · clean"])["mean"].tolist() == [75.0, 75.0]
    aimed_rows = own_rows(card.table, list(found.values())[1])
    assert aimed_rows["mean"].tolist() == [25.0, 25.0]
    assert aimed_rows["relative"].isna().all()


@pytest.fixture
def theirs(card: CardStatistics) -> pd.DataFrame:
    return card.table[card.table["candidate"] == "a"].assign(source="a lab", candidate="zeta")


def test_a_submitted_card_stands_beside_ours_and_is_counted_nowhere(
    storage: str, card: CardStatistics, theirs: pd.DataFrame, tmp_path: Path
) -> None:
    copied = str(tmp_path / "results")
    write_card_sweep(copied)
    file = tmp_path / "lab.csv"
    theirs.to_csv(file, index=False)
    before = refresh_report(copied, CARD)[1]
    submit(copied, file)
    page, table = refresh_report(copied, CARD)
    assert table == before
    text = Path(page).read_text()
    assert "zeta<small>submitted: a lab</small>" in text
    pd.testing.assert_frame_equal(analyse_card(load_sweep(copied, CARD), QUICK).correlations, card.correlations)
    theirs.to_csv(tmp_path / "again.csv", index=False)
    submit(copied, tmp_path / "again.csv")
    with pytest.raises(UserError, match="two files say something of one thing: rows 1 and "):
        analyse_card(load_sweep(copied, CARD), QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "n"}, "columns are missing: n"),
        ({"extra": 1}, "unknown columns: extra; a card has source, candidate"),
        ({"mean": 1001.0, "low": None, "high": None}, "mean 1001 is not in 0 to 1000"),
        ({"mean": -1.0, "low": None, "high": None}, "mean -1 is not in 0 to 1000"),
        ({"mean": 101.0, "low": None, "high": None, "measure": TARGETED}, "mean 101 is not in 0 to 100"),
        ({"low": 99.0, "mean": 50.0, "high": 100.0}, "mean 50 is not in its interval, 99 to 100"),
        ({"low": None}, "the interval of mean has one end"),
        ({"relative_low": 2.0, "relative_high": 3.0}, "relative 1 is not in its interval, 2 to 3"),
        ({"condition": "fog"}, "unknown condition 'fog'; expected NAME-vNUMBER"),
        ({"measure": "luck"}, "unknown measure 'luck'; known: score, targeted, flagged"),
        ({"candidate": None}, "column candidate: row 1 has none"),
        ({"n": 2.5}, "column n: expected whole numbers"),
        ({"adaptive": "perhaps"}, "column adaptive: expected True or False"),
        ({"epsilon": 300.0}, "epsilon 300: expected 0 to 255"),
        ({"source": "ours"}, "source 'ours' is that of a sweep's own rows"),
        ({"seeds": 0}, "n, errors and seeds are counts"),
    ],
)
def test_a_card_that_does_not_fit_is_told_in_one_line(
    theirs: pd.DataFrame, change: dict[str, object], message: str
) -> None:
    table = theirs.astype(object).iloc[:1].reset_index(drop=True)
    table = table.drop(columns=change["drop"]) if "drop" in change else table.assign(**change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"lab\.csv: ") as raised:
        checked_card(table.to_csv(index=False).encode(), "lab.csv")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_check_names_every_mistake(
    theirs: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "card.csv"
    pd.concat([theirs.iloc[:2], theirs.iloc[:1].assign(level=2.0)]).to_csv(file, index=False)
    assert main([str(file)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: row 3 (zeta, easy_vqa, clean): level 2: expected a share, e.g. 0.95",
        f"{file}: rows 1 and 3 have one key ({', '.join(CARD_KEY)})",
    ]
    theirs.to_csv(file, index=False)
    assert main([str(file)]) == 0
    own = tmp_path / "own.csv"
    theirs[theirs["condition"] == "clean"].to_csv(own, index=False)
    assert main([str(file), "--against", str(own)]) == 1
    assert "unknown condition 'fog-v1'; known: clean" in capsys.readouterr().out
    assert main([str(tmp_path / "none.csv")]) == 2
    (tmp_path / "x.json").write_text("{}")
    assert main([str(tmp_path / "x.json")]) == 2
    assert "expected a .csv or .parquet file" in capsys.readouterr().err


def test_records_without_clean_answers_make_no_card(storage: str) -> None:
    results = load_sweep(storage, CARD)
    bare = replace(results.manifest, conditions=results.manifest.conditions[1:])
    with pytest.raises(UserError, match="no clean answers to compare with"):
        analyse_card(replace(results, manifest=bare), QUICK)
