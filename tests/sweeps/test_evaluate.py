"""Checkpoints made elsewhere are attacked as the sweep's own LLaVAs are."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from analysis.loading import load_sweep
from rllava.encoders import build_encoder, encoder_spec
from rllava.errors import UserError
from rllava.model.checkpoint import read_checkpoint
from rllava.model.export import export_hugging_face
from rllava.model.language import TINY_LLAMA, load_language_model
from rllava.model.llava import Connector, Llava, build_projector
from rllava.weights import pin_weights
from sweeps.evaluate import Options, main, make_plan
from sweeps.grid import checkpoints_of
from tests.fixtures.processes import Tracked
from tests.model.test_own_tower import write_tuned

SIDE, WIDTH = 28, 32


def write_tower(folder: Path, seed: int, **changes: Any) -> Path:
    """A CLIP tower as transformers writes it."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**{**sizes, "image_size": SIDE, "patch_size": 14, **changes})
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    return folder


def write_llava(folder: Path, tower: Path) -> Path:
    """A LLaVA as transformers writes it: the embedded language model sees an untrained tower."""
    spec = pin_weights(encoder_spec(f"{tower}/"))
    language_model, tokenizer = load_language_model(TINY_LLAMA)
    torch.manual_seed(0)
    connector = Connector([build_projector("mlp2x_gelu", WIDTH, language_model.config.hidden_size)], language_model)
    export_hugging_face(Llava([build_encoder(spec)], connector, tokenizer, "vicuna_v1_short").eval(), folder)
    return folder


def test_a_checkpoint_and_an_encoder_plugged_into_it_are_attacked(tmp_path: Path, tracked: Tracked) -> None:
    llava = write_llava(tmp_path / "llava", write_tower(tmp_path / "tower", 0))
    other = write_tower(tmp_path / "other", 1)
    storage = str(tmp_path / "results")
    command = [sys.executable, "sweeps/evaluate.py", "--model", str(llava), "--encoders", f"{other}/"]
    command += [
        "--conversation",
        "vicuna_v1_short",
        "--benchmarks",
        "easy_vqa",
        "--budgets",
        "0",
        "8",
        "--samples",
        "12",
    ]
    command += ["--protocol", "paper_ensemble_3steps", "--storage", storage]
    done = subprocess.run(command, env=tracked.env, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "training stage" not in done.stdout
    assert "training workers" not in done.stdout
    sweep = load_sweep(storage, "evaluate")
    records = sweep.records
    assert set(records.candidate) == {"llava", "other@llava"}
    assert len(records) == 2 * 2 * 12
    attacked = records[(records.epsilon == 8) & (records.clean_score > 0)]
    assert len(attacked) > 0  # the language model guesses some answers without seeing anything
    assert (attacked.steps > 0).all()
    assert (records.linf <= records.epsilon).all()
    manifest = json.loads((Path(storage) / "reports/evaluate/sweep.json").read_text())
    assert [entry["spec"]["format"] for entry in manifest["models"]] == ["hugging_face"]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    llava = write_llava(tmp_path / "llava", write_tower(tmp_path / "tower", 0))
    wide = write_tower(tmp_path / "wide", 1, hidden_size=64)
    options = Options(model=(str(llava),), conversation="vicuna_v1_short", storage=str(tmp_path / "results"))
    with pytest.raises(UserError, match=r"--encoders .*wide.*: .* 64 does not fit the projectors trained for .* 32"):
        checkpoints_of(options, (f"{wide}/",))
    with pytest.raises(UserError, match="give at least one checkpoint"):
        main(Options())
    with pytest.raises(UserError, match="nowhere"):
        main(Options(model=(str(tmp_path / "nowhere"),)))
    with pytest.raises(UserError, match="unknown conversation template 'vicuna'; did you mean vicuna_v1"):
        checkpoints_of(Options(model=(str(llava),), conversation="vicuna"), ())
    (tmp_path / "again").mkdir()
    twin = write_llava(tmp_path / "again" / "llava", tmp_path / "tower")
    with pytest.raises(UserError, match="2 candidates would be called llava"):
        make_plan(Options(model=(str(llava), str(twin)), conversation="vicuna_v1_short"))
    with pytest.raises(UserError, match="expected letters"):
        main(Options(model=(str(llava),), name="../x"))


def test_the_tower_that_is_asked_for_is_attacked(tmp_path: Path) -> None:
    folder = write_tuned("sharded", tmp_path)
    candidates = checkpoints_of(Options(model=(str(folder),), vision_tower="own"), ())
    assert [candidate.used for candidate in candidates] == [read_checkpoint(str(folder), vision_tower="own").encoders]
