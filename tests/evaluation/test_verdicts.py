"""From records and a judge to judgements."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rllava.data.shards import parquet_bytes, shard_path
from rllava.evaluation.judging import JudgingJob, PartJudge
from rllava.evaluation.verdicts import READ, judgements_of
from rllava.fingerprint import fingerprint
from rllava.graph import step_of
from rllava.judgement_spec import JudgementSpec
from rllava.judgements import JUDGEMENT_SCHEMA
from rllava.metrics.judges.classifier import DETOXIFY
from rllava.metrics.judges.judge import Exchange, Judge, JudgeSpec, Verdict, read_judge
from rllava.metrics.judges.lexicon import Lexicon
from rllava.pinned import Pinned
from rllava.records import KEY, RECORD_SCHEMA
from rllava.store import Store
from tests.evaluation.test_shard import spec_of


@dataclass(frozen=True)
class Long(JudgeSpec):
    """Flags answers of more than three characters; cannot say of those of exactly three."""

    kind: ClassVar[str] = "long"
    at_a_time: int = 2
    label = "long-v1"
    description = "more than three characters"

    @property
    def batch_size(self) -> int:
        return self.at_a_time

    def pinned(self) -> "Long":
        return self

    def load(self) -> Judge:
        return self.judge

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        assert 0 < len(exchanges) <= self.at_a_time
        assert all(exchange.answer.strip() for exchange in exchanges), "an empty answer is not put to a judge"
        ASKED.extend(exchanges)
        return [
            Verdict(None, error="three") if len(one.answer) == 3 else Verdict(len(one.answer) > 3, len(one.answer))
            for one in exchanges
        ]


ASKED: list[Exchange] = []


@pytest.fixture
def spec() -> JudgementSpec:
    ASKED.clear()
    return JudgementSpec(spec_of("easy_vqa", 8.0), Long())


def records(*rows: dict[str, Any]) -> pa.Table:
    default = {"candidate": "a", "benchmark": "b", "condition": "clean", "epsilon": 0.0, "draw": 0, "prompt": "?"}
    filled = [{**default, "evaluation": "0" * 16, "sample_id": f"s{n}", **row} for n, row in enumerate(rows)]
    return pa.Table.from_pylist(filled, schema=RECORD_SCHEMA).select(READ)


def test_every_answer_gets_a_verdict_and_each_text_is_judged_once(spec: JudgementSpec) -> None:
    table = records(
        {"prediction": "long one", "prediction_8bit": "long one"},
        {"prediction": "no", "prediction_8bit": "long one", "clean_prediction": "never read"},
        {"prediction": "long one", "prompt": "another question"},
        {"prediction": "yes"},
    )
    judged = judgements_of(table, spec, spec.judge.load())
    assert judged.schema.equals(JUDGEMENT_SCHEMA, check_metadata=True)
    rows = judged.to_pylist()
    assert [(row["sample_id"], row["answer"], row["flagged"]) for row in rows] == [
        ("s0", "prediction", True),
        ("s0", "prediction_8bit", True),
        ("s1", "prediction", False),
        ("s1", "prediction_8bit", True),
        ("s2", "prediction", True),
        ("s3", "prediction", None),
    ]
    assert [exchange.answer for exchange in ASKED] == ["long one", "no", "long one", "yes"]
    assert [row["score"] for row in rows] == [8.0, 8.0, 2.0, 8.0, 8.0, None]
    assert [row["error"] for row in rows] == [None] * 5 + ["three"]
    assert {row["judge"] for row in rows} == {"long-v1"}
    assert {row["judgement"] for row in rows} == {fingerprint(spec)}
    keys = table.select(KEY).to_pylist()
    assert [{name: row[name] for name in KEY} for row in rows] == [keys[n] for n in (0, 0, 1, 1, 2, 3)]


def test_an_empty_answer_is_not_flagged_and_counted(spec: JudgementSpec) -> None:
    rows = judgements_of(records({"prediction": " \n"}, {"prediction": ""}), spec, spec.judge.load()).to_pylist()
    assert [(row["empty"], row["flagged"], row["error"]) for row in rows] == [(True, False, None)] * 2
    assert ASKED == []


def test_a_record_that_failed_keeps_its_error(spec: JudgementSpec) -> None:
    rows = judgements_of(records({"error": "damaged image"}, {"prediction": "fine"}), spec, spec.judge.load())
    found = [(row["sample_id"], row["answer"], row["flagged"], row["error"]) for row in rows.to_pylist()]
    assert found == [
        ("s0", "prediction", None, "no answer: damaged image"),
        ("s0", "prediction_8bit", None, "no answer: damaged image"),
        ("s1", "prediction", True, None),
    ]


def test_how_many_are_asked_at_a_time_changes_nothing(spec: JudgementSpec) -> None:
    table = records(*({"prediction": "x" * length} for length in range(1, 8)))
    judged = []
    for at_a_time in (1, 3, 100):
        judge = Long(at_a_time)
        judged.append(judgements_of(table, JudgementSpec(spec.evaluation, judge), judge.load()))
    assert [table.drop_columns(["judgement"]) for table in judged[1:]] == [judged[0].drop_columns(["judgement"])] * 2


def test_only_answers_can_be_judged(spec: JudgementSpec) -> None:
    with pytest.raises(ValueError, match="answers: expected some of prediction"):
        JudgementSpec(spec.evaluation, spec.judge, ("reference",))
    everything = JudgementSpec(spec.evaluation, spec.judge, ("prediction", "clean_prediction"))
    assert fingerprint(everything) != fingerprint(spec)


def test_judges_that_cost_nothing_share_a_worker_and_others_do_not(spec: JudgementSpec) -> None:
    words, refusal = Lexicon("", ("banana",)), read_judge("refusal")
    evaluation, detoxify = spec.evaluation, replace(DETOXIFY, weights=Pinned("hub:unitary/toxic-bert", "0" * 64))
    batches = [step_of(JudgementSpec(evaluation, judge)).batch for judge in (words, refusal, spec.judge, detoxify)]
    assert batches[0] == batches[1]
    assert len(set(batches)) == 3


def test_a_worker_judges_each_part_by_its_own_judge(spec: JudgementSpec, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    judges = (Lexicon("", ("banana",)), Lexicon("", ("cherry",)))
    specs = tuple(JudgementSpec(spec.evaluation, judge) for judge in judges)
    paths = tuple(f"{store.root}/judgements/{index}" for index in range(2))
    worker = PartJudge(JudgingJob(store.url, specs, ("", ""), (1, 1), paths))
    content = parquet_bytes(records({"prediction": "a banana"}))
    found = []
    for index in range(2):
        unit = {"index": np.array([index]), "number": np.array([0]), "records": np.array([content], dtype=object)}
        (told,) = worker(unit)
        table = pq.read_table(shard_path(paths[index], 0))
        found.append((told["flagged"], set(table.column("judge").to_pylist())))
    assert found[0][0][0] > 0
    assert [found[0][1], found[1]] == [{judges[0].label}, ([0], {judges[1].label})]
