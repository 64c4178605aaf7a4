"""Smallest budgets on a tiny LLaVA: what records hold, beside the plain attacks that they are made of."""

import dataclasses
from typing import Any

import pytest
import torch

from rllava.attacks.protocols import PROTOCOLS
from rllava.attacks.smallest import SmallestBudgets
from rllava.conditions.attack import Attack, Budget, within
from rllava.conditions.condition import Setting, read_conditions
from rllava.conditions.smallest_budget import SmallestBudget
from rllava.data.benchmarks import BENCHMARKS
from rllava.errors import UserError
from rllava.evaluation.in_flight import Saving
from rllava.evaluation.samples import Sample, decode_shard
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.victim import Scoring, Victim
from rllava.fingerprint import fingerprint
from rllava.metrics.metric import METRICS
from rllava.recipes import PRESETS
from rllava.tasks.short_answer import ShortAnswer
from tests.evaluation.test_shard import Memory, answered_by_itself, scored_image, shard, spec_of
from tests.model.test_llava import make

PROTOCOL = PROTOCOLS.get("paper_ensemble_3steps")
CONDITION = SmallestBudget(PROTOCOL, 32.0, 1.0, per_octave=2)
COUNT = 6


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", COUNT), 64))


def evaluate(
    samples: list[Sample], condition: Any = CONDITION, batch_size: int = 4, name: str = "easy_vqa", **others: Any
) -> list[dict[str, Any]]:
    metric = METRICS.get(BENCHMARKS.get(name).task.metric)
    state = metric.prepare([sample.references or ("none",) for sample in samples])
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    spec = dataclasses.replace(spec_of(name, 8.0, batch_size), condition=condition)
    ((_, table),) = evaluate_shard(worker, samples, [spec], metric, state, **others)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_records_say_where_each_was_beaten_and_show_an_image_within(samples: list[Sample]) -> None:
    rows = evaluate(samples)
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    metric = METRICS.get("vqa_accuracy")
    scoring = Scoring(BENCHMARKS.get("easy_vqa"), metric, metric.prepare([s.references for s in samples]))
    beaten = [row for row in rows if row["beaten_at"] is not None]
    assert beaten
    assert len({row["beaten_at"] for row in rows}) > 1, "all samples are alike"
    for row, sample in zip(rows, samples, strict=True):
        assert (row["kind"], row["epsilon"], row["error"]) == ("smallest_budget", 32.0, None)
        assert row["linf"] <= (32.0 if row["beaten_at"] is None else row["beaten_at"])
        assert (row["score"] < 50) == (row["beaten_at"] is not None)
        assert len(row["rounds"]) == len(row["round_epsilons"]) == len(row["round_scores"])
        assert set(row["round_epsilons"]) <= set(CONDITION.budgets)
        assert row["round_epsilons"][0] == 32.0
        # A budget that beat and one rung below it that all rounds have tried last, or the smallest of all.
        if row["beaten_at"] is not None and row["beaten_at"] > CONDITION.budgets[0]:
            below = CONDITION.budgets[CONDITION.budgets.index(row["beaten_at"]) - 1]
            assert row["round_epsilons"][-1] == below
        image_1CHW = scored_image(row)[None]
        assert worker.answer(image_1CHW, [sample], scoring, "float32")[0] == [row["prediction"]]
        assert row["score_8bit"] is not None


def test_all_rounds_alone_agree_at_the_largest_budget_and_one_rung_below(samples: list[Sample]) -> None:
    rows = evaluate(samples)
    rungs = {CONDITION.budgets.index(row["beaten_at"] or 32.0) for row in rows}
    sizes = {32.0, *(CONDITION.budgets[max(0, rung - 1)] for rung in rungs)}
    plain = {size: evaluate(samples, within(PROTOCOL, size)) for size in sizes}
    for number, row in enumerate(rows):
        assert (plain[32.0][number]["score"] < 50) == (row["beaten_at"] is not None)
        if row["beaten_at"] is not None and row["beaten_at"] > CONDITION.budgets[0]:
            below = CONDITION.budgets[CONDITION.budgets.index(row["beaten_at"]) - 1]
            assert plain[below][number]["score"] >= 50, "all rounds beat it where the search says that they did not"


def test_records_do_not_depend_on_the_batch_size(samples: list[Sample]) -> None:
    for one, four in zip(evaluate(samples, batch_size=1), evaluate(samples, batch_size=4), strict=True):
        for name in ("beaten_at", "rounds", "round_epsilons", "prediction", "score", "steps"):
            assert one[name] == four[name], name


