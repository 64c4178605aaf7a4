"""Plans of sweeps: what would run, without data, weights, Ray or a trace in the storage."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.node_types import LAUNCHER, Gpu
from cluster.rates import Rate
from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.pinned import NOTHINGS_HASH
from rllava.weights import weights_path
from sweeps import (
    budgets,
    corruptions,
    encoder_ablation,
    evaluate,
    jailbreak,
    language_models,
    projectors,
    search,
    seeds,
)
from sweeps.fitting import TooLarge
from sweeps.forecast import Forecast
from sweeps.forecast_table import as_json, table
from sweeps.known_rates import STORAGE, Known, key_of
from sweeps.plan import pin_inputs
from sweeps.planning import plan_ahead, print_plan
from tests.sweeps.conftest import Run

PAPER = ("clip-l-336", "fare4-336@clip-l-336")


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Neither weights nor data nor a cluster; a storage that is not there."""
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path / "weights"))
    for name in ("RLLAVA_DATA", "RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    return str(tmp_path / "results")


def ahead(options: Any, script: Any = encoder_ablation) -> Forecast:
    return plan_ahead(options, script.make_plan(options))


def test_the_papers_plan_needs_nothing(nothing_here: str) -> None:
    found = ahead(encoder_ablation.Options(preset="paper", encoders=PAPER, workers=8, storage=nothing_here))
    assert found.machinery.source == LAUNCHER.name
    assert {"language model 'vicuna-7b-v1.5'", "encoder 'fare4-336'"} <= {item.what for item in found.missing}
    assert found.counts == {"data": (0, 8), "models": (0, 1), "records": (0, 2 * 6 * 4)}
    sizes, tokens = found.sizes["clip-l-336"]
    assert (sizes.language_model, sizes.projectors, tokens) == (6_738_415_616, 20_979_712, 576)
    # LLaVA's README: 3.5 + 10 hours on 8 A100, which the assumed shares of the peak were taken from.
    assert found.hours("models", gpu=True) == pytest.approx(8 * 13.5, rel=0.1)
    # An estimate by hand has 209 A100-hours a model and budget at 35 to 55 % of 312 TFLOP/s; here they are L40S.
    assert 2 * 3 * 50 < found.hours("records", gpu=True) < 2 * 3 * 400
    assert found.hours("records") <= found.hours("records", most=True)
    assert found.timetable is not None
    assert found.timetable.most_nodes["attack_1xL40S"] == 32
    assert found.total_usd is not None
    assert found.total_usd > 100
    assert not Path(nothing_here).exists()  # nothing is written


def test_a_llava_that_no_node_holds_is_told_apart(nothing_here: str) -> None:
    options = encoder_ablation.Options(preset="paper", encoders=PAPER, workers=8, storage=nothing_here)
    plan = pin_inputs(encoder_ablation.make_plan(options), look=False, lenient=True)
    found = plan_ahead(options, plan)
    trained, plugged = plan.grid.candidates
    assert TooLarge(plan, found.machinery, found.placement)(trained) is None
    small = Gpu("small", 16 * 2.0**30)
    kinds = tuple(replace(kind, gpu=small) if kind.gpu else kind for kind in found.machinery.kinds)
    holds = TooLarge(plan, replace(found.machinery, kinds=kinds), found.placement)
    assert "clip-l-336, training stage" in str(holds(trained))
    assert "attack" in str(holds(plugged))
    unknown = tuple(replace(kind, gpu=None) for kind in found.machinery.kinds)
    assert TooLarge(plan, replace(found.machinery, kinds=unknown), found.placement)(trained) is None


def test_a_plan_is_told_as_a_table_and_as_json(nothing_here: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = encoder_ablation.Options(preset="smoke", storage=nothing_here)
    plan = encoder_ablation.make_plan(options)
    print_plan(options, plan)
    page = capsys.readouterr().out
    assert all(word in page for word in ("found", "to do", "parameters", "memory of a worker", "wall-clock time"))
    assert "assumed, not measured here:" in page
    found = plan_ahead(options, plan)
    told = json.loads(as_json(found))
    assert told["counts"]["records"] == {"found": 0, "to_do": 2 * 2 * 2}
    assert told["parameters"]["tiny-clip"]["total"] == found.sizes["tiny-clip"][0].total
    seconds = sum(step["worker_seconds"] for step in told["steps"] if step["kind"] == "models")
    assert told["hours"]["training"] == pytest.approx(seconds / 3600)
    assert told["wall_seconds"] >= seconds
    assert table(found) == page.rstrip("\n")


@pytest.mark.parametrize(
    ("script", "changes"),
    [
        (corruptions, {"preset": "smoke", "corruptions": ("fog",)}),
        (budgets, {"preset": "smoke"}),
        (encoder_ablation, {"preset": "smoke", "conditions": ("typographic", "transferred", "prompted:ap")}),
        (seeds, {"preset": "smoke"}),
        (jailbreak, {"restarts": 1, "budgets": ("16",)}),
        (language_models, {"preset": "smoke", "language_models": ("tiny-llama",)}),
        (projectors, {"preset": "smoke", "projectors": ("linear",)}),
    ],
)
def test_every_sweep_has_a_plan(script: Any, changes: dict[str, Any], nothing_here: str) -> None:
    found = ahead(script.Options(storage=nothing_here, **changes), script)
    assert found.timetable is not None
    assert found.timetable.wall_s > 0
    assert all(to_do for _, to_do in found.counts.values())
    assert found.hours("models", "images", "records") > 0


def test_a_search_plans_every_model_of_its_parts(nothing_here: str, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"encoders": ("tiny-clip", "tiny-advxl"), "projectors": ("linear", "mlp2x_gelu"), "ensembles": False}
    search.main(search.Options(storage=nothing_here, preset="smoke", plan=("json",), plugged=False, **parts))
    told = capsys.readouterr()
    assert json.loads(told.out)["counts"]["models"] == {"found": 0, "to_do": 4}
    assert "planned is each of 4 models of its parts once" in told.err
    assert not Path(nothing_here).exists()


def test_prices_of_ones_own_have_to_be_whole(nothing_here: str, tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text('[instances."m6i.2xlarge"]\non_demand = 1\n')
    options = encoder_ablation.Options(
        preset="smoke", storage=nothing_here, plan_cluster=LAUNCHER, prices=str(own), plan=("table",)
    )
    with pytest.raises(UserError, match="no price for 3 node types: driver") as told:
        encoder_ablation.main(options)
    assert "\n" not in str(told.value)


def test_steps_of_universal_images_are_taken_for_as_fast_as_an_attacks() -> None:
    (model,) = encoder_ablation.make_plan(encoder_ablation.Options(preset="smoke")).grid.models
    known = Known(1.0)
    assert known.rate(model, "images", 0, "float32", None, False).assumed
    known.rates[key_of(model, "attack", -1)] = Rate(1e9, STORAGE)
    assert known.rate(model, "images", 0, "float32", None, False).source == STORAGE


def test_what_nobody_looked_at_is_never_found(nothing_here: str) -> None:
    options = encoder_ablation.Options(preset="paper", encoders=PAPER, storage=nothing_here)
    plan = pin_inputs(encoder_ablation.make_plan(options), look=False, lenient=True)
    (model,) = plan.grid.models
    assert model.language_model.weights.sha256 == NOTHINGS_HASH  # type: ignore[union-attr]
    assert fingerprint(model)


def test_shapes_of_a_checkpoint_are_read_from_its_folder(
    nothing_here: str, tmp_path: Path, unbroken: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = Path(unbroken.storage, "models").iterdir()
    found = ahead(evaluate.Options(model=(str(folder),), preset="smoke", storage=nothing_here), evaluate)
    assert next(iter(found.sizes.values()))[0].language_model > 100_000
    assert found.counts["records"][0] == 0


def test_what_is_there_is_found_and_says_how_fast_the_rest_goes(unbroken: Run, tmp_path: Path) -> None:
    storage = tmp_path / "copy"
    shutil.copytree(unbroken.storage, storage)
    options = encoder_ablation.Options(preset="smoke", storage=str(storage))
    whole = ahead(options)
    assert all(to_do == 0 for _, to_do in whole.counts.values())
    assert whole.timetable is not None
    assert whole.timetable.wall_s == 0
    lost = next(Path(storage, "records").glob("tiny-clip-easy_vqa-eps8-*"))
    shutil.rmtree(lost)
    found = ahead(options)
    assert found.counts["records"] == (7, 1)
    (step,) = (step for step in found.steps if not step.found)
    assert step.rate == STORAGE
    assert step.worker_s is not None
    assert step.worker_s > 0
    assert any("(in storage " in line and " samples of 2 models)" in line for line in found.assumed)


def test_weights_that_are_not_here_do_not_stop_it(nothing_here: str) -> None:
    assert not weights_path("hub:lmsys/vicuna-7b-v1.5").exists()
    found = ahead(encoder_ablation.Options(preset="small", storage=nothing_here))
    assert found.sizes["efficientnet-lite0"][0].language_model == pytest.approx(134.5e6, rel=0.01)
