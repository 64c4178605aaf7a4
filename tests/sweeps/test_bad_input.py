"""A user's mistake costs a second and one line."""

import dataclasses
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rllava.errors import UserError
from rllava.recipes import PRESETS, parse_candidate
from sweeps import budgets, corruptions, pretrain_encoders
from sweeps.encoder_ablation import Options, main, make_plan
from tests.sweeps.conftest import Run

TINY = ("tiny-clip", "tiny-tecoa4", "tiny-fare4", "tiny-advxl")
SEVENTEEN = (
    *(f"{used}@{trained}" for used in TINY for trained in TINY if used != trained),
    *TINY,
    "tiny-clip+tiny-advxl",
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoders": ("tiny-clpi",)}, "unknown encoder 'tiny-clpi'; did you mean tiny-clip"),
        ({"encoders": ("tiny-fare4@",)}, "write a"),
        ({"encoders": ("a@b@c",)}, "write a"),
        ({"encoders": ("tiny-clip+tiny-advxl@tiny-clip",)}, "does not fit the projectors"),
        ({"encoders": ("clip-l-336+fare4",)}, r"token counts differ \(clip-l-336 576, fare4 256\)"),
        ({"encoders": ("advxl-h@clip-l-336",)}, "advxl-h 1280 does not fit the projectors trained for clip-l-336 1024"),
        ({"encoders": ("fare4", "fare4[activation=tanh]")}, "expected one of gelu, quick_gelu, relu"),
        ({"benchmarks": ("easy_vqaa",)}, "unknown benchmark 'easy_vqaa'; did you mean easy_vqa"),
        ({"protocol": "paper_ensembel"}, "unknown protocol 'paper_ensembel'; did you mean paper_ensemble"),
        ({"preset": "tinny"}, "unknown preset 'tinny'; did you mean tiny"),
        ({"budgets": ("-1",)}, "--budgets -1: expected numbers from 0 to 255"),
        ({"budgets": ("256",)}, "--budgets 256"),
        ({"budgets": ("four",)}, "--budgets four"),
        ({"budgets": ("nan",)}, "--budgets nan"),
        ({"budgets": ("0", "0.0157")}, r"--budgets 0.0157: .* below 1 may be meant .* write 4/255 or 0.0157/255"),
        ({"budgets": ("0", "4/256")}, "--budgets 4/256: expected numbers"),
        ({"budgets": ("0", "4/")}, "--budgets 4/: expected numbers"),
        ({"budgets": ("0", "4/255/2")}, "--budgets 4/255/2: expected numbers"),
        ({"budgets": ("4", "8")}, "--budgets: add 0, the clean answers"),
        ({"samples": 0}, "--samples 0"),
        ({"attack_steps": 0}, "--attack-steps: expected at least 1"),
        ({"attack_precision": "int8"}, "--attack-precision int8: expected float32"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"save_every": -1.0}, "--save-every -1"),
        ({"protocol": "paper_targeted"}, "paper_targeted is for captioning benchmarks only"),
        ({"protocol": "strong", "encoders": SEVENTEEN}, "at most 16 candidates, not of 17; give fewer --encoders"),
        ({"workers": 0}, "--workers 0"),
        ({"workers": 3}, "--workers 3: stage 1 has a global batch"),
        ({"workers": 4}, r"the number of workers must divide 2 \(more of them: a smaller --micro-batch\)"),
        ({"micro_batch": 0}, "--micro-batch 0: stage 1 has a global batch of 16; give a number that divides it"),
        ({"micro_batch": 3}, "--micro-batch 3: stage 1"),
        ({"trials": 0}, "--trials 0"),
        ({"samples": 10_000}, "10000|10 000"),
        ({"address": "127.0.0.1:1"}, "nothing answers there"),
        pytest.param({"gpus": 1000.0}, r"need 2000 GPUs, but the cluster has \d+ GPUs", marks=pytest.mark.processes),
        pytest.param({"memory": 1e6}, "GiB of memory", marks=pytest.mark.processes),
    ],
)
def test_mistakes_are_named_before_anything_expensive(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main(Options(storage=str(tmp_path / "results"), **{"preset": "smoke", **options}))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("results/models/*"))


