"""The attack's evidence: means over attacked samples, and the doubts they raise."""

import pandas as pd
import pytest

from analysis.evidence import attack_evidence, attack_flags
from analysis.scores import arrange_scores
from rllava.check_names import CHECKS
from tests.analysis.synthetic import make_record


def evidence_of(rows: list[dict[str, object]]) -> pd.DataFrame:
    records = pd.DataFrame(rows)
    return attack_evidence(records, arrange_scores(records))


def attacked(sample_id: str, epsilon: float = 8.0, score: float = 0.0, **others: object) -> dict[str, object]:
    return make_record("a", "vqa", sample_id, epsilon, score=score, **others)


def test_only_attacked_samples_without_error_count() -> None:
    evidence = evidence_of(
        [
            attacked("s0", zero_gradient_share=0.02, linf=7.0, loss_clean=1.0, loss_best=3.0, loss_last_rise=0.1),
            attacked("s1", score=100.0, zero_gradient_share=0.04, linf=8.0, loss_clean=1.0, loss_best=2.0,
                     loss_last_rise=0.2),
            attacked("s2", clean_score=0.0, zero_gradient_share=1.0),
            attacked("s3", error="lost", zero_gradient_share=1.0, linf=99.0),
            attacked("s0", epsilon=0.0, score=100.0),
        ]
    )  # fmt: skip
    assert len(evidence) == 1
    row = evidence.iloc[0]
    assert (row["attacked"], row["not_beaten"], row["linf"]) == (2, 0.5, 8.0)
    assert row["zero_gradients"] == pytest.approx(0.03)
    assert row["last_rise"] == pytest.approx(0.2), "s0 scores 0: its attack was done"
    assert (row["loss_clean"], row["loss_best"]) == (1.0, 2.5)


def test_a_sound_attack_raises_no_doubt() -> None:
    assert attack_flags(evidence_of([attacked("s0"), attacked("s1", score=100.0)])) == []


@pytest.mark.parametrize(
    ("others", "text"),
    [
        ({"linf": 8.5}, "left the budget"),
        ({"zero_gradient_share": 0.5}, "exactly zero"),
        ({"score": 50.0, "score_8bit": 50.0, "loss_last_rise": 2.0}, "last tenth of steps"),
        ({"findings": ["noise_wins"]}, "100% of 1 checked samples raise noise_wins"),
        ({"score_8bit": 50.0}, "rounding to 8 bits gives 50.0 points back"),
    ],
)
def test_each_failure_raises_its_doubt(others: dict[str, object], text: str) -> None:
    flags = attack_flags(evidence_of([attacked("s0", **others)]))
    assert len(flags) == 1
    assert text in flags[0].text
    assert (flags[0].candidate, flags[0].epsilon) == ("a", 8.0)


def test_a_check_is_quoted_with_what_it_means_and_what_to_do() -> None:
    rows = [attacked(f"s{i}", findings=["still_rising"] if i < 2 else [], checked=i < 10 or None) for i in range(20)]
    (flag,) = attack_flags(evidence_of(rows))
    assert (flag.check, flag.text) == ("still_rising", "20% of 10 checked samples raise still_rising")
    assert (flag.means, flag.remedy) == next((c.means, c.remedy) for c in CHECKS if c.name == "still_rising")
    few = [attacked(f"s{i}", findings=["still_rising"] if i < 1 else []) for i in range(20)]
    assert attack_flags(evidence_of(few)) == [], "one in twenty is below the limit of this check"


def test_rising_counts_samples_that_score_higher_at_a_larger_budget() -> None:
    scores = {2.0: [0.0, 100.0, 50.0, 0.0], 4.0: [0.0, 100.0, 100.0, 30.0], 8.0: [0.0, 0.0, 50.0, 0.0]}
    rows = [attacked(f"s{i}", e, score) for e, values in scores.items() for i, score in enumerate(values)]
    evidence = evidence_of(rows).set_index("epsilon")
    assert pd.isna(evidence.loc[2.0, "rising"])
    assert evidence.loc[4.0, "rising"] == 0.5
    assert evidence.loc[8.0, "rising"] == 0.0


def test_nothing_attacked_gives_an_empty_row() -> None:
    row = evidence_of([attacked("s0", clean_score=0.0)]).iloc[0]
    assert row["attacked"] == 0
    assert pd.isna(row["loss_best"])
