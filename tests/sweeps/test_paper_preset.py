"""The paper's grid as a recipe, and what it says where its data is not."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rllava.data.files import FILES
from rllava.errors import UserError
from rllava.missing import Missing, refuse_missing
from rllava.recipes import PRESETS
from rllava.recipes.paper import PAPER_CANDIDATES
from rllava.specs import Rates
from rllava.weights import weights_path
from sweeps.encoder_ablation import Options, main, make_plan
from sweeps.plan import check_inputs, missing_inputs, prepare_data
from tests.data.published_files import write_benchmarks, write_training

OPTIONS = Options(preset="paper", encoders=("tiny-clip",))


@pytest.fixture(autouse=True)
def _language_model_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights" / "lmsys" / "vicuna-7b-v1.5"
    shutil.copytree(weights_path("asset:tiny-llama"), folder)
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path / "weights"))


def test_stages_are_llavas() -> None:
    one, two = PRESETS.get("paper").model.stages
    assert (one.steps, one.global_batch, one.micro_batch * 8, one.zero_stage) == (2181, 256, 256, 2)
    assert (two.steps, two.global_batch, two.micro_batch * 8, two.zero_stage) == (5198, 128, 128, 3)
    assert (one.rates, two.rates) == (Rates(projectors=1e-3), Rates(projectors=2e-5, language_model=2e-5))
    assert (one.fit, two.fit) == ("crop", "pad")
    for stage in (one, two):
        assert (stage.warmup, stage.weight_decay, stage.clip, stage.precision) == (0.03, 0.0, 0.0, "bfloat16")
        assert (stage.max_length, stage.warmup_from_zero, stage.objective) == (2048, True, "llava")
    assert (one.conversation, two.conversation) == ("plain", "vicuna_v1")
    assert (one.data.name, two.data.name) == ("llava_pretrain_558k", "llava_instruct_665k")


def test_the_grid_is_the_papers() -> None:
    plan = make_plan(OPTIONS)
    assert {spec.name for spec in plan.grid.benchmarks} == {"coco", "flickr30k", "textvqa", "vqav2", "vizwiz", "okvqa"}
    assert {spec.samples for spec in plan.grid.benchmarks} == {500}
    assert (plan.grid.budgets, plan.grid.protocols[0].name) == ((0.0, 2.0, 4.0, 8.0), "paper_ensemble")


def test_the_candidates_are_the_papers() -> None:
    """The rows of its tables 1, 14 and 15: end-to-end, plugged in, and ensembles."""
    plan = make_plan(Options(preset="paper"))
    assert [candidate.name for candidate in plan.grid.candidates] == [
        "clip-l-336", "fare4-336@clip-l-336", "simclip4@clip-l-336", "advxl-h", "advxl-g", "clip-l-336+advxl-h",
        "clip-l-336+advxl-g", "fare4-336+advxl-h@clip-l-336+advxl-h", "fare4-336+advxl-g@clip-l-336+advxl-g",
        "advxl-g+advxl-h",
    ]  # fmt: skip
    assert sum(candidate.trains for candidate in plan.grid.candidates) == 6


def test_plugged_candidates_stand_in_for_clip_in_a_llava_that_is_trained_anyway() -> None:
    candidates = PRESETS.get("paper").candidates
    assert [candidate.name for candidate in candidates] == list(PAPER_CANDIDATES)
    plugged = [candidate for candidate in candidates if candidate.plugged]
    assert len(plugged) == 4
    trained = [candidate.trained for candidate in candidates if not candidate.plugged]
    for candidate in plugged:
        assert candidate.trained in trained
        replaced = [(a.name, b.name) for a, b in zip(candidate.used, candidate.trained, strict=True) if a != b]
        assert replaced in ([("fare4-336", "clip-l-336")], [("simclip4", "clip-l-336")])


def test_the_script_names_every_file_and_its_source_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "sweeps/encoder_ablation.py", "--preset", "paper"]
    environment = {"RLLAVA_DATA": str(tmp_path), "RLLAVA_WEIGHTS": str(tmp_path / "w"), "PYTHONPATH": str(Path.cwd())}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, "--storage", str(tmp_path / "results")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: 28 inputs are missing: from ")
    for weights in ("lmsys/vicuna-7b-v1.5/", "openai/clip-vit-large-patch14-336/", "fare_eps_4_336.pt"):
        assert f"{tmp_path}/w/{weights} (" in done.stderr
    assert "from the hub's lmsys/vicuna-7b-v1.5, which cannot be reached from here:" in done.stderr
    sources = {spec.source for spec in make_plan(Options(preset="paper")).data_specs()}
    assert len(sources) == 8
    for file in {file for source in sources for file in FILES[source]}:
        assert f"{tmp_path}/{file.path} ({file.what})" in done.stderr
        assert f"from {file.source}:" in done.stderr
    assert not (tmp_path / "results").exists()


def test_only_the_data_that_is_asked_for_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_training(tmp_path)
    monkeypatch.setenv("RLLAVA_DATA", str(tmp_path))
    with pytest.raises(
        UserError, match=r"3 inputs are missing: from [^;]*okvqa[^;]*, [^;]*okvqa[^;]*; from COCO 2014"
    ) as caught:
        main(dataclasses.replace(OPTIONS, benchmarks=("okvqa",), storage=str(tmp_path / "results")))
    assert "okvqa/mscoco_val2014_annotations.json" in str(caught.value)


def test_built_shards_need_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    write_training(root)
    write_benchmarks(root)
    monkeypatch.setenv("RLLAVA_DATA", str(root))
    plan = make_plan(dataclasses.replace(OPTIONS, samples=3, storage=str(tmp_path / "results")))
    check_inputs(plan)
    said: list[str] = []
    prepare_data(plan, said.append)
    assert len(said) == 8
    assert [place.rows for place in plan.data_folders(plan.grid.models[0])] == [3, 7]
    monkeypatch.delenv("RLLAVA_DATA")
    check_inputs(plan)
    assert missing_inputs(make_plan(dataclasses.replace(OPTIONS, samples=4, storage=str(tmp_path / "results")))) != []


def test_kinds_of_missing_inputs_are_told_together_and_once() -> None:
    weights = Missing("weights of advxl-h", "/weights/h.pth", "AdvXL")
    data = Missing("images", "/data/a/", "COCO")
    with pytest.raises(UserError) as caught:
        refuse_missing([weights, data, weights, dataclasses.replace(data, where="/data/b/")], "fetch them")
    assert str(caught.value) == (
        "3 inputs are missing: from AdvXL: /weights/h.pth (weights of advxl-h); "
        "from COCO: /data/a/ (images), /data/b/ (images); fetch them"
    )
    refuse_missing([])
