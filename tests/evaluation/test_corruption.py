"""Records of corruptions: five per sample, the clean answers beside them, the same in any portions."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from rllava.conditions.clean import Clean
from rllava.conditions.condition import CONDITIONS
from rllava.conditions.corruption import SHOWN, Corruption
from rllava.data.benchmarks import BENCHMARK_SCHEMA
from rllava.data.corruptions import SEVERITIES
from rllava.data.images import decode_png, encode_png, fit
from rllava.evaluation.samples import Sample, decode_shard, pack, unpack
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.victim import Victim
from rllava.fingerprint import fingerprint
from rllava.metrics.metric import METRICS
from rllava.records import KEY
from rllava.specs import EvalSpec
from tests.evaluation.test_shard import shard, spec_of
from tests.model.test_llava import make

FOG = Corruption("fog", side=64)


def spec_under(condition: Clean | Corruption, batch_size: int = 4) -> EvalSpec:
    return dataclasses.replace(spec_of("easy_vqa", 8.0, batch_size), condition=condition)


@pytest.fixture(scope="module")
def worker() -> Victim:
    return Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))


def records(worker: Victim, specs: list[EvalSpec], samples: list[Sample], **known: object) -> list[list[dict]]:  # type: ignore[type-arg]
    metric = METRICS.get("vqa_accuracy")
    tables = evaluate_shard(worker, samples, specs, metric, None, **known)  # type: ignore[arg-type]
    return [table.to_pylist() for _, table in tables]


def test_a_sample_has_a_record_per_severity_beside_its_clean_answer(worker: Victim) -> None:
    samples = decode_shard(shard("easy_vqa", 6), 64, FOG.views)
    clean, fog = records(worker, [spec_under(Clean()), spec_under(FOG)], samples)
    assert [(row["sample_id"], row["severity"]) for row in fog] == [
        (sample.sample_id, severity) for sample in samples for severity in SEVERITIES
    ]
    assert len({tuple(row[name] for name in KEY) for row in clean + fog}) == 6 * 6
    by_sample = {row["sample_id"]: row for row in clean}
    for row in fog:
        own = by_sample[row["sample_id"]]
        assert (row["clean_prediction"], row["clean_score"]) == (own["prediction"], own["score"])
        assert (row["kind"], row["condition"], row["epsilon"]) == ("corruption", "fog-v1[64px]", None)
        assert row["error"] is None
        assert row["score"] in (0.0, 100.0)
        assert (row["rounds"], row["score_8bit"], row["adversarial_png"]) == (None, None, None)
    shown = {row["sample_id"] for row in fog if row["shown_png"]}
    assert shown == {sample.sample_id for sample in samples[:SHOWN]}
    assert np.array_equal(decode_png(fog[1]["shown_png"]), samples[0].views[1])


def test_the_model_is_asked_about_the_corrupted_image(worker: Victim) -> None:
    """What stands in a record is the answer to the image beside it, by a pass of its own."""
    samples = decode_shard(shard("easy_vqa", 3), 64, FOG.views)
    (rows,) = records(worker, [spec_under(FOG)], samples)
    for row in rows[4::5]:
        (sample,) = (sample for sample in samples if sample.sample_id == row["sample_id"])
        again = dataclasses.replace(sample, pixels_HWC=decode_png(row["shown_png"]), views=())
        ((clean,),) = records(worker, [spec_under(Clean())], [again])
        assert (clean["prediction"], clean["score"]) == (row["prediction"], row["score"])


def test_portions_and_neighbours_make_no_difference(worker: Victim) -> None:
    samples = decode_shard(shard("easy_vqa", 6), 64, FOG.views)
    (together,) = records(worker, [spec_under(FOG, 6)], samples)
    alone = [row for sample in samples for row in records(worker, [spec_under(FOG, 1)], [sample])[0]]
    assert alone == together


def test_clean_answers_that_are_known_are_not_made_again(worker: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = decode_shard(shard("easy_vqa", 4), 64, FOG.views)
    (clean,) = records(worker, [spec_under(Clean())], samples)
    (fog,) = records(worker, [spec_under(FOG)], samples)
    known = {(row["sample_id"], row["draw"]): (row["prediction"], row["score"]) for row in clean}
    asked = []
    answer = worker.answer
    monkeypatch.setattr(worker, "answer", lambda pixels, *others: asked.append(len(pixels)) or answer(pixels, *others))
    assert records(worker, [spec_under(FOG)], samples, known=known)[0] == fog
    assert asked == [4] * len(SEVERITIES)
    known.pop((samples[0].sample_id, 0))
    assert records(worker, [spec_under(FOG)], samples, known=known)[0] == fog
    assert len(asked) == 2 * len(SEVERITIES) + 1


def test_what_cannot_be_corrupted_has_records_that_say_why(worker: Victim) -> None:
    rows = shard("easy_vqa", 3).to_pylist()
    rows[0]["image"] = None
    table = pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA)
    thin = Corruption("fog", side=40)
    rows[1]["image"] = encode_png(np.zeros((8, 80, 3), np.uint8))
    samples = decode_shard(pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA), 64, thin.views)
    (found,) = records(worker, [spec_under(thin)], samples)
    assert len(found) == len(table) * len(SEVERITIES)
    errors = [row["error"] for row in found[::5]]
    assert errors[0] == "no image"
    assert errors[1].startswith(
        "cannot be shown: 40 x 4 pixels, the size at which it is corrupted, are too few for fog"
    )
    assert errors[2] is None
    assert all(row["score"] is None for row in found[:10])


def test_samples_arrive_at_the_worker_as_they_were_sent() -> None:
    samples = decode_shard(shard("easy_vqa", 2), 64, FOG.views)
    again = unpack(pack(samples))
    assert [sample.row for sample in again] == [0, 1]
    for sample, sent in zip(again, samples, strict=True):
        assert len(sample.views) == len(SEVERITIES)
        assert all(np.array_equal(view, other) for view, other in zip(sample.views, sent.views, strict=True))
        assert fit(sample.views[0], 64) is not None


def test_names_sizes_and_versions_are_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [
        spec_under(condition)
        for condition in (
            FOG, Corruption("frost", side=64), Corruption("fog"), Corruption("fog", fit="squash"),
            Corruption("fog", side=64, precision="float16"), Clean(),
        )
    ]  # fmt: skip
    assert len({fingerprint(spec) for spec in specs}) == len(specs)
    assert {condition.kind for condition in map(CONDITIONS.get, CONDITIONS)} >= {"clean", "attack", "corruption"}
    monkeypatch.setattr("rllava.conditions.corruption.SIZING_VERSION", 2)
    assert fingerprint(spec_under(FOG)) != fingerprint(specs[0])
    assert fingerprint(spec_under(Clean())) == fingerprint(specs[-1])
