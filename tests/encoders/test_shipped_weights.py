"""The shipped encoders are what their card says, and the script that made them works."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rllava.encoders.pretraining import RECIPES, zero_shot_accuracy
from rllava.weights import weights_path
from sweeps.pretrain_encoders import from_file, load_pairs
from tests.fixtures.processes import Tracked

# Decoding thousands of images takes seconds, and several tests need the same.
pairs_of = functools.cache(load_pairs)

CARD = json.loads(weights_path("asset:tiny_encoders.json").read_text())


def test_the_card_lists_every_recipe_and_the_files_are_small() -> None:
    assert set(CARD["encoders"]) == {recipe.name for recipe in RECIPES}
    total = sum(weights_path(f"asset:{name}.safetensors").stat().st_size for name in CARD["encoders"])
    assert total <= 3 * 2**20


@pytest.mark.parametrize("name", sorted(CARD["encoders"]))
def test_measured_accuracies_are_those_of_the_card(name: str) -> None:
    dual = from_file(weights_path(f"asset:{name}.safetensors"), pairs_of("train"))
    test = pairs_of("test", CARD["encoders"][name]["test_images"])
    for epsilon, expected in CARD["encoders"][name]["zero_shot_accuracy"].items():
        if epsilon in ("0", "4"):
            assert zero_shot_accuracy(dual, test, float(epsilon)) == pytest.approx(expected, abs=0.006)


def test_adversarial_training_shows_in_the_card() -> None:
    at_4 = {name: entry["zero_shot_accuracy"]["4"] for name, entry in CARD["encoders"].items()}
    assert at_4["tiny-clip"] < 0.3 < min(at_4["tiny-fare4"], at_4["tiny-tecoa4"], at_4["tiny-advxl"])


def test_the_script_makes_encoders_under_ray_train(tmp_path: Path, tracked: Tracked) -> None:
    command = [sys.executable, "sweeps/pretrain_encoders.py", "--output", str(tmp_path), "--scale", "0.005"]
    command += ["--encoders", "tiny-clip", "tiny-fare4", "--workers", "2", "--test-images", "32"]
    done = subprocess.run(command, env=tracked.env, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    card = json.loads((tmp_path / "tiny_encoders.json").read_text())["encoders"]
    assert list(card) == ["tiny-clip", "tiny-fare4"]
    assert card["tiny-fare4"]["recipe"]["steps"] == 2
    for name in card:
        dual = from_file(tmp_path / f"{name}.safetensors", pairs_of("train"))
        accuracy = zero_shot_accuracy(dual, pairs_of("test", 32), 0)
        assert accuracy == pytest.approx(card[name]["zero_shot_accuracy"]["0"], abs=0.04)
