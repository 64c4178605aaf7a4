"""Two recipes in one storage: told apart where records are loaded, refused where they would be mixed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.evidence import attack_evidence
from analysis.loading import fetch_images, load_records, load_sweep, record_keys
from analysis.scores import arrange_scores
from analysis.statistics import analyse
from analysis.targeted import targeted_success
from rllava.errors import UserError
from tests.analysis.synthetic import (
    PROTOCOL,
    SyntheticSweep,
    fake_fingerprint,
    make_record,
    make_rows,
    write_artifact,
    write_manifest,
    write_sweep,
)

SWEEP = SyntheticSweep(clean={"a": 0.9}, decay={"a": 0.9}, benchmarks=("easy_vqa",), budgets=(0.0, 8.0), samples=5)
LONGER = {"seed": 1, "model": fake_fingerprint("a, trained longer"), "recipe": fake_fingerprint("longer")}
OTHER_PROTOCOL = "long-v1"


def again(epsilon: float, **changes: object) -> list[dict[str, Any]]:
    """The records of a cell, by another evaluation."""
    evaluation = fake_fingerprint("another", epsilon, sorted(changes))
    return [{**row, "evaluation": evaluation, **changes} for row in make_rows(SWEEP, "a", "easy_vqa", epsilon)]


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A storage with two trainings of one candidate's name, of which the last sweep ran the first."""
    write_sweep(str(tmp_path), SWEEP)
    for epsilon in SWEEP.budgets:
        write_artifact(str(tmp_path), f"records/a-easy_vqa-{epsilon:g}-longer", again(epsilon, **LONGER))
    return tmp_path


def test_two_trainings_of_one_name_load_and_are_told_apart(both: Path) -> None:
    records = load_records(str(both))
    assert len(records) == 2 * 2 * SWEEP.samples
    assert records.groupby(["model", "epsilon"]).size().tolist() == [SWEEP.samples] * 4
    assert len(set(record_keys(records))) == len(records)
    one = records[records["model"] == LONGER["model"]]
    assert arrange_scores(one).values["easy_vqa"].shape == (SWEEP.samples, 1, 2)
    assert set(load_sweep(str(both)).records["model"]) == {fake_fingerprint("a")}


def test_each_gets_its_own_images(both: Path) -> None:
    rows = again(8.0, **LONGER)
    for row in rows:
        row["adversarial_png"] = row["adversarial_png"] and b"of the longer training"
    write_artifact(str(both), "records/a-easy_vqa-8-longer", rows)
    records = load_records(str(both))
    attacked = records[records["steps"] > 0]
    images = fetch_images(str(both), attacked)
    assert len(images) == len(attacked) > 0
    own = {key: image.adversarial == b"of the longer training" for key, image in images.items()}
    assert own == {key: key[-1] == rows[0]["evaluation"] for key in own}


def test_the_record_of_a_checkpoint_has_no_seed_and_is_found(tmp_path: Path) -> None:
    rows = [make_record("a", "easy_vqa", "s0", 8.0, score=0.0, side=8, seed=None)]
    write_artifact(str(tmp_path), "records/a-0", rows)
    write_artifact(str(tmp_path), "records/b-0", [make_record("b", "easy_vqa", "s0", 8.0, score=0.0, seed=3)])
    records = load_records(str(tmp_path))
    assert [None if seed is pd.NA else seed for seed in records["seed"]] == [None, 3]
    assert records["seed"].dtype == "Int64"
    (key, image), *_ = fetch_images(str(tmp_path), records[:1]).items()
    assert key == record_keys(records)[0]
    assert (key[5], key[6]) == (None, None)
    assert image.adversarial == rows[0]["adversarial_png"]


def test_a_copied_record_without_seed_is_refused(tmp_path: Path) -> None:
    for name in "xy":
        write_artifact(str(tmp_path), f"records/{name}", [make_record("a", "vqa", "s0", 8.0, score=0.0, seed=None)])
    with pytest.raises(
        UserError, match=r"2 records have the same key .* in records/x/part-00000.*records/y/part-00000"
    ):
        load_records(str(tmp_path))


MIXTURES = {
    "two trainings in one cell": ([*again(8.0), *again(8.0, **LONGER)], r"'a' stands for 2 models"),
    "two trainings in two cells": ([*again(0.0), *again(8.0, **LONGER)], r"'a' stands for 2 models"),
    "two sample lists": (
        [*again(8.0), *(dict(row, sample_id=f"t{i}", evaluation="f" * 16) for i, row in enumerate(again(8.0)))],
        r"'a' on easy_vqa at ε = 8/255 comes from 2 evaluations",
    ),
    "two protocols": (
        [*again(8.0), *again(8.0, condition=OTHER_PROTOCOL)],
        rf"several protocols \({OTHER_PROTOCOL}, {PROTOCOL}\)",
    ),
}


def evidence(records: pd.DataFrame) -> pd.DataFrame:
    return attack_evidence(records, arrange_scores(records.iloc[:1]))


@pytest.mark.parametrize("groups", [arrange_scores, targeted_success, evidence])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_what_groups_records_refuses_mixtures(groups: Callable[[pd.DataFrame], Any], mixture: str) -> None:
    rows, message = MIXTURES[mixture]
    with pytest.raises(UserError, match=f"^records: .*{message}.*; keep the rows of one of them$"):
        groups(pd.DataFrame(rows))


def test_the_refusal_names_an_artifact_of_each(both: Path) -> None:
    with pytest.raises(UserError) as caught:
        arrange_scores(load_records(str(both)))
    assert f"{LONGER['model']} in records/a-easy_vqa-0-longer" in str(caught.value)
    assert f"{fake_fingerprint('a')} in records/a-easy_vqa-0-0123abcd" in str(caught.value)


def test_two_candidates_may_share_a_model_and_differ_in_seed() -> None:
    rows = [*make_rows(SWEEP, "a", "easy_vqa", 8.0), *(dict(row, candidate="b") for row in again(8.0, seed=7))]
    assert arrange_scores(pd.DataFrame(rows)).candidates == ("a", "b")


def test_a_sweep_whose_manifest_mixes_two_is_refused(both: Path) -> None:
    path = both / "reports/encoder_ablation/sweep.json"
    manifest = json.loads(path.read_text())
    manifest["records"].append({**manifest["records"][1], "path": "records/a-easy_vqa-8-longer"})
    write_manifest(str(both), manifest)
    with pytest.raises(
        UserError, match=r"stands for 2 models.*; run the sweep again, which writes reports/enc"
    ) as caught:
        analyse(load_sweep(str(both)))
    assert "\n" not in str(caught.value)
