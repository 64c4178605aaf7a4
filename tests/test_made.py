"""Encoders that a step of the sweep makes: they are inputs like any other."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rllava.encoders import EncoderSpec, build_encoder, encoder_spec
from rllava.encoders.tiny import tiny_spec
from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.graph import step_of
from rllava.made import at_hand, place_of
from rllava.pinned import WEIGHTS, MadeBy, Pinned
from rllava.recipes import PRESETS
from rllava.steps import Facts, Step, WorkItem, Workshop, ensure, levels
from rllava.store import Store
from rllava.training.pretraining import RECIPES
from rllava.weights import digest, has_weights, pin_weights
from tests.evaluation.test_shard import spec_of

CLIP = RECIPES[0]
FARE = next(recipe for recipe in RECIPES if recipe.name == "tiny-fare4")
MADE = tiny_spec("mine", weights=MadeBy(FARE))
PIXELS_BCHW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def make(store: Store, scratch: Path) -> Step:
    """Ensures the step of an encoder, whose weights are random; what trains it is not looked at here."""
    step = step_of(FARE)

    def run(tasks: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Facts]]:
        (task,) = tasks
        file = scratch / "made.safetensors"
        save_file(build_encoder(tiny_spec("other", weights=None)).state_dict(), file)
        store.put(f"{task.artifact.path}/{WEIGHTS}", file)
        yield task, {"sha256": digest(file)}

    ensure([step], Workshop(store, {type(FARE): run}))
    return step


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Results in a folder, and in a place that files have to be copied from."""
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path / "weights"))
    return Store(str(tmp_path / "results") if request.param == "local" else f"memory://{tmp_path.name}")


def test_an_encoder_is_built_from_what_a_step_left(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path)
    found = at_hand(MADE, store)
    assert isinstance(found.weights, Pinned)
    original = build_encoder(dataclasses.replace(MADE, weights=Pinned(str(tmp_path / "made.safetensors"))))
    assert torch.equal(build_encoder(found)(PIXELS_BCHW), original(PIXELS_BCHW))
    assert not torch.equal(original(PIXELS_BCHW), build_encoder(encoder_spec("tiny-clip"))(PIXELS_BCHW))
    assert at_hand(MADE, store) == found
    assert at_hand(encoder_spec("tiny-clip"), store) == encoder_spec("tiny-clip")
    if not store.is_local:
        assert [path.name for path in (tmp_path / "weights" / "made").iterdir()] == [
            f"{found.weights.sha256}.safetensors"
        ]


def test_what_is_missing_or_damaged_is_told_in_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder 'mine': .* holds no finished encoders/tiny-fare4-.*; run the sweep"):
        at_hand(MADE, store)
    make(store, tmp_path)
    path = f"{place_of(MadeBy(FARE), store).path}/{WEIGHTS}"
    store.write(path, b"torn")
    with pytest.raises(UserError, match=r"encoder 'mine': weights .* have sha256 .*, expected"):
        build_encoder(at_hand(MADE, store))


def test_who_uses_it_waits_for_the_step_that_makes_it(store: Store) -> None:
    making = step_of(FARE)
    assert making.kind == "encoders"
    assert making.needs == (step_of(CLIP),)
    model = dataclasses.replace(PRESETS.get("smoke").model, encoders=(MADE,))
    assert making in step_of(model).needs
    plugged = dataclasses.replace(spec_of("easy_vqa", 8.0), encoders=(MADE,))
    assert making in step_of(plugged).needs
    assert making not in step_of(spec_of("easy_vqa", 8.0)).needs
    assert len(levels([step_of(plugged)])) == 1, "a need is made in the trial itself"
    with pytest.raises(TypeError, match="no step makes a EncoderSpec"):
        step_of(MADE)  # type: ignore[arg-type]


def test_weights_are_what_they_are_made_from_and_a_place_is_nothing() -> None:
    def named(weights: Pinned | MadeBy | None) -> str:
        return fingerprint(dataclasses.replace(MADE, weights=weights))

    assert named(Pinned("here", "1" * 64)) == named(Pinned("there", "1" * 64)) != named(Pinned("here", "2" * 64))
    slower = dataclasses.replace(FARE, steps=FARE.steps + 1)
    assert len({named(MadeBy(FARE)), named(MadeBy(slower)), named(None), named(Pinned("here", "1" * 64))}) == 4
    with pytest.raises(ValueError, match=r"Pinned\.sha256: the hash of 'here' decides the result .*pin_weights"):
        named(Pinned("here"))


def test_planning_looks_for_no_file_of_what_will_be_made() -> None:
    spec: EncoderSpec = MADE
    assert has_weights(spec)
    assert pin_weights(spec) == spec
