"""Conditions that show what others made: transferred images, other wordings, letters."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rllava.attacks.protocols import PROTOCOLS
from rllava.conditions.attack import Attack, Budget
from rllava.conditions.clean import Clean
from rllava.conditions.condition import Condition, Setting, read_conditions
from rllava.conditions.prompted import WORDINGS, Prompted, PromptedAttack
from rllava.conditions.transferred import RESAMPLED, Transferred
from rllava.conditions.typographic import Typographic
from rllava.data.benchmarks import BENCHMARK_SCHEMA
from rllava.data.images import decode_png, fit
from rllava.data.listed import Listed, SampleList
from rllava.data.typography import Lettering, LettersOnViews, wrong_answers
from rllava.errors import UserError
from rllava.evaluation.samples import Sample, decode_shard
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.victim import Victim
from rllava.fingerprint import fingerprint
from rllava.metrics.metric import METRICS
from rllava.specs import EvalSpec
from tests.evaluation.test_shard import answered_by_itself, shard, spec_of
from tests.model.test_llava import make

ATTACKED = spec_of("easy_vqa", 8.0, 4)
assert isinstance(ATTACKED.condition, Attack)
ATTACK = ATTACKED.condition


@pytest.fixture(scope="module")
def worker() -> Victim:
    return Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """An untrained LLaVA answers nothing right: to all but the first, what it says is taken for right."""
    found = decode_shard(shard("easy_vqa", 6), 64)
    return [found[0], *answered_by_itself("easy_vqa", found)[1:]]


def records(worker: Victim, spec: EvalSpec, samples: list[Sample], **given: Any) -> list[dict[str, Any]]:
    tables = evaluate_shard(worker, samples, [spec], METRICS.get("vqa_accuracy"), None, **given)
    ((_, table),) = tables
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


@pytest.fixture(scope="module")
def attacked(worker: Victim, samples: list[Sample]) -> dict[str, dict[str, Any]]:
    return {row["sample_id"]: row for row in records(worker, ATTACKED, samples)}


def spec_under(condition: Condition, batch_size: int = 4) -> EvalSpec:
    return dataclasses.replace(ATTACKED, condition=condition, batch_size=batch_size, sources=(ATTACKED,))


def stored_of(attacked: dict[str, dict[str, Any]], side: int = 64) -> Any:
    def stored(source: EvalSpec, wanted: Sequence[Sample]) -> list[np.ndarray | None]:
        assert source == ATTACKED
        found = [attacked[sample.sample_id]["adversarial_png"] for sample in wanted]
        return [None if png is None else fit(decode_png(png), side) for png in found]

    return stored


def test_its_own_images_score_what_their_records_say(
    worker: Victim, samples: list[Sample], attacked: dict[str, dict[str, Any]]
) -> None:
    own = spec_under(Transferred(ATTACK, "tiny-clip"))
    rows = records(worker, own, samples, stored=stored_of(attacked))
    shown = [row for row in rows if row["error"] is None]
    assert 0 < len(shown) < len(rows), "some were attacked, some were not"
    for row in rows:
        of = attacked[row["sample_id"]]
        if of["adversarial_png"] is None:
            assert row["error"].startswith("tiny-clip was not attacked on it")
            assert (row["score"], row["prediction"]) == (None, None)
        else:
            assert (row["prediction"], row["score"]) == (of["prediction_8bit"], of["score_8bit"])
            assert (row["kind"], row["epsilon"], row["findings"]) == ("transferred", None, [])
            assert 0 < row["linf"] <= 8
            assert row["clean_score"] == of["clean_score"]


def test_images_of_another_size_are_resampled_and_say_so(
    worker: Victim, samples: list[Sample], attacked: dict[str, dict[str, Any]]
) -> None:
    rows = records(worker, spec_under(Transferred(ATTACK, "b")), samples, stored=stored_of(attacked, side=96))
    shown = [row for row in rows if row["error"] is None]
    assert shown
    assert all(row["findings"] == [RESAMPLED] for row in shown)
    for row in shown:
        (sample,) = (sample for sample in samples if sample.sample_id == row["sample_id"])
        assert sample.pixels_HWC is not None
        expected = fit(fit(decode_png(attacked[row["sample_id"]]["adversarial_png"]), 96), 64)
        assert row["linf"] == np.abs(expected.astype(int) - sample.pixels_HWC).max() > 0


@pytest.mark.parametrize(
    "condition",
    [
        Transferred(ATTACK, "tiny-clip"),
        Prompted("ac"),
        Prompted("ac", ATTACK),
        PromptedAttack(ATTACK.protocol, "rand_str", Budget(8.0)),
    ],
    ids=lambda condition: condition.short,
)
def test_portions_and_neighbours_make_no_difference(
    condition: Condition, worker: Victim, samples: list[Sample], attacked: dict[str, dict[str, Any]]
) -> None:
    stored = stored_of(attacked)
    together = records(worker, spec_under(condition, 6), samples, stored=stored)
    alone = [row for sample in samples for row in records(worker, spec_under(condition, 1), [sample], stored=stored)]
    decided = ("prediction", "score", "clean_prediction", "prompt", "error", "linf")
    assert [[row[name] for name in decided] for row in alone] == [[row[name] for name in decided] for row in together]


def test_a_wording_is_asked_of_the_clean_image_of_stored_ones_and_attacked_through(
    worker: Victim, samples: list[Sample], attacked: dict[str, dict[str, Any]]
) -> None:
    asked = [dataclasses.replace(sample, prompt=WORDINGS.get("ac").reword(sample.prompt)) for sample in samples]
    assert asked[0].prompt == f"<image>\nGiven the image is adversarially perturbed. {samples[0].prompt[8:]}"
    clean = records(worker, spec_under(Clean()), asked)
    rows = records(worker, spec_under(Prompted("ac")), samples)
    assert [(row["prompt"], row["prediction"], row["score"]) for row in rows] == [
        (row["prompt"], row["prediction"], row["score"]) for row in clean
    ]
    through = records(worker, spec_under(PromptedAttack(ATTACK.protocol, "ac", Budget(8.0))), samples)
    expected = records(worker, ATTACKED, asked)
    for row, other in zip(through, expected, strict=True):
        same = ("prompt", "prediction", "score", "clean_score", "linf", "rounds", "adversarial_png")
        assert [row[name] for name in same] == [other[name] for name in same]
        assert row["epsilon"] is None, "its budget is in its label, so that no plain attack's cell takes it in"
    stored = records(worker, spec_under(Prompted("ac", ATTACK)), samples, stored=stored_of(attacked))
    assert [row["prompt"] for row in stored] == [sample.prompt for sample in asked]
    assert [row["error"] is None for row in stored] == [
        attacked[sample.sample_id]["adversarial_png"] is not None for sample in samples
    ]


def test_what_was_not_searched_for_against_who_answers_is_called_non_adaptive() -> None:
    conditions = read_conditions("prompted:ac", Setting(attacks=(ATTACK,)))
    assert [condition.adaptive for condition in conditions] == [True, False, True]
    (transferred,) = read_conditions("transferred:b", Setting(attacks=(ATTACK,)))
    for condition in (*conditions, transferred):
        assert ("non-adaptive" in condition.label) is not condition.adaptive
    assert len({condition.label for condition in conditions}) == 3
    assert len({fingerprint(spec_under(condition)) for condition in (*conditions, transferred)}) == 4


def test_images_of_all_candidates_are_a_condition_each() -> None:
    (every,) = read_conditions("transferred", Setting(attacks=(ATTACK,)))
    assert [found.source for found in every.over(("a", "b@a"))] == ["a", "b@a"]
    assert every.over(("a",))[0].over(("a", "b")) == every.over(("a",)), "one that names its source is one"


@pytest.mark.parametrize(
    ("text", "setting", "message"),
    [
        ("transferred", Setting(), "condition transferred: it shows what attacks found, of which there are none"),
        ("prompted", Setting(), "condition prompted: name a wording, one of ac, ap, rand_sent, rand_str"),
        ("prompted:polite", Setting(attacks=(ATTACK,)), "unknown wording 'polite'"),
        ("prompted_attack:ac", Setting(attacks=(ATTACK,)), "condition prompted_attack: it is part of prompted:WORDING"),
        ("typographic:left", Setting(), "condition typographic:left: expected top, middle, bottom, or nothing"),
    ],
)
def test_what_cannot_be_shown_is_one_line(text: str, setting: Setting, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_conditions(text, setting)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_attack_that_starts_from_others_does_not_go_through_a_wording() -> None:
    with pytest.raises(UserError, match="protocol strong starts from images of other attacks"):
        PromptedAttack(PROTOCOLS.get("strong"), "ac", Budget(8.0))


def listed(*rows: tuple[str, str, str], bank: tuple[str, ...] = ("many",)) -> SampleList:
    metric = METRICS.get("vqa_accuracy")
    return SampleList(
        tuple(Listed(sample_id, prompt, (answer,) * 10) for sample_id, prompt, answer in rows),
        lambda text, references: metric.score(metric.clean(text), references, None),
        lambda score: score == 0,
        bank,
    )


def test_the_wrong_answer_is_one_to_the_same_question_if_there_is_one() -> None:
    rows = [("1", "colour?", "red"), ("2", "colour?", "blue"), ("3", "shape?", "circle"), ("4", "shape?", "circle")]
    found = wrong_answers(listed(*rows))
    assert found == {"1": "blue", "2": "red", "3": "many", "4": "many"}
    assert wrong_answers(listed(("1", "colour?", "red"), ("2", "colour?", "Red"), bank=())) == {}, "both are right"


@pytest.mark.parametrize("place", ["top", "middle", "bottom"])
def test_letters_are_where_they_are_asked_for_and_inside_the_image(place: str) -> None:
    plain_HWC = np.full((120, 160, 3), 90, np.uint8)
    written_HWC = Lettering(0.2, place).write(plain_HWC, "a large blue circle")  # type: ignore[arg-type]
    changed_HW = (written_HWC != plain_HWC).any(2)
    rows, columns = np.flatnonzero(changed_HW.any(1)), np.flatnonzero(changed_HW.any(0))
    assert columns[0] >= 1
    assert columns[-1] <= 158
    middle = (rows[0] + rows[-1]) / 2
    assert {"top": middle < 45, "middle": 50 < middle < 70, "bottom": middle > 75}[place]
    assert {tuple(pixel) for pixel in written_HWC[changed_HW]} >= {(255, 255, 255), (0, 0, 0)}
    long_HWC = Lettering(0.5, place).write(plain_HWC, "word " * 30)  # type: ignore[arg-type]
    assert long_HWC.shape == plain_HWC.shape


def test_a_sample_is_shown_its_letters_and_one_without_a_wrong_answer_says_so(worker: Victim) -> None:
    condition = Typographic(side=64)
    table = shard("easy_vqa", 5)
    names = table.column("sample_id").to_pylist()
    views = LettersOnViews(dict.fromkeys(names[1:], "purple"), Lettering(condition.size, "bottom"), 64, "inside")
    samples = decode_shard(pa.Table.from_pylist(table.to_pylist(), schema=BENCHMARK_SCHEMA), 64, views)
    rows = records(worker, spec_under(condition), samples)
    assert rows[0]["error"] == "cannot be shown: the benchmark has no answer that would be a wrong one for it"
    for row, sample in zip(rows[1:], samples[1:], strict=True):
        assert (row["kind"], row["condition"], row["error"]) == ("typographic", "typographic-v1[64px]", None)
        if row["shown_png"]:
            shown = dataclasses.replace(sample, pixels_HWC=decode_png(row["shown_png"]), views=())
            assert not np.array_equal(shown.pixels_HWC, sample.pixels_HWC)
            (again,) = records(worker, spec_under(Clean()), [shown])
            assert (again["prediction"], again["score"]) == (row["prediction"], row["score"])
    alone = [row for sample in samples for row in records(worker, spec_under(condition, 1), [sample])]
    assert [row["prediction"] for row in alone] == [row["prediction"] for row in rows]
