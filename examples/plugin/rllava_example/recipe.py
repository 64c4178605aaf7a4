"""A recipe: that of preset smoke, whose second stage trains the encoder too, on images with noise."""

from collections.abc import Callable
from dataclasses import replace

from rllava.recipes import PRESETS, Grid, named
from rllava.specs import Rates


def add(register: Callable[[str, Grid], Grid]) -> None:
    smoke = PRESETS.get("smoke")
    aligned, instructed = smoke.model.stages
    rates = Rates(projectors=1e-3, language_model=1e-3, encoders=1e-4)
    tuned = replace(instructed, rates=rates, objective="llava_on_noise")
    about = "as smoke, with an encoder that is trained along, on noise"
    model = replace(smoke.model, stages=(aligned, tuned))
    register("smoke_tuned", replace(smoke, name="smoke_tuned", about=about, candidates=named(model, "tiny-clip")))
