"""Conditions that show stored images, other wordings and letters, beside the attacks that the images come from."""

import shutil
from pathlib import Path

import pytest

from analysis.loading import load_sweep
from analysis.transfer import transfer_matrix
from tests.fixtures.processes import Tracked
from tests.sweeps.conftest import Run
from tests.sweeps.driver import finish, manifest, start
from tests.sweeps.shown import NAME, unexpected

CANDIDATES = ("tiny-clip", "tiny-fare4@tiny-clip")
LABEL = r"(typographic|prompted|all conditions)\S*"
LINES = (
    rf"{LABEL}( +(-?\d+ ±[\d?]+|–))+",
    r"images of \(\S+ \d+/255\)( +\S+)+",
    rf"{NAME}( +([\d.]+|–))+",
    r"scores of the columns' candidates, .*",
)


@pytest.mark.processes
def test_images_of_the_ablation_are_shown_again_without_a_new_step(
    unbroken: Run, tmp_path: Path, tracked: Tracked
) -> None:
    storage = str(tmp_path / "results")
    shutil.copytree(unbroken.storage, storage)
    conditions = ("typographic", "transferred", "prompted:ac")
    output = finish(start(storage, tracked, "--benchmarks", "easy_vqa", "--conditions", *conditions))
    assert unexpected(output, LINES) == []
    results = load_sweep(storage)
    found = manifest(storage)
    assert [entry["reused"] for entry in found["records"] if entry["epsilon"] is not None] == [True] * 4
    entries = {entry["label"]: entry for entry in found["conditions"]}
    assert [entry["adaptive"] for entry in entries.values() if entry["kind"] == "transferred"] == [False, False]
    budgets = {entry["kind"]: entry["label_budget"] for entry in found["conditions"]}
    assert (budgets["typographic"], budgets["transferred"], budgets["prompted_attack"]) == (None, 8.0, 8.0)
    records = results.records
    stepless = records[~records["kind"].isin(["attack", "prompted_attack"])]
    assert stepless["steps"].fillna(0).max() == 0

    matrix = transfer_matrix(results).set_index(["source", "target"])
    assert set(matrix.index) == {(source, target) for source in CANDIDATES for target in CANDIDATES}
    attacked = records[
        (records["kind"] == "attack") & records["rounds"].map(lambda rounds: rounds is not None and len(rounds) > 0)
    ]
    for name in CANDIDATES:
        own = attacked[attacked["candidate"] == name]
        assert matrix.loc[(name, name), "n"] == len(own)
        if len(own):
            assert matrix.loc[(name, name), "mean"] == pytest.approx(own["score_8bit"].mean(), abs=1e-9)
    page = (Path(storage) / "reports/encoder_ablation/index.html").read_text()
    assert "non-adaptive" in page
