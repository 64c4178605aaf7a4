"""Spaces: what is in them, what depends on what, and what cannot be built."""

from dataclasses import replace

import pytest

from rllava.errors import UserError
from rllava.recipes import PRESETS, Candidate
from rllava.search.space import Choice, SearchSpace, Space, StageSpace, applies, encoders_of, rounded
from rllava.specs import ModelSpec

TINY = PRESETS.get("tiny").model
NAMES = ("tiny-clip", "tiny-advxl")


def space(**fields: object) -> SearchSpace:
    return SearchSpace(Space(**fields), TINY, ("tiny-clip",))  # type: ignore[arg-type]


def test_encoders_alone_together_and_plugged_in_each_once() -> None:
    found = [encoders_of(c) for c in space(encoders=NAMES, ensembles=True, plugged=True).points()]
    assert sorted(found) == [
        "tiny-advxl", "tiny-advxl@tiny-clip", "tiny-clip", "tiny-clip+tiny-advxl", "tiny-clip@tiny-advxl",
    ]  # fmt: skip


def test_a_name_of_several_encoders_has_no_partner() -> None:
    whole = space(encoders=("tiny-clip", "tiny-advxl", "tiny-clip+tiny-advxl"), plugged=True)
    (together,) = (c for c in whole.points() if c["encoders"] == "tiny-clip+tiny-advxl")
    assert set(together) == {"encoders"}


def test_a_rate_is_chosen_only_for_what_is_trained() -> None:
    whole = space(trains=("projectors", "encoders"), encoder_rate=(1e-5, 1e-3), language_model_rate=(1e-4, 1e-3))
    settings = {setting.name: setting for setting in whole.settings}
    assert not applies(settings["encoder_rate"], {"trains": "projectors"})
    assert not applies(settings["language_model_rate"], {"trains": "projectors"})
    assert applies(settings["encoder_rate"], {"trains": "encoders"})
    assert {frozenset(c) for c in whole.points()} == {
        frozenset({"encoders", "trains"}),
        frozenset({"encoders", "trains", "language_model_rate", "encoder_rate"}),
    }


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"encoder_rate": (1e-5, 1e-3)}, "--encoder-rate: .* add encoders to --trains"),
        ({"trains": ("projectors",), "language_model_rate": (1e-5, 1e-3)}, "--language-model-rate: .* add language_m"),
    ],
)
def test_a_rate_of_what_is_never_trained_is_refused(fields: dict[str, object], option: str) -> None:
    with pytest.raises(UserError, match=option):
        space(**fields).check()


def test_a_configuration_says_how_its_llava_is_trained() -> None:
    whole = space(
        encoders=NAMES, projectors=("linear",), align=StageSpace(steps=(7,)), trains=("projectors", "encoders"),
        instruct=StageSpace(steps=(20,), rate=(1e-4, 1e-2)), encoder_rate=(1e-5, 1e-3),
    )  # fmt: skip
    chosen = {
        "encoders": "tiny-advxl", "projector": "linear", "align_steps": 7, "instruct_steps": 20, "trains": "encoders",
        "instruct_rate": 2e-3, "encoder_rate": 1e-4,
    }  # fmt: skip
    model = whole.candidate(chosen).model
    assert isinstance(model, ModelSpec)
    align, instruct = model.stages
    assert (model.projector, align.steps, instruct.steps) == ("linear", 7, 20)
    assert align.rates == TINY.stages[0].rates
    assert (instruct.rates.projectors, instruct.rates.language_model, instruct.rates.encoders) == (2e-3, 2e-3, 1e-4)
    projectors = whole.candidate({**chosen, "trains": "projectors"}).model
    assert isinstance(projectors, ModelSpec)
    assert projectors.stages[-1].rates.language_model is None
    assert [stage.steps for stage in whole.candidate(chosen, share=0.25).model.stages] == [2, 5]  # type: ignore[union-attr]


def test_what_is_as_in_the_preset_bears_the_ablations_name_and_all_else_one_of_its_own() -> None:
    whole = space(
        encoders=NAMES, projectors=("linear", "mlp2x_gelu"), instruct=StageSpace(steps=(300, 20), rate=(1e-4, 1e-2))
    )
    usual = {"encoders": "tiny-clip", "projector": "mlp2x_gelu", "instruct_steps": 300, "instruct_rate": 1e-3}
    assert whole.candidate(usual).name == "tiny-clip"
    assert whole.candidate(usual).model == TINY
    assert whole.candidate({**usual, "projector": "linear"}).name == "tiny-clip:projector=linear"
    assert whole.candidate(usual, share=0.5).name == "tiny-clip:stepsx0.5"
    names = [whole.candidate(c).name for c in whole.points(whole.usual())]
    assert len(set(names)) == len(names) == 8


def test_tokens_that_do_not_fit_are_never_points() -> None:
    whole = space(encoders=("tiny-clip", "clip-l-336"), ensembles=True, plugged=True)
    assert [encoders_of(c) for c in whole.points()] == ["tiny-clip", "clip-l-336"]
    refusals = {encoders_of(c): refusal for c, refusal in whole.built() if refusal}
    assert "token counts differ" in refusals["tiny-clip+clip-l-336"]


def test_a_space_with_nothing_in_it_is_refused_with_reasons() -> None:
    with pytest.raises(UserError, match=r"nothing in this space can be built \(.*token counts differ.*\)") as caught:
        space(encoders=("tiny-clip+clip-l-336", "clip-l-336@tiny-clip")).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"instruct": StageSpace(steps=(0, 3))}, "--instruct.steps 0 3: expected at least 1"),
        ({"encoder_rate": (1e-2, 1e-3)}, "--encoder-rate 0.01 0.001: expected two numbers above 0"),
    ],
)
def test_senseless_numbers_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Space(**fields)  # type: ignore[arg-type]


def test_a_rate_is_what_its_name_says() -> None:
    assert rounded(0.00123456) == 0.00123
    assert Choice("x", (1,)).when is None


def test_what_no_machine_holds_is_never_proposed() -> None:
    def too_large(candidate: Candidate) -> str | None:
        return "too large" if len(candidate.judged) > 1 else None

    whole = replace(space(encoders=NAMES, ensembles=True), too_large=too_large)
    assert sorted(encoders_of(c) for c in whole.points()) == ["tiny-advxl", "tiny-clip"]
    with pytest.raises(UserError, match=r"nothing in this space can be built \(too large\)"):
        replace(space(encoders=("tiny-clip+tiny-advxl",)), too_large=too_large).check()
