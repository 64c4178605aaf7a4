"""The paper's numbers: complete, consistent, and beside a sweep's own."""

import numpy as np
import pandas as pd
import pytest

from analysis.paper_numbers import (
    PAPER_COLUMNS,
    ROUNDING,
    beside_paper,
    claims,
    jailbreak_gap,
    paper_fronts,
    paper_numbers,
    plain_candidate,
    plain_cell,
    plain_condition,
    recomputed_averages,
)
from rllava.recipes.paper import PAPER_CANDIDATES
from tests.analysis.notebook_runner import execute_notebook

COUNTS = {
    # encoders x (6 benchmarks + 2 averages) x 4 budgets
    "1": 5 * 8 * 4, "14": 10 * 8 * 4, "15": 2 * 8 * 4,
    "2": 5 * 4 * 3, "3": 5 * 6, "4": 5 * 5, "6": 1, "20": 8 * 5 * 2, "21": 10 * 4, "22": 10 * 4,
}  # fmt: skip


def test_every_number_of_the_tables_is_there_once() -> None:
    table = paper_numbers()
    assert table["table"].value_counts().to_dict() == COUNTS
    assert not table.duplicated(["table", "candidate", "benchmark", "measure", "condition", "epsilon"]).any()
    assert set(table["candidate"]) == set(PAPER_CANDIDATES)
    assert table[list(PAPER_COLUMNS)].drop(columns="epsilon").notna().all().all()
    assert ((table["value"] >= 0) & (table["value"] <= 510)).all()


def test_printed_averages_are_those_of_the_cells() -> None:
    averages = recomputed_averages()
    assert averages["table"].value_counts().to_dict() == {
        "1": 40, "14": 80, "15": 16, "2": 12, "4": 5, "6": 1, "21": 10, "22": 10
    }  # fmt: skip
    off = averages[(averages["printed"] - averages["recomputed"]).abs() > ROUNDING]
    assert sorted(zip(off["table"], off["candidate"], off["printed"], off["recomputed"].round(2), strict=True)) == [
        ("22", "simclip4@clip-l-336", 78.31, 78.01),
        ("4", "clip-l-336", 62.41, 62.53),
    ]
    assert off["misprint"].all()
    assert averages["misprint"].sum() == len(off)


def test_the_claims_come_out_of_table_one() -> None:
    found = claims()
    at = found.set_index(["task", "other", "epsilon"])["ratio"]
    assert at["captioning", "fare4-336@clip-l-336", 4.0] == pytest.approx(2.15, abs=0.005)
    assert at["question answering", "simclip4@clip-l-336", 8.0] == pytest.approx(1.69, abs=0.005)
    means = found[found["epsilon"].isna()]["ratio"].round(2).tolist()
    # captioning over FARE and Sim-CLIP, said to be 2x, then answering, said to be 1.5x
    assert means == [1.95, 2.13, 1.58, 1.48]
    assert jailbreak_gap() == pytest.approx(10.37)


def test_the_tables_have_fronts() -> None:
    found = paper_fronts(8.0)
    panel = found[found["panel"] == "Table 1, coco"].set_index("candidate")
    assert len(panel) == 5
    assert panel["on_front"].to_dict() == {
        "clip-l-336": True, "fare4-336@clip-l-336": True, "simclip4@clip-l-336": False, "advxl-h": False,
        "advxl-g": True,
    }  # fmt: skip


def test_the_notebook_runs_without_a_storage_and_with_one(storage: str) -> None:
    for where in ("", storage):
        notebook = execute_notebook(where, notebook="paper.ipynb")
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        printed = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
        assert "HADES: 10.4 points" in printed
        assert ("0 numbers are about the same cells" if where else "no storage given") in printed


def test_defects_of_the_published_code_are_named_per_row() -> None:
    table = paper_numbers().drop_duplicates("candidate").set_index("candidate")["defects"]
    assert table["clip-l-336"] == ""
    assert "GELU" in table["fare4-336@clip-l-336"]
    assert "GELU" in table["simclip4@clip-l-336"]
    assert "256 tokens" in table["simclip4@clip-l-336"]
    mixed = table["fare4-336+advxl-h@clip-l-336+advxl-h"]
    assert "GELU" in mixed
    assert "ImageNet" in mixed


def ours(**changed: object) -> pd.DataFrame:
    row = {
        "candidate": "advxl-g", "benchmark": "coco", "condition": "paper_ensemble-v1", "epsilon": 4.0,
        "mean": 75.0, "low": 70.0, "high": 80.0, "n": 500,
    }  # fmt: skip
    return pd.DataFrame([row | changed])


def test_the_same_cell_stands_beside_ours() -> None:
    found = beside_paper(ours())
    assert len(found) == 1
    assert found.iloc[0][["table", "paper", "ours", "within", "adaptive"]].tolist() == ["1", 76.59, 75.0, True, True]
    assert not beside_paper(ours(high=76.0)).iloc[0]["within"]
    assert not beside_paper(ours(low=np.nan, high=np.nan)).iloc[0]["within"]
    clean = beside_paper(ours(condition="clean", epsilon=0.0, candidate="advxl-g[normalization=as_released]"))
    assert sorted(clean["table"]) == ["1", "14"]
    assert "as_released" in clean.iloc[0]["defects"]


@pytest.mark.parametrize(
    "changed",
    [
        {"candidate": "tiny-clip"},
        {"benchmark": "easy_vqa"},
        {"epsilon": 3.0},
        {"epsilon": None},
        {"condition": "paper_ensemble_10steps-v1"},
        {"mean": None},
    ],
)
def test_another_cell_does_not(changed: dict[str, object]) -> None:
    assert beside_paper(ours(**changed)).empty


def test_names_without_what_tells_variants_apart() -> None:
    assert plain_condition("paper_apgd-v3") == "paper_apgd"
    assert plain_condition("fog-v1[64px]") == "fog"
    assert plain_condition("clean") == "clean"
    assert plain_candidate("fare4-336[activation=gelu]@clip-l-336") == "fare4-336@clip-l-336"


def test_another_wording_on_stored_images_stands_beside_the_papers() -> None:
    label = "prompted[ap,stored,non-adaptive,paper_ensemble-v1,4/255]-v1"
    assert plain_cell(label, float("nan")) == ("prompted:ap", 4.0)
    row = {"candidate": "clip-l-336", "benchmark": "coco", "condition": label, "epsilon": np.nan, "adaptive": False}
    row |= {"mean": 5.0, "low": 4.0, "high": 6.0, "n": 500}
    (found,) = beside_paper(pd.DataFrame([row])).to_dict("records")
    assert (found["paper"], found["table"], found["within"], found["adaptive"]) == (4.99, "20", True, False)
    through = label.replace("stored,non-adaptive", "attacked")
    assert beside_paper(pd.DataFrame([row | {"condition": through}])).empty
