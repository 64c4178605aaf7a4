"""Attacks kept in storage, and images handed from one evaluation to the next."""

import dataclasses
import logging
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from rllava.attacks.rounds import SMALLER, other
from rllava.data.shards import parquet_bytes
from rllava.evaluation.answers import answer_bank
from rllava.evaluation.in_flight import ShardStates
from rllava.evaluation.pipeline import facts_of
from rllava.evaluation.samples import Sample, decode_shard
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.transfer import images_of_others
from rllava.evaluation.victim import Victim
from rllava.metrics.metric import METRICS
from rllava.records import RECORD_SCHEMA
from rllava.specs import EvalSpec
from rllava.store import Store
from tests.evaluation.test_shard import answered_by_itself, evaluate, scored_image, shard, spec_of
from tests.model.test_llava import make

STATE = {"waiting": {"float32": [[0, 1]]}, "lanes": {"point_LCHW": torch.rand(2, 3, 4, 4)}, "limit": 3}


def kept(folder: Path, samples: list[Sample]) -> tuple[ShardStates, EvalSpec]:
    spec = spec_of("easy_vqa", 8.0)
    return ShardStates(Store(str(folder)), {spec: f"{folder}/records/x"}, 3, samples), spec


def test_a_state_comes_back_as_it_was_and_is_removed_with_its_part(tmp_path: Path) -> None:
    states, spec = kept(tmp_path, [Sample("s0", "p", ("r",), None, None)])
    assert states.load(spec) is None
    states.save(spec, STATE)
    loaded = states.load(spec)
    assert loaded is not None
    assert loaded["waiting"] == STATE["waiting"]
    assert torch.equal(loaded["lanes"]["point_LCHW"], STATE["lanes"]["point_LCHW"])  # type: ignore[index]
    assert Path(states.path(spec)).name == "state-00003.pt"
    states.remove(spec)
    states.remove(spec)
    assert states.load(spec) is None


@pytest.mark.parametrize("damage", ["truncated", "pickle", "others"])
def test_a_state_that_cannot_be_used_is_passed_over_with_a_word(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    states, spec = kept(tmp_path, [Sample("s0", "p", ("r",), None, None)])
    states.save(spec, STATE)
    path = Path(states.path(spec))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "pickle":
        torch.save({"format": Path}, path)
    else:
        states = kept(tmp_path, [Sample("s1", "p", ("r",), None, None)])[0]
    with caplog.at_level(logging.WARNING):
        assert states.load(spec) is None
    assert "begins anew" in caplog.text
    assert str(path) in caplog.text


def test_images_of_another_evaluation_come_back_as_they_were_scored(tmp_path: Path) -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 4), 64))
    store = Store(str(tmp_path))
    smaller = spec_of("easy_vqa", 8.0)
    (rows,) = evaluate("easy_vqa", samples, (8.0,))
    rows[1] |= {"adversarial_png": None, "adversarial_rest": None, "rounds": []}
    artifact = store.artifact("records", smaller.name, smaller)
    store.write(f"{artifact.path}/part-00002.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA)))
    spec = dataclasses.replace(spec_of("easy_vqa", 16.0), smaller=smaller, sources=(smaller,))
    found = images_of_others(store, spec, 2, samples)
    assert set(found) == {SMALLER, other(0)}
    for b, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        assert sample.pixels_HWC is not None
        if row["adversarial_png"]:
            assert torch.equal(found[SMALLER][b], scored_image(row))
        else:
            clean_CHW = torch.from_numpy(sample.pixels_HWC).permute(2, 0, 1) / 255
            torch.testing.assert_close(found[SMALLER][b], clean_CHW)
    smaller_image = dataclasses.replace(samples[0], pixels_HWC=samples[0].pixels_HWC[:32, :32])  # type: ignore[index]
    assert images_of_others(store, spec, 2, [smaller_image])[other(0)].shape == (1, 3, 32, 32)


def test_the_bank_holds_the_most_common_first_references(tmp_path: Path) -> None:
    folder = str(tmp_path / "data")
    store = Store(str(tmp_path))
    rows = shard("easy_vqa", 4).to_pylist()
    for row, references in zip(rows, (["red", "blue"], ["blue"], ["blue"], [" "]), strict=True):
        row["references"] = references
    for number, part in enumerate((rows[:1], rows[1:])):
        table = pa.Table.from_pylist(part, schema=shard("easy_vqa", 1).schema)
        store.write(f"{folder}/part-{number:05d}.parquet", parquet_bytes(table))
    assert answer_bank(store.filesystem, folder, spec_of("easy_vqa", 8.0).benchmark.task) == ("blue", "red")


def test_complete_records_say_in_what_portions_they_were_computed(tmp_path: Path) -> None:
    """Also where several runs made the parts, each with what fitted; a shard of errors alone was not computed."""
    store, spec = Store(str(tmp_path)), spec_of("easy_vqa", 0.0, batch_size=0)
    table = shard("easy_vqa", 3)
    damaged = table.set_column(table.column_names.index("image"), "image", pa.array([b""] * 3, pa.binary()))
    artifact = store.artifact("records", spec.name, spec)
    metric = METRICS.get("vqa_accuracy")
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    for number, (rows, batch_size) in enumerate(((table, 0), (table, 2), (table, 2), (damaged, 1))):
        how = dataclasses.replace(spec, batch_size=batch_size)
        assert store.artifact("records", how.name, how) == artifact
        ((_, part),) = evaluate_shard(worker, decode_shard(rows, 64), [how], metric, None)
        store.write(f"{artifact.path}/part-{number:05d}.parquet", parquet_bytes(part))
        store.write(f"{tmp_path}/data/part-{number:05d}.parquet", parquet_bytes(rows))
    run = [{"batch_size": size, "compiled": False} for size in (3, 2)]
    expected = {"parts": 4, "of": 4, "seconds": 1.5, "run_as": run}
    assert facts_of(store, artifact, f"{tmp_path}/data", 1.5) == expected
    assert facts_of(store, artifact, f"{tmp_path}/data", 1.5, first=2) == expected, "more is there than was asked for"
    store.write(f"{artifact.path}/state-00000.pt", b"of a worker that was killed")
    store.write(f"{artifact.path}/state-00002.pt", b"of an attack that goes on another time")
    for number in (1, 3):
        store.filesystem.rm_file(f"{artifact.path}/part-{number:05d}.parquet")
    facts = facts_of(store, artifact, f"{tmp_path}/data", 1.5, first=1)
    assert facts == {"parts": 1, "of": 4, "seconds": 1.5, "run_as": run[:1]}
    assert [path.name for path in Path(artifact.path).glob("state-*")] == ["state-00002.pt"]
