"""Protocols as data: the paper's rounds, and what the others promise."""

import subprocess
import sys
from dataclasses import replace

import pytest

from rllava.attacks.protocols import PROTOCOLS, TARGET_STRINGS, Protocol, in_precision, with_steps
from rllava.attacks.rounds import BEST, CLEAN, SAME, reference, target
from rllava.errors import UserError


def test_the_papers_protocol_has_the_papers_rounds() -> None:
    protocol = PROTOCOLS.get("paper_ensemble")
    labels = [*map(reference, range(5)), SAME]
    assert [entry.label for entry in protocol.rounds("captioning")] == labels
    assert [entry.label for entry in protocol.rounds("short_answer")] == [*labels, target("maybe"), target("Word")]
    assert {entry.steps for entry in protocol.rounds("short_answer")} == {100}
    assert [entry.precision for entry in protocol.rounds("short_answer")] == ["float16"] * 5 + ["float32"] * 3
    assert [entry.start for entry in protocol.rounds("short_answer")] == [CLEAN] * 5 + [BEST, CLEAN, CLEAN]
    assert {entry.step_size for entry in protocol.rounds("short_answer")} == {1.0}
    assert not any(entry.answers or entry.gives_up for entry in protocol.rounds("short_answer"))
    assert protocol.drops == "threshold"
    assert "captioning: at most 606 forward and 600 backward passes and 6 answers" in protocol.describe()


def test_the_papers_targeted_attack_says_three_strings_to_every_sample() -> None:
    protocol = PROTOCOLS.get("paper_targeted")
    assert [entry.label.text for entry in protocol.rounds("captioning")] == list(TARGET_STRINGS)
    assert {(entry.steps, entry.precision, entry.start) for entry in protocol.rounds("captioning")} == {
        (10_000, "float32", CLEAN)
    }
    assert all(entry.targeted for entry in protocol.rounds("captioning"))
    assert protocol.drops == "never"
    with pytest.raises(UserError, match="paper_targeted is for captioning benchmarks only"):
        protocol.rounds("short_answer")


def test_fast_costs_at_most_a_fifth_and_strong_starts_from_it_and_from_the_paper() -> None:
    fast, strong, paper = (PROTOCOLS.get(name) for name in ("fast", "strong", "paper_ensemble"))
    assert steps(fast, "captioning") * 5 <= steps(paper, "captioning")
    assert steps(fast, "short_answer") * 5 <= steps(paper, "short_answer")
    assert fast.chained
    assert strong.chained
    assert not paper.chained
    assert strong.after == (fast, paper)
    assert "starts from the images that fast-v1 and paper_ensemble-v1 found" in strong.describe()


def steps(protocol: Protocol, kind: str) -> int:
    return sum(entry.steps for entry in protocol.rounds(kind))


def test_changing_steps_changes_the_name() -> None:
    changed = with_steps(PROTOCOLS.get("paper_ensemble"), 7)
    assert changed.label == "paper_ensemble_7steps-v1"
    assert {entry.steps for entry in changed.rounds("captioning")} == {7}
    assert with_steps(changed, 5).name == "paper_ensemble_5steps"
    with pytest.raises(UserError, match="at least 1"):
        with_steps(changed, 0)


def test_fewer_steps_keep_replays_and_leave_out_answers_that_come_too_late() -> None:
    changed = with_steps(PROTOCOLS.get("fast"), 4)
    assert changed.rounds("captioning")[0].steps == 0
    assert {entry.steps for entry in changed.rounds("captioning")[1:]} == {4}
    assert all(step < 4 for entry in changed.rounds("captioning") for step in entry.answers)
    strong = with_steps(PROTOCOLS.get("strong"), 4)
    assert [first.name for first in strong.after] == ["fast_4steps", "paper_ensemble_4steps"]


def test_changing_the_precision_changes_the_name_and_what_comes_before() -> None:
    changed = in_precision(PROTOCOLS.get("strong"), "bfloat16")
    assert changed.name == "strong_bfloat16"
    assert {entry.precision for entry in changed.all_rounds} == {"bfloat16"}
    assert [first.name for first in changed.after] == ["fast_bfloat16", "paper_ensemble_bfloat16"]
    single = in_precision(PROTOCOLS.get("strong"), "float32")
    assert single.name == "strong_float32", "its own rounds are float32 already, but those it starts from are not"
    assert [first.name for first in single.after] == ["fast_float32", "paper_ensemble_float32"]
    assert in_precision(single, "float32") is single
    same = PROTOCOLS.get("paper_ensemble_10steps")
    assert in_precision(same, "float32") is same
    with pytest.raises(UserError, match="--attack-precision int4"):
        in_precision(same, "int4")


def test_every_protocol_prints_its_rounds_and_cost() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rllava.attacks.protocols"], capture_output=True, text=True, check=True
    )
    for name in PROTOCOLS:
        protocol = PROTOCOLS.get(name)
        assert protocol.describe() in done.stdout
        for entry in protocol.all_rounds:
            assert entry.name in protocol.describe()
    assert replace(PROTOCOLS.get("fast"), name="other").describe() != PROTOCOLS.get("fast").describe()
