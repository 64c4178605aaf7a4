"""The embedded data, encoders and language model; and the same parts in a minute, to see that everything runs."""

from dataclasses import replace

from rllava.attacks.protocols import PROTOCOLS
from rllava.conditions.attack import at_budgets
from rllava.data.benchmarks import BENCHMARKS
from rllava.data.instructions import INSTRUCTIONS
from rllava.encoders import encoder_spec
from rllava.model.language import TINY_LLAMA
from rllava.recipes.candidate import named
from rllava.recipes.grid import PRESETS, Grid
from rllava.specs import ModelSpec, Rates, Stage


def tiny() -> Grid:
    """The encoder ablation in minutes on two CPU cores."""
    align = Stage(
        data=INSTRUCTIONS.get("easy_align"),
        rates=Rates(projectors=5e-3),
        conversation="plain",
        steps=100,
        global_batch=32,
        micro_batch=32,
    )
    instruct = replace(
        align,
        data=INSTRUCTIONS.get("easy_instruct"),
        rates=Rates(projectors=1e-3, language_model=1e-3),
        conversation="vicuna_v1_short",
        steps=300,
    )
    model = ModelSpec((encoder_spec("tiny-clip"),), TINY_LLAMA, (align, instruct))
    names = ("tiny-clip", "tiny-tecoa4", "tiny-advxl", "tiny-clip+tiny-advxl")
    plugged = ("tiny-fare4@tiny-clip", "tiny-tecoa4@tiny-clip")
    benchmarks = map(BENCHMARKS.get, ("easy_vqa", "easy_captions"))
    return Grid(
        name="tiny",
        about="the embedded data, encoders and language model: minutes on two CPU cores",
        candidates=named(model, *names, *plugged),
        benchmarks=tuple(replace(spec, samples=64, rows_per_shard=32) for spec in benchmarks),
        conditions=at_budgets(PROTOCOLS.get("paper_ensemble_10steps"), (0.0, 2.0, 4.0, 8.0, 16.0)),
        batch_size=32,
        checkpoint_every=200,
        corrupted_at=64,
    )


def smoke() -> Grid:
    """Hardly any training and attack steps."""
    whole = tiny()
    align, instruct = (replace(stage, global_batch=16, micro_batch=8) for stage in whole.model.stages)
    model = replace(whole.model, stages=(replace(align, steps=4), replace(instruct, steps=6)))
    return replace(
        whole,
        name="smoke",
        about="the same parts with hardly any training and attack steps: shows that everything runs, nothing else",
        candidates=named(model, "tiny-clip", "tiny-fare4@tiny-clip"),
        benchmarks=tuple(replace(spec, samples=8, rows_per_shard=4) for spec in whole.benchmarks),
        conditions=at_budgets(PROTOCOLS.get("paper_ensemble_3steps"), (0.0, 8.0)),
        batch_size=4,
        checkpoint_every=2,
    )


PRESETS.register("tiny", tiny())
PRESETS.register("smoke", smoke())
