"""Several trainings of one candidate, by a recipe that trains the encoder too and an objective of another package."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from analysis.loading import load_sweep
from analysis.scores import sweep_scores
from rllava.encoders import build_encoder, encoder_spec
from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.made import build_at_hand
from rllava.pinned import MadeBy
from rllava.store import Store
from sweeps.encoder_ablation import Options, make_plan
from sweeps.plan import check_inputs
from tests.fixtures.processes import Tracked
from tests.sweeps.driver import finish, start
from tests.sweeps.shown import unexpected

NAMES = ("tiny-clip", "tiny-fare4@tiny-clip")


@pytest.mark.processes
def test_every_seed_is_a_training_with_an_encoder_of_its_own(packages: Path, tmp_path: Path, tracked: Tracked) -> None:
    storage = tmp_path / "results"
    options = ("--encoders", "tiny-clip", "--benchmarks", "easy_vqa", "--seeds", "1", "2")
    output = finish(
        start(str(storage), tracked, *options, packages=packages, preset="smoke_tuned", script="sweeps/seeds.py")
    )
    assert unexpected(output) == []
    assert "2 trainings per candidate: intervals cover training and samples" in output

    models = sorted((storage / "models").iterdir())
    assert len(models) == 2
    specs = [json.loads((model / "spec.json").read_text()) for model in models]
    assert sorted(spec["seed"] for spec in specs) == [1, 2]
    assert {spec["stages"][1]["objective"] for spec in specs} == {"llava_on_noise"}
    before = build_encoder(encoder_spec("tiny-clip")).state_dict()
    tuned = [load_file(model / "stage2/encoders/0.safetensors") for model in models]
    for state in tuned:
        assert state.keys() == before.keys()
        assert not all(torch.equal(state[key], before[key]) for key in before)
    assert not all(torch.equal(tuned[0][key], tuned[1][key]) for key in before)

    results = load_sweep(str(storage), "seeds")
    records = results.records
    assert set(records["seed"]) == {1, 2}
    assert (records["recipe"].nunique(), records["model"].nunique()) == (1, 2)
    assert records["error"].isna().all()
    assert list(sweep_scores(results).seeds) == [2]


def test_a_training_is_what_it_is_whatever_others_are_asked_for(tmp_path: Path) -> None:
    def prints(*seeds: int) -> set[str]:
        asked = {"protocol": "strong", "attack_precision": "float32", "storage": str(tmp_path)}
        plan = check_inputs(make_plan(Options(preset="smoke", seeds=seeds, **asked)))  # type: ignore[arg-type]
        return {fingerprint(spec) for candidate in plan.grid.candidates for spec, _ in plan.evaluations(candidate)}

    alone, other, together = prints(0), prints(3), prints(3, 0)
    assert not alone & other
    assert alone | other == together


def test_trials_of_seeds_have_names_of_their_own() -> None:
    plan = make_plan(Options(preset="smoke", seeds=(0, 1, 1)))
    assert [candidate.trial for candidate in plan.grid.candidates] == [*NAMES, *(f"{name}#1" for name in NAMES)]
    assert [plan.candidate(f"{name}#1").seed for name in NAMES] == [1, 1]
    assert len(plan.grid.models) == 2


@pytest.mark.parametrize(
    ("seeds", "message"), [((), "--seeds: give at least one"), ((-1,), "--seeds -1: expected numbers")]
)
def test_bad_seeds_are_named(seeds: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(Options(preset="smoke", seeds=seeds))


def test_a_tuned_encoder_that_is_not_there_is_told_with_the_remedy(tmp_path: Path) -> None:
    plan = check_inputs(make_plan(Options(preset="smoke", encoders=("tiny-clip",), storage=str(tmp_path))))
    (candidate,) = plan.grid.candidates
    assert candidate.judged == candidate.used, "no stage of this recipe trains it"
    tuned = replace(candidate.used[0], weights=MadeBy(plan.grid.models[0], 0))
    message = r"holds no models/tiny-clip-\w+/stage2/encoders/0\.safetensors, which its weights are"
    with pytest.raises(UserError, match=message):
        build_at_hand(tuned, Store(str(tmp_path)))
