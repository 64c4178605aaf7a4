"""The attack worker on real shards: error rows, shared clean pass, attacks that attack."""

import dataclasses
import io
import json

import pyarrow as pa
import pytest
import torch
from PIL import Image

from rllava.attacks.protocols import PROTOCOLS
from rllava.data.benchmarks import BENCHMARK_SCHEMA, BENCHMARKS, list_samples
from rllava.evaluation.samples import Sample, decode_shard, pack, unpack
from rllava.evaluation.worker import AttackWorker, evaluate_shard, labels_of
from rllava.metrics.metric import METRICS
from rllava.specs import EvalSpec
from sweeps.presets import PRESETS, model_spec
from tests.model.test_llava import make

PRESET = PRESETS.get("smoke")


def shard(name: str, count: int) -> pa.Table:
    spec = dataclasses.replace(BENCHMARKS.get(name), samples=count)
    rows = [
        {
            "row": row,
            "sample_id": sample.sample_id,
            "image": sample.load_image(),
            "prompt": spec.prompt.replace("{question}", sample.question),
            "references": list(sample.references),
        }
        for row, sample in enumerate(list_samples(spec))
    ]
    return pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA)


def spec_of(name: str, epsilon: float, batch_size: int = 4, protocol: str = "paper_ensemble_3steps") -> EvalSpec:
    llava = make("tiny-clip")
    encoders = tuple(encoder.spec for encoder in llava.encoders)  # type: ignore[misc]
    benchmark = dataclasses.replace(BENCHMARKS.get(name), samples=6)
    model = model_spec(PRESET, encoders)  # type: ignore[arg-type]
    return EvalSpec("tiny-clip", model, encoders, benchmark, PROTOCOLS.get(protocol), epsilon, batch_size)  # type: ignore[arg-type]


def evaluate(
    name: str, samples: list[Sample], epsilons: tuple[float, ...], batch_size: int = 4
) -> list[list[dict[str, object]]]:
    metric = METRICS.get(BENCHMARKS.get(name).metric)
    state = metric.prepare([sample.references or ("none",) for sample in samples])
    worker = AttackWorker(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    # An untrained LLaVA answers nothing right; references that it does give make it worth attacking.
    specs = [spec_of(name, epsilon, batch_size) for epsilon in epsilons]
    return [table.to_pylist() for _, table in evaluate_shard(worker, samples, specs, metric, state)]


def answered_by_itself(name: str, samples: list[Sample]) -> list[Sample]:
    (clean,) = evaluate(name, samples, (0.0,))
    return [
        dataclasses.replace(sample, references=(str(row["clean_prediction"]) or "x",) * 10)
        if sample.error is None
        else sample
        for sample, row in zip(samples, clean, strict=True)
    ]


def test_damaged_images_and_empty_answers_become_error_rows() -> None:
    table = shard("easy_vqa", 6)
    rows = table.to_pylist()
    rows[1]["image"] = rows[1]["image"][:100]
    rows[2]["image"] = None
    rows[4]["references"] = ["", " "]
    samples = decode_shard(pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA), 64)
    (clean, attacked) = evaluate("easy_vqa", samples, (0.0, 8.0))
    for records in (clean, attacked):
        assert [row["sample_id"] for row in records] == [row["sample_id"] for row in rows]
        errors = [row["error"] for row in records]
        assert str(errors[1]).startswith("damaged image")
        assert str(errors[2]).startswith("damaged image")
        assert errors[4] == "no references"
        assert [row["score"] is None for row in records] == [False, True, True, False, True, False]


def test_odd_images_reach_the_encoder_as_squares() -> None:
    rows = shard("easy_vqa", 2).to_pylist()
    for row, (mode, size) in zip(rows, (("L", (30, 90)), ("RGBA", (1, 1))), strict=True):
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, "PNG")
        row["image"] = buffer.getvalue()
    samples = decode_shard(pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA), 64)
    assert [sample.pixels_HWC.shape for sample in samples if sample.pixels_HWC is not None] == [(64, 64, 3)] * 2


def test_an_attack_lowers_scores_within_its_budget_and_says_how() -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 6), 64))
    clean, small, large = evaluate("easy_vqa", samples, (0.0, 2.0, 32.0))
    assert [row["score"] for row in clean] == [100.0] * 6
    assert sum(float(str(row["score"])) for row in large) < 600
    for row in (*small, *large):
        assert row["clean_score"] == 100.0
        assert 0 < float(str(row["linf"])) <= float(str(row["epsilon"])) + 1e-3 or row["best_round"] == "clean"
        assert float(str(row["loss_best"])) >= float(str(row["loss_clean"]))
        assert row["steps"] == 3 * len(row["rounds"])  # type: ignore[arg-type]
        image = Image.open(io.BytesIO(row["adversarial_png"]))  # type: ignore[arg-type]
        assert image.size == (64, 64)
    assert all(row["clean_png"] and row["adversarial_png"] is None for row in clean)


def test_records_do_not_depend_on_the_batch_size() -> None:
    samples = answered_by_itself("easy_captions", decode_shard(shard("easy_captions", 5), 64))
    ones, fours = (evaluate("easy_captions", samples, (0.0, 8.0), batch_size) for batch_size in (1, 4))
    for one, four in zip(ones, fours, strict=True):
        for a, b in zip(one, four, strict=True):
            assert (a["prediction"], a["score"], a["rounds"]) == (b["prediction"], b["score"], b["rounds"])
            if a["loss_best"] is not None:
                assert float(str(a["loss_best"])) == pytest.approx(float(str(b["loss_best"])), abs=2e-3)


def test_labels_are_captions_in_order_or_answers_by_frequency() -> None:
    sample = Sample("s", "p", ("b", "a", "a"), None, None)
    assert labels_of(sample, "captioning") == ["b", "a", "a"]
    assert labels_of(sample, "vqa") == ["a", "b"]


def test_samples_survive_the_trip_to_a_worker() -> None:
    samples = decode_shard(shard("easy_vqa", 3), 64)
    samples[1] = dataclasses.replace(samples[1], pixels_HWC=None, error="damaged image: why")
    for before, after in zip(samples, unpack(pack(samples)), strict=True):
        assert (before.sample_id, before.prompt, before.references, before.error) == (
            after.sample_id,
            after.prompt,
            after.references,
            after.error,
        )
        assert (before.pixels_HWC is None) == (after.pixels_HWC is None)
        if before.pixels_HWC is not None:
            assert (before.pixels_HWC == after.pixels_HWC).all()


def test_half_precision_rounds_use_a_half_precision_model() -> None:
    worker = AttackWorker(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    half = worker.model("float16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in worker.model("float32").parameters()} == {torch.float32}
    assert worker.model("float16") is half


def test_prompts_reach_the_model_word_for_word() -> None:
    prompts = {json.dumps(row["prompt"]) for row in shard("easy_captions", 3).to_pylist()}
    assert prompts == {json.dumps("<image>\nProvide a short caption for this image.")}
