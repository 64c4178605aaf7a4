"""Opening results: what is read, what is left alone, and what is refused with a remedy."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.gallery import perturbation_png
from analysis.loading import IMAGE_COLUMNS, fetch_images, load_records, load_sweep, record_keys
from rllava.errors import UserError
from rllava.fingerprint import FORMAT
from rllava.records import RECORD_SCHEMA
from tests.analysis.conftest import SWEEP
from tests.analysis.synthetic import SyntheticSweep, make_record, make_rows, write_artifact, write_manifest, write_sweep

SMALL = SyntheticSweep(clean={"a": 0.9}, decay={"a": 0.9}, benchmarks=("easy_vqa",), budgets=(0.0, 8.0), samples=5)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_sweep(str(tmp_path), SMALL)
    return tmp_path


def part(root: Path, epsilon: str = "8") -> Path:
    return root / f"records/a-easy_vqa-{epsilon}-0123abcd/part-00000.parquet"


def test_a_sweep_comes_back_as_written(storage: str) -> None:
    results = load_sweep(storage)
    assert results.manifest.candidates == tuple(SWEEP.clean)
    assert results.manifest.budgets == SWEEP.budgets
    assert len(results.records) == 4 * 2 * 3 * SWEEP.samples
    assert set(results.records.columns) == {*RECORD_SCHEMA.names, "part"} - set(IMAGE_COLUMNS)
    written = make_rows(SWEEP, "tiny-clip", "easy_vqa", 8.0)
    read = results.records.query("candidate == 'tiny-clip' and benchmark == 'easy_vqa' and epsilon == 8.0")
    assert read["score"].tolist() == [row["score"] for row in written]
    assert read["references"].iloc[3].tolist() == written[3]["references"]


def test_images_come_by_key_and_equal_those_written(storage: str) -> None:
    records = load_sweep(storage).records
    rows = records[(records["sample_id"] == "s0020") & (records["candidate"] == "tiny-clip")]
    images = fetch_images(storage, rows)
    assert set(images) == set(record_keys(rows))
    written = {(row["benchmark"], row["epsilon"]): row for name in SWEEP.benchmarks for e in SWEEP.budgets
               for row in make_rows(SWEEP, "tiny-clip", name, e) if row["sample_id"] == "s0020"}  # fmt: skip
    for key, image in images.items():
        assert image.clean == written[key[1], key[4]]["clean_png"]
        assert image.adversarial == written[key[1], key[4]]["adversarial_png"]
        assert image.rest == written[key[1], key[4]]["adversarial_rest"]
    assert any(image.clean for image in images.values())
    clean, adversarial = (
        make_record("a", "b", "s", e, score=1.0, side=16)[c] for e, c in ((0.0, "clean_png"), (8.0, "adversarial_png"))
    )
    assert perturbation_png(clean, adversarial, 15)


def test_images_load_with_the_records_when_asked(small: Path) -> None:
    records = load_sweep(str(small), images=True).records
    assert records[records["epsilon"] == 0]["clean_png"].notna().all()


def test_only_artifacts_of_the_manifest_are_loaded_and_in_flight_ones_are_ignored(small: Path) -> None:
    other = [make_record("b", "easy_vqa", "s0", 0.0, score=1.0)]
    write_artifact(str(small), "records/b-ffff", other)
    write_artifact(str(small), "records/flight-ffff", [make_record("c", "easy_vqa", "s0", 0.0, score=1.0)])
    (small / "records/flight-ffff/COMPLETE").unlink()
    assert set(load_sweep(str(small)).records["candidate"]) == {"a"}
    assert set(load_records(str(small))["candidate"]) == {"a", "b"}


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        for load in (load_sweep, load_records):
            with pytest.raises(UserError, match="no results folder, it holds neither records/ nor reports/"):
                load(str(path))


def test_an_unknown_sweep_is_told_with_the_known_ones(small: Path) -> None:
    with pytest.raises(UserError, match=r"no sweep 'other' .*reports here: encoder_ablation"):
        load_sweep(str(small), "other")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "no sweep manifest"), ("[]", "no sweep manifest"), ('{"sweep": "x"}', "key 'candidates' is missing"),
     ('{"sweep": "x", "candidates": "a"}', "'candidates' must be a list of names")],
)  # fmt: skip
def test_a_broken_manifest_is_named(small: Path, text: str, reason: str) -> None:
    (small / "reports/encoder_ablation/sweep.json").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        load_sweep(str(small))
    assert "reports/encoder_ablation/sweep.json" in str(caught.value)


def test_provenance_may_be_missing_but_the_grid_may_not(small: Path) -> None:
    path = small / "reports/encoder_ablation/sweep.json"
    manifest = json.loads(path.read_text())
    for key in ("preset", "models", "versions", "machine", "started", "finished", "wall_seconds"):
        del manifest[key]
    manifest["records"][0]["seconds"] = None
    path.write_text(json.dumps(manifest))
    assert load_sweep(str(small)).manifest.models == ()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_file_is_named(small: Path, damage: str) -> None:
    data = part(small).read_bytes()
    broken = {
        "cut": data[: len(data) // 2],
        "flipped": data[:-100] + b"\xff" * 92 + data[-8:],
        "empty": b"",
        "text": b"no",
    }
    part(small).write_bytes(broken[damage])
    with pytest.raises(UserError, match="damaged Parquet file") as caught:
        load_sweep(str(small))
    assert "records/a-easy_vqa-8-0123abcd/part-00000.parquet" in str(caught.value)
    assert "run the sweep again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_schema_is_named(small: Path) -> None:
    pq.write_table(pa.table({"candidate": ["a"]}), part(small))
    with pytest.raises(UserError, match="column 'benchmark' is missing"):
        load_sweep(str(small))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (2, r"records of schema record-v2, and this version of rllava reads record-v6 \(column 'condition' is "
            r"missing\); read them with the version that wrote them, or delete the storage's records/ and run "
            "the sweep again"),
        (99, "records of schema record-v99, which a later version of rllava wrote; update rllava"),
    ],
)  # fmt: skip
def test_records_of_another_version_are_told_with_the_remedy(small: Path, written: int, message: str) -> None:
    table = pq.read_table(part(small))
    new = [name for name in ("condition", "seed", "draw", "model", "evaluation") if name in table.column_names]
    metadata = {**table.schema.metadata, b"rllava.schema": f"record-v{written}".encode()}
    pq.write_table(table.drop_columns(new).replace_schema_metadata(metadata), part(small))
    for load in (load_sweep, load_records):
        with pytest.raises(UserError, match=message) as caught:
            load(str(small))
        assert "\n" not in str(caught.value)
        assert "records/a-easy_vqa-8-0123abcd/part-00000.parquet" in str(caught.value)


def test_columns_of_a_later_version_are_passed_over(small: Path) -> None:
    table = pq.read_table(part(small))
    metadata = {**table.schema.metadata, b"rllava.schema": b"record-v99"}
    wider = table.append_column("mood", pa.array([0] * len(table))).replace_schema_metadata(metadata)
    pq.write_table(wider, part(small))
    assert len(load_sweep(str(small)).records) == 10


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (1, "holds results of format 1, and this version of rllava reads format 5; analyse them with the version that "
            "wrote them, or run the sweep again with another --storage$"),
        (99, "holds results of format 99, which a later version of rllava wrote; update rllava$"),
    ],
)  # fmt: skip
def test_a_storage_of_another_format_is_told_with_the_remedy(small: Path, written: int, message: str) -> None:
    (small / "rllava-storage.json").write_text(json.dumps({"format": written}))
    for load in (load_sweep, load_records):
        with pytest.raises(UserError, match=message):
            load(str(small))


@pytest.mark.parametrize("marker", [json.dumps({"format": FORMAT}), "", "[]"])
def test_a_storage_of_this_format_or_with_a_torn_marker_is_read(small: Path, marker: str) -> None:
    (small / "rllava-storage.json").write_text(marker)
    assert len(load_sweep(str(small)).records) == 10


def test_a_manifest_of_before_is_told_with_the_remedy(small: Path) -> None:
    path = small / "reports/encoder_ablation/sweep.json"
    manifest = json.loads(path.read_text())
    manifest.pop("format", None)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"sweep.json: an earlier version of rllava wrote this manifest; .*sweep again"):
        load_sweep(str(small))


def test_missing_and_incomplete_artifacts_are_told_apart(small: Path) -> None:
    (part(small).parent / "COMPLETE").unlink()
    with pytest.raises(UserError, match="0123abcd: this records artifact of the sweep is not complete; run the sweep"):
        load_sweep(str(small))
    shutil.rmtree(part(small).parent)
    with pytest.raises(UserError, match="0123abcd: this records artifact of the sweep is missing; run the sweep"):
        load_sweep(str(small))


def test_a_complete_artifact_without_parts_is_refused(small: Path) -> None:
    part(small).unlink()
    with pytest.raises(UserError, match=r"complete but without part-\*.parquet"):
        load_sweep(str(small))


def test_two_records_of_one_key_are_refused(small: Path) -> None:
    write_artifact(str(small), "records/again-ffff", make_rows(SMALL, "a", "easy_vqa", 8.0)[:1])
    manifest = json.loads((small / "reports/encoder_ablation/sweep.json").read_text())
    manifest["records"].append({**manifest["records"][0], "path": "records/again-ffff"})
    write_manifest(str(small), manifest)
    with pytest.raises(UserError, match=r"2 records have the same key \(candidate=a, .*sample_id=s0000") as caught:
        load_sweep(str(small))
    assert "records/again-ffff/part-00000.parquet" in str(caught.value)


def test_an_artifact_that_the_manifest_names_twice_is_read_once(small: Path) -> None:
    path = small / "reports/encoder_ablation/sweep.json"
    manifest = json.loads(path.read_text())
    manifest["records"] *= 2
    path.write_text(json.dumps(manifest))
    assert len(load_sweep(str(small)).records) == 10


def test_empty_parts_are_fine(small: Path) -> None:
    write_artifact(str(small), "records/a-easy_vqa-8-0123abcd", [])
    records = load_sweep(str(small)).records
    assert len(records) == 5
    assert isinstance(records, pd.DataFrame)
