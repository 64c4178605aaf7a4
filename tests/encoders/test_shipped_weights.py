"""The shipped encoders are what their card says, and the script that made them works."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rllava.data.pairs import class_pairs
from rllava.encoders.dual import load_dual, zero_shot_accuracy
from rllava.training.pretraining import RECIPES
from rllava.weights import digest, weights_path
from tests.fixtures.processes import Tracked, kill_tree, wait_for
from tests.sweeps.shown import NAME, unexpected

# Decoding thousands of images takes seconds, and several tests need the same.
pairs_of = functools.cache(class_pairs)

CARD = json.loads(weights_path("asset:tiny_encoders.json").read_text())


def test_the_card_lists_every_recipe_and_the_files_are_small() -> None:
    assert set(CARD["encoders"]) == {recipe.name for recipe in RECIPES}
    total = sum(weights_path(f"asset:{name}.safetensors").stat().st_size for name in CARD["encoders"])
    assert total <= 3 * 2**20


@pytest.mark.parametrize("name", sorted(CARD["encoders"]))
def test_measured_accuracies_are_those_of_the_card(name: str) -> None:
    dual = load_dual(weights_path(f"asset:{name}.safetensors"), name, pairs_of("train"))
    test = pairs_of("test", CARD["encoders"][name]["test_images"])
    for epsilon, expected in CARD["encoders"][name]["zero_shot_accuracy"].items():
        if epsilon in ("0", "4"):
            assert zero_shot_accuracy(dual, test, float(epsilon)) == pytest.approx(expected, abs=0.006)


def test_adversarial_training_shows_in_the_card() -> None:
    at_4 = {name: entry["zero_shot_accuracy"]["4"] for name, entry in CARD["encoders"].items()}
    assert at_4["tiny-clip"] < 0.3 < min(at_4["tiny-fare4"], at_4["tiny-tecoa4"], at_4["tiny-advxl"])


def test_the_script_makes_encoders_under_ray_train_and_goes_on_after_a_kill(tmp_path: Path, tracked: Tracked) -> None:
    storage, output = tmp_path / "results", tmp_path / "made"
    command = [sys.executable, "sweeps/pretrain_encoders.py", "--storage", str(storage), "--output", str(output)]
    command += ["--scale", "0.04", "--checkpoint-every", "2", "--workers", "2", "--test-images", "32"]
    killed = subprocess.Popen([*command, "--encoders", "tiny-clip"], env=tracked.env, stdout=subprocess.DEVNULL)
    wait_for(lambda: [*storage.glob("encoders/tiny-clip-*/ray-train/checkpoint_manager*")], 800, "a checkpoint")
    kill_tree(killed.pid)
    tracked.kill()
    assert not [*storage.glob("encoders/*/COMPLETE")], "it was to be killed before its end"

    both = [*command, "--encoders", "tiny-clip", "tiny-fare4"]
    done = subprocess.run(both, env=tracked.env, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"^(.+): goes on from step [1-9]", done.stdout, re.MULTILINE) == ["tiny-clip"]
    lines = (
        r"messages of Ray and its workers: /.*\.log",
        rf"{NAME}: (training, in /\S+|goes on from step \d+|step \d+ of \d+, loss [\d.]+|zero-shot accuracy .*)",
    )
    assert unexpected(done.stdout + done.stderr, lines) == []
    card = json.loads((output / "tiny_encoders.json").read_text())["encoders"]
    assert list(card) == ["tiny-clip", "tiny-fare4"]
    assert (card["tiny-fare4"]["recipe"]["steps"], card["tiny-fare4"]["recipe"]["base"]) == (12, "tiny-clip")
    for name in card:
        assert digest(output / f"{name}.safetensors") == card[name]["sha256"]
        dual = load_dual(output / f"{name}.safetensors", name, pairs_of("train"))
        accuracy = zero_shot_accuracy(dual, pairs_of("test", 32), 0)
        assert accuracy == pytest.approx(card[name]["zero_shot_accuracy"]["0"], abs=0.04)
    assert not [*storage.glob("encoders/*/ray-train")], "what Ray Train needed is of no use any more"