def test_a_search_that_broke_off_goes_on_to_the_same_rows(samples: list[Sample]) -> None:
    unbroken = evaluate(samples, batch_size=2)
    memory = Memory()
    broken = 0
    for _ in range(8):
        memory.left = 9
        try:
            rows = evaluate(samples, batch_size=2, saving=Saving(memory, every_s=0.0))
            break
        except KeyboardInterrupt:
            broken += 1
    else:
        memory.left = 1 << 30
        rows = evaluate(samples, batch_size=2, saving=Saving(memory, every_s=0.0))
    assert broken >= 3
    assert memory.loaded >= broken
    assert rows == unbroken


def test_checks_that_broke_off_do_not_search_again(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = evaluate(samples, batch_size=2)
    memory = Memory(breaks_in_checks=True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(samples, batch_size=2, saving=Saving(memory, every_s=0.0))
    memory.breaks_in_checks = False

    def searched_again(search: SmallestBudgets, engine: Any) -> None:
        raise AssertionError("a finished search went on")

    monkeypatch.setattr(SmallestBudgets, "_take_in", searched_again)
    assert evaluate(samples, batch_size=2, saving=Saving(memory, every_s=0.0)) == unbroken


def test_who_is_wrong_on_the_clean_image_is_beaten_at_0(samples: list[Sample]) -> None:
    wrong = [dataclasses.replace(samples[0], references=("no such answer",) * 10), *samples[1:]]
    first, *others = evaluate(wrong)
    assert (first["beaten_at"], first["steps"], first["rounds"]) == (0.0, 0, [])
    assert (first["score"], first["score_8bit"], first["adversarial_png"]) == (0.0, 0.0, None)
    assert [row["beaten_at"] for row in others] == [row["beaten_at"] for row in evaluate(samples)[1:]]


def test_captions_are_beaten_below_a_share_of_their_clean_score() -> None:
    captions = answered_by_itself("easy_captions", decode_shard(shard("easy_captions", 5), 64))
    half, whole = (
        evaluate(captions, dataclasses.replace(CONDITION, below=below), name="easy_captions") for below in (0.5, 1.0)
    )
    for row in half:
        assert (row["score"] < 0.5 * row["clean_score"]) == (row["beaten_at"] is not None)
    later = [
        (one["beaten_at"] or 99, two["beaten_at"] or 99) for one, two in zip(half, whole, strict=True)
    ]  # any loss at all beats at no larger budget than the loss of half
    assert all(two <= one for one, two in later)


def test_a_plan_counts_the_rounds_twice_and_the_probes_between() -> None:
    benchmark = BENCHMARKS.get("easy_vqa")
    search = SmallestBudget(PROTOCOLS.get("paper_ensemble_10steps"), 16.0)
    (once,) = Attack(search.protocol, Budget(16.0)).passes(benchmark, 1.0)
    (found,) = search.passes(benchmark, 1.0)
    probes = 5  # of a ladder of 25 budgets, each a quarter of 10 steps, rounded up
    assert len(search.budgets) == 25
    assert found.steps == 2 * once.steps + probes * 3
    assert found.answers == 2 * once.answers + probes * 2


def test_the_fields_are_the_identity() -> None:
    prints = {
        fingerprint(condition)
        for condition in (
            CONDITION,
            *(
                dataclasses.replace(CONDITION, **change)
                for change in ({"largest": 16.0}, {"smallest": 2.0}, {"per_octave": 4}, {"below": 0.25})
            ),
            dataclasses.replace(CONDITION, protocol=PROTOCOLS.get("paper_ensemble")),
            within(PROTOCOL, 32.0),
        )
    }
    assert len(prints) == 7
    assert CONDITION.label == "smallest[paper_ensemble_3steps-v1]-v1"
    fast = dataclasses.replace(CONDITION, protocol=PROTOCOLS.get("fast"))
    assert set(fast.versions_for(ShortAnswer.kind)) == {"grid", "decoys"}
    assert set(CONDITION.versions_for(ShortAnswer.kind)) == {"grid"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smallest": 64.0}, "smallest: expected budgets 0 < smallest <= largest"),
        ({"largest": 300.0}, "smallest <= largest <= 255"),
        ({"per_octave": 0}, "per_octave: expected 1 to 32"),
        ({"below": 1.5}, "below: expected a share"),
        ({"protocol": PROTOCOLS.get("strong")}, "strong starts from what others found"),
        ({"protocol": PROTOCOLS.get("paper_targeted")}, "wants a text said"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONDITION, **change)
    with pytest.raises(UserError, match=r"sweeps/budgets\.py"):
        read_conditions("smallest_budget", Setting())


def test_the_paper_s_rounds_can_be_searched_with() -> None:
    paper = PRESETS.get("paper")
    condition = SmallestBudget(paper.protocols[0], max(paper.budgets))
    assert condition.budgets[::4] == (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    assert condition.precisions("captioning") == ("float16", "float32")
