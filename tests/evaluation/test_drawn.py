"""Answers that are drawn, and samples that have no image: what records say; neighbours make no difference."""

import dataclasses
from typing import Any

import pyarrow as pa
import pytest
import torch

from rllava.conditions.clean import Clean
from rllava.conditions.condition import Condition
from rllava.conditions.corruption import Corruption
from rllava.data.benchmarks import BENCHMARK_SCHEMA, BENCHMARKS, BenchmarkSpec
from rllava.evaluation.samples import Sample, decode_shard, pack, unpack
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.victim import Victim, seed_of
from rllava.metrics.metric import METRICS
from rllava.model.sampling import Sampling
from rllava.specs import EvalSpec
from rllava.tasks.short_answer import ShortAnswer
from rllava.tasks.task import Decoding, Needs
from tests.evaluation.test_shard import PRESET, shard
from tests.model.test_llava import make

DRAWN = Decoding(6, temperature=1.5, draws=3)


@dataclasses.dataclass(frozen=True)
class Asked(ShortAnswer):
    """Questions of which some come without an image."""

    needs_image = False


BENCHMARK = dataclasses.replace(
    BENCHMARKS.get("easy_vqa"), task=dataclasses.replace(BENCHMARKS.get("easy_vqa").task, decoding=DRAWN)
)
TEXT = dataclasses.replace(BENCHMARK, task=Asked("<image>\n{question}", DRAWN))


@pytest.fixture(scope="module")
def worker() -> Victim:
    return Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))


def records(
    worker: Victim, samples: list[Sample], batch_size: int = 4, condition: Condition | None = None,
    benchmark: BenchmarkSpec = BENCHMARK, **others: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    encoders = tuple(encoder.spec for encoder in worker.model("float32").encoders)  # type: ignore[misc]
    model = dataclasses.replace(PRESET.model, encoders=encoders)  # type: ignore[arg-type]
    spec = EvalSpec("tiny-clip", model, encoders, benchmark, condition or Clean(), batch_size)  # type: ignore[arg-type]
    metric = METRICS.get(benchmark.task.metric)
    ((_, table),) = evaluate_shard(worker, samples, [spec], metric, None, **others)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_every_draw_is_a_record_and_what_transformers_draws_for_it_alone(worker: Victim) -> None:
    samples = decode_shard(shard("easy_vqa", 4), 64)
    rows = records(worker, samples)
    assert [(row["sample_id"], row["draw"]) for row in rows] == [
        (sample.sample_id, draw) for draw in range(3) for sample in samples
    ]
    answers = {row["prediction"] for row in rows}
    assert len(answers) > 6, "at this temperature hardly two answers of an untrained model are equal"
    llava = worker.model("float32")
    for row in rows[:2] + rows[-2:]:
        sample = next(sample for sample in samples if sample.sample_id == row["sample_id"])
        assert sample.pixels_HWC is not None
        how = Sampling((seed_of(sample.sample_id, row["draw"]),), 1.5)
        (alone,) = llava.generate(worker.pixels([sample.pixels_HWC]), [worker.tokens(sample.prompt, None)], 6, how)
        assert row["prediction"] == METRICS.get("vqa_accuracy").clean(alone)


def test_portions_neighbours_and_number_of_draws_make_no_difference(worker: Victim) -> None:
    samples = decode_shard(shard("easy_vqa", 6), 64)
    together = records(worker, samples, 6)
    alone = [row for sample in samples for row in records(worker, [sample], 1)]
    key = lambda row: (row["draw"], row["sample_id"])  # noqa: E731
    assert sorted(alone, key=key) == sorted(together, key=key)
    once = dataclasses.replace(BENCHMARK, task=dataclasses.replace(BENCHMARK.task, decoding=Decoding(6, 1.5)))
    first = [row["prediction"] for row in together if row["draw"] == 0]
    assert [row["prediction"] for row in records(worker, samples, benchmark=once)] == first


def test_each_draw_of_a_corruption_stands_beside_its_own_clean_answer(worker: Victim) -> None:
    fog = Corruption("fog", 64)
    samples = decode_shard(shard("easy_vqa", 2), 64, fog.views)
    clean = {(row["sample_id"], row["draw"]): row["prediction"] for row in records(worker, samples)}
    rows = records(worker, samples, condition=fog)
    assert len(rows) == 3 * 2 * 5
    assert all(row["clean_prediction"] == clean[row["sample_id"], row["draw"]] for row in rows)
    known = {(name, draw): (text, 0.0) for (name, draw), text in clean.items()}
    assert [row["prediction"] for row in records(worker, samples, condition=fog, known=known)] == [
        row["prediction"] for row in rows
    ]


def text_rows() -> pa.Table:
    rows = shard("easy_vqa", 3).to_pylist()
    rows[1]["image"] = None
    rows[1]["question"] = "for the judge"
    return pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA)


def test_a_sample_without_image_is_asked_without(worker: Victim) -> None:
    samples = unpack(pack(decode_shard(text_rows(), 64, needs=Needs(image=False))))
    assert samples[1].pixels_HWC is None
    assert samples[1].error is None
    greedy = dataclasses.replace(TEXT, task=dataclasses.replace(TEXT.task, decoding=Decoding(6)))
    rows = records(worker, samples, benchmark=greedy)
    assert [row["error"] for row in rows] == [None] * 3
    assert [row["clean_png"] is None for row in rows] == [False, True, False]
    question = samples[1].prompt.removeprefix("<image>\n")
    assert rows[1]["prompt"] == question
    assert "<image>" not in question
    assert [row["question"] for row in rows] == [None, "for the judge", None]
    llava, any_1CHW = worker.model("float32"), torch.rand(1, 3, 64, 64)
    (alone,) = llava.generate(any_1CHW, [llava.tokens(question)], 6)
    assert rows[1]["prediction"] == METRICS.get("vqa_accuracy").clean(alone)
    by_itself = records(worker, [samples[1]], benchmark=greedy)
    assert by_itself == [rows[1]]


def test_what_changes_an_image_has_no_score_for_a_sample_without(worker: Victim) -> None:
    fog = Corruption("fog", 64)
    samples = decode_shard(text_rows(), 64, fog.views, needs=Needs(image=False))
    rows = records(worker, samples, condition=fog, benchmark=TEXT)
    errors = {row["sample_id"]: row["error"] for row in rows}
    whole = [sample.sample_id for sample in samples if sample.pixels_HWC is not None]
    assert [errors[name] for name in whole] == [None, None]
    assert errors[samples[1].sample_id] == "no image, and corruption is about a sample's own"
    assert len(rows) == 3 * 3 * 5