def test_the_script_prints_one_line_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    command = [sys.executable, "sweeps/encoder_ablation.py", "--preset", "smoke", "--storage", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: storage {tmp_path}: the folder holds something else")
    assert done.stdout == ""


def test_a_damaged_shard_is_named(unbroken: Run, tmp_path: Path) -> None:
    storage = tmp_path / "results"
    shutil.copytree(unbroken.storage, storage)
    shard = next((storage / "data").glob("easy_vqa-*/part-00000.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(bytes(content))
    # Where it is read: a start of what is finished reads no shard.
    options = Options(preset="smoke", encoders=("tiny-clip",), benchmarks=("easy_vqa",), storage=str(storage))
    with pytest.raises(UserError, match=f"{shard.name}.* is damaged") as caught:
        main(replace(options, budgets=("0", "4")))
    assert "\n" not in str(caught.value)


def test_a_weights_file_of_another_hash_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rllava.weights as weights

    torn = tmp_path / "tiny-clip.safetensors"
    torn.write_bytes(b"not these weights")
    real = weights.weights_path
    monkeypatch.setattr(weights, "weights_path", lambda name: torn if "tiny-clip" in name else real(name))
    with pytest.raises(UserError, match=r"tiny-clip.safetensors have sha256 .*, expected"):
        main(Options(preset="smoke", encoders=("tiny-clip",), storage=str(tmp_path / "results")))
    assert not (tmp_path / "results").exists()


def test_a_wrong_weights_file_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    wrong = tmp_path / "mine.pth"
    wrong.write_text("404: not found")
    with pytest.raises(UserError, match=r"encoder 'mine': .*mine.pth is damaged or no weights file"):
        main(Options(preset="smoke", encoders=(f"{wrong}[like=fare4]",), storage=str(tmp_path / "results")))
    assert not (tmp_path / "results").exists()


def test_smaller_portions_make_the_same_global_batch() -> None:
    whole, parts = (make_plan(Options(preset="paper", micro_batch=count)).grid.model for count in (None, 4))
    for before, after in zip(whole.stages, parts.stages, strict=True):
        assert before.micro_batch > after.micro_batch == 4
        assert replace(after, micro_batch=before.micro_batch) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoders": ("tiny-clip", "tiny-fare")}, "--encoders: unknown recipe 'tiny-fare'; did you mean tiny-fare4"),
        ({"test_images": 5000}, "--test-images 5000: expected 1 to 888"),
        ({"scale": 0.0}, "--scale 0: expected a positive share"),
    ],
)
def test_nothing_is_left_out_of_a_pretraining(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        pretrain_encoders.main(pretrain_encoders.Options(output=tmp_path / "weights", **options))
    assert not list(tmp_path.iterdir())


def test_budgets_below_1_are_written_with_their_unit() -> None:
    budgets = ("0", "4/255", "0.5/255", " 8 / 255", "1", "4", "0.25/255")
    assert make_plan(Options(budgets=budgets)).grid.budgets == (0.0, 0.25, 0.5, 1.0, 4.0, 8.0)


def test_lists_and_defaults_make_the_plan() -> None:
    plan = make_plan(Options(budgets=("8", "0", "4", "8"), encoders=("tiny-clip", "tiny-clip"), samples=12))
    assert plan.grid.budgets == (0.0, 4.0, 8.0)
    assert [candidate.name for candidate in plan.grid.candidates] == ["tiny-clip"]
    assert {spec.samples for spec in plan.grid.benchmarks} == {12}
    assert [protocol.name for protocol in plan.grid.protocols] == ["paper_ensemble_10steps"]


def test_a_relative_storage_means_the_same_folder_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_plan(Options(storage="here/results")).storage == str(tmp_path / "here/results")
    assert make_plan(Options(storage="s3://bucket/results")).storage == "s3://bucket/results"


def test_the_grammar_of_candidates() -> None:
    plugged = parse_candidate("tiny-fare4@tiny-clip", PRESETS.get("tiny").model)
    assert ([s.name for s in plugged.trained], [s.name for s in plugged.used]) == (["tiny-clip"], ["tiny-fare4"])
    both = parse_candidate("tiny-clip+tiny-tecoa4@tiny-clip+tiny-clip", PRESETS.get("tiny").model)
    assert both.plugged
    assert not parse_candidate("tiny-clip+tiny-tecoa4", PRESETS.get("tiny").model).plugged


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("sweeps/encoder_ablation.py", Options),
        ("sweeps/corruptions.py", corruptions.Options),
        ("sweeps/budgets.py", budgets.Options),
    ],
)
def test_help_explains_every_option(script: str, options: type) -> None:
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=600, check=True)
    shown = re.sub(r"[\s│]+", " ", done.stdout)
    texts = [vars(base).get("__doc__") or "" for base in options.__mro__ if dataclasses.is_dataclass(base)]
    explained = dict(re.findall(r"^        (\w+): (\S+ \S+)", "\n".join(texts), re.MULTILINE))
    assert explained.keys() == {field.name for field in dataclasses.fields(options)}
    for name, words in explained.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert words in shown, name
