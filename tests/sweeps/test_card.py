"""A robustness card of an ablation's models: what it finds, what it refuses, and what it leaves."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.card_schema import CARD, CARD_SCHEMA
from rllava.data.corruptions import CORRUPTIONS, all_corruptions
from rllava.errors import UserError
from rllava.recipes.cards import ALL, CARDS, FAMILIES
from sweeps import encoder_ablation
from sweeps.robustness_card import Options, make_plan
from tests.fixtures.processes import Tracked
from tests.sweeps.conftest import Run
from tests.sweeps.driver import finish, start
from tests.sweeps.shown import NAME, unexpected

SCRIPT = "sweeps/robustness_card.py"


@pytest.mark.parametrize("preset", ["smoke", "tiny"])
def test_clean_answers_and_attacks_are_those_of_the_ablation(preset: str) -> None:
    card = make_plan(Options(preset=preset))
    ablation = encoder_ablation.make_plan(encoder_ablation.Options(preset=preset))
    assert card.grid.candidates == ablation.grid.candidates
    there = {artifact.relative for c in ablation.grid.candidates for _, artifact in ablation.evaluations(c)}
    asked = [(spec, artifact.relative) for c in card.grid.candidates for spec, artifact in card.evaluations(c)]
    own = {spec.name for spec in ablation.grid.benchmarks}
    found = [
        path in there
        for spec, path in asked
        if spec.benchmark.name in own and spec.condition.label in {c.label for c in ablation.grid.conditions}
    ]
    assert found
    assert all(found)


def test_at_full_size_too() -> None:
    card = make_plan(Options(preset="paper")).grid
    ablation = encoder_ablation.make_plan(encoder_ablation.Options(preset="paper")).grid
    assert card.benchmarks[: len(ablation.benchmarks)] == ablation.benchmarks
    assert card.conditions[: len(ablation.conditions)] == ablation.conditions


def test_the_presets_show_a_corruption_of_each_family() -> None:
    assert [CORRUPTIONS.get(name).group for name in FAMILIES] == ["noise", "blur", "weather", "digital"]
    assert set(ALL) == set(all_corruptions())
    conditions = make_plan(Options(preset="tiny")).grid.conditions
    assert [c.epsilon for c in conditions if c.epsilon is not None] == [0.0, *CARDS.get("tiny").budgets]
    assert sum(c.kind == "corruption" for c in conditions) == len(FAMILIES)
    chosen = make_plan(Options(preset="tiny", corruptions=("snow",), budgets=("0", "16"))).grid.conditions
    assert [c.short for c in chosen if c.kind == "corruption"] == ["snow"]
    assert [c.epsilon for c in chosen if c.epsilon is not None] == [0.0, 16.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": ("fogg",)}, "unknown corruption 'fogg'; did you mean fog"),
        ({"budgets": ("8",)}, "--budgets: add 0"),
        ({"submitted": (Path("none.csv"),)}, "none.csv: cannot be read"),
        ({"preset": "candid"}, "unknown preset of cards 'candid'"),
    ],
)
def test_mistakes_are_named_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(Options(**options))


@pytest.mark.processes
def test_a_card_beside_one_that_was_submitted(unbroken: Run, tmp_path: Path, tracked: Tracked) -> None:
    storage, file = tmp_path / "results", tmp_path / "lab.csv"
    shutil.copytree(unbroken.storage, storage)
    before = {path: path.stat().st_mtime_ns for path in storage.glob("records/*/part-*")}
    row = {
        "source": "a lab", "candidate": "zeta", "benchmark": "easy_vqa", "condition": "clean", "kind": "clean",
        "epsilon": 0.0, "measure": "score", "adaptive": True, "mean": 50.0, "level": 0.95, "n": 8, "errors": 0,
        "seeds": 1,
    }  # fmt: skip
    pd.DataFrame([row], columns=CARD_SCHEMA.names).to_csv(file, index=False)
    options = ("--corruptions", "fog", "--encoders", "tiny-clip", "--submitted", str(file))
    output = finish(start(str(storage), tracked, *options, script=SCRIPT))
    table = (rf"column( +{NAME})+", r"easy_\w+ · [^±]+±\d+( +\d+%)?", r"mean ± half the width of .*")
    assert unexpected(output, table) == []
    assert "easy_vqa · fog-v1[64px]" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what the ablation left was made anew"
    folder = storage / "reports" / CARD
    assert "submitted: a lab" in (folder / "index.html").read_text()
    card = pd.read_csv(folder / "card.csv")
    # clean, one budget, fog at five severities and over them
    kinds = card[card["benchmark"] == "easy_yes_no"]["kind"].value_counts().to_dict()
    assert kinds == {
        "clean": 1, "attack": 1, "corruption": 5 + 1, "typographic": 1, "prompted": 2, "prompted_attack": 1,
        "transferred": 1,
    }  # fmt: skip
    assert len(card) == 3 * sum(kinds.values())
    assert card["mean"].notna().all()
    cost = pd.read_csv(folder / "cost.csv").set_index("column")["reused"]
    found = {f"easy_{name} · {what}" for name in ("vqa", "captions") for what in ("clean", "ε = 8")}
    assert set(cost[cost > 0].index) == found
