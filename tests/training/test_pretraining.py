"""The training of encoders: the same on any number of workers and after a kill."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from rllava.encoders.dual import untrained
from rllava.errors import UserError
from rllava.graph import step_of
from rllava.training.encoder_objectives import ENCODER_OBJECTIVES
from rllava.training.pretraining import RECIPES, PretrainSpec, batches, check_batch, read_state
from tests.fixtures.forks import Forks
from tests.training.pretrain_process import BATCH, STEPS, random_pairs, small, train

NAMES = [spec.objective for spec in RECIPES]


def by_workers(forks: Forks, workers: int, folder: Path) -> dict[str, Any]:
    output, log = folder / "found.pt", folder / "printed.txt"
    group = [([str(rank), str(workers), str(folder / "rendezvous"), str(output)], {}) for rank in range(workers)]
    codes = forks.run("tests.training.pretrain_process", group, log, None)
    assert codes == [0] * workers, log.read_text()[-3000:]
    return dict(torch.load(output, weights_only=True))


@pytest.fixture(scope="module")
def found(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Losses and weights by the number of workers and the objective."""
    alone = {spec.objective: train(small(spec), torch.float64) for spec in RECIPES}
    return {1: alone, **{count: by_workers(forks, count, tmp_path_factory.mktemp(str(count))) for count in (2, 4)}}


@pytest.mark.processes
@pytest.mark.parametrize("objective", NAMES)
def test_losses_and_weights_do_not_hang_on_the_number_of_workers(
    objective: str, found: dict[int, dict[str, Any]]
) -> None:
    losses, weights = found[1][objective]
    assert len(losses) == STEPS
    assert len(set(losses)) == STEPS
    for count in (2, 4):
        others, theirs = found[count][objective]
        # In float64, where no gradient is so near to zero that another order of sums turns its sign.
        assert others == pytest.approx(losses, rel=1e-9)
        for name, value in weights.items():
            torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-9)


def test_a_batch_is_shared_without_another_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, pairs = small(RECIPES[0]), random_pairs()
    whole = [next(batches(pairs, spec, step)) for step in range(5)]
    stream = batches(pairs, spec)
    for step, batch in enumerate(whole):
        again = next(stream)
        assert torch.equal(again.pixels_BCHW, batch.pixels_BCHW), f"step {step} is another one when it comes first"
        assert again.wordings == batch.wordings
    monkeypatch.setattr("rllava.training.pretraining.workers", lambda: 4)
    monkeypatch.setattr("rllava.training.pretraining.rank", lambda: 1)
    share = next(batches(pairs, spec))
    assert torch.equal(share.pixels_BCHW, whole[0].pixels_BCHW[1::4])
    assert share.wordings == whole[0].wordings[1::4]


@pytest.mark.parametrize("objective", NAMES)
def test_what_was_cut_off_comes_to_the_same_weights(objective: str) -> None:
    spec = small(next(recipe for recipe in RECIPES if recipe.objective == objective))
    states: dict[int, bytes] = {}
    losses, whole = train(spec, checkpoint_every=1, save=states.__setitem__)
    assert list(states) == [1, 2]
    rest, resumed = train(spec, resume=read_state(states[2]))
    assert rest == losses[2:]
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_fine_tuning_leaves_the_texts_alone_and_pre_training_does_not() -> None:
    before = untrained("any", 0, random_pairs()).state_dict()
    for spec in RECIPES:
        _, after = train(small(spec))
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        texts = {name for name in moved if name.startswith("text.") or name == "log_scale"}
        assert any(name.startswith("encoder.") for name in moved)
        assert bool(texts) != ENCODER_OBJECTIVES.get(spec.objective).fine_tunes


def test_the_base_is_made_first_and_decides_what_is_made_of_it() -> None:
    clip, fare = RECIPES[0], RECIPES[1]
    step = step_of(fare)
    assert step.needs == (step_of(clip),)
    other = dataclasses.replace(fare, base=dataclasses.replace(clip, steps=7))
    assert step_of(other) != step
    assert fare.scaled(0.01).base == dataclasses.replace(clip, steps=6)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="objective fare needs a base"):
        PretrainSpec("mine", "fare")
    with pytest.raises(ValueError, match="objective clip starts from scratch"):
        PretrainSpec("mine", "clip", RECIPES[0])
    with pytest.raises(UserError, match="unknown encoder objective 'fair'; did you mean fare"):
        PretrainSpec("mine", "fair")
    with pytest.raises(UserError, match="--workers 3: tiny-clip has a batch of 8, which it does not divide"):
        check_batch(small(RECIPES[0]), 3, 20)
    with pytest.raises(UserError, match=f"7 images make no batch of {BATCH}"):
        check_batch(small(RECIPES[0]), 2, 7)
