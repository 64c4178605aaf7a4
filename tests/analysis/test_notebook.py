"""The notebook runs from top to bottom on synthetic results."""

import json

import pytest
from nbclient.exceptions import CellExecutionError

from tests.analysis.notebook_runner import NOTEBOOK, execute_notebook


def test_the_notebook_draws_front_and_curves(storage: str) -> None:
    notebook = execute_notebook(storage, "encoder_ablation")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert "candidates are on the Pareto front" in printed
    charts = [output for output in outputs if "vega" in json.dumps(output)]
    assert len(charts) >= 2


def test_the_notebook_says_what_is_wrong(storage: str) -> None:
    with pytest.raises(CellExecutionError, match="no sweep 'other'"):
        execute_notebook(storage, "other")


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "RLLAVA_STORAGE" in "".join(code[0]["source"])
