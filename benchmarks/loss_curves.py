"""Draws the loss against the step for the presets of the attacks on one LLaVA, each from the same clean images.

python -m benchmarks.loss_curves --storage results --output docs/loss-curves.png
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import altair as alt
import pandas as pd
import torch
from torch import Tensor

from analysis.report import render_png
from benchmarks.common import ready_benchmark, trained_llava
from rllava.attacks import apgd, random_noise, square
from rllava.attacks.common import PIXEL
from rllava.data.benchmarks import BENCHMARKS
from sweeps.console import run_script


@dataclass(frozen=True)
class Options:
    """What to draw.

    Attributes:
        storage: local results folder of an ablation.
        model: candidate trained there.
        benchmark: name.
        samples: how many.
        epsilon: in 1/255.
        steps: of the gradient attacks, and queries of the others.
        output: PNG file to write.
    """

    storage: Path = Path("results")
    model: str = "tiny-tecoa4"
    benchmark: str = "easy_captions"
    samples: int = 32
    epsilon: float = 8.0
    steps: int = 100
    output: Path = Path("docs/loss-curves.png")


def main(options: Options) -> None:
    """Attacks and draws.

    Args:
        options: see :class:`Options`.
    """
    llava, _ = trained_llava(options.storage, options.model)
    spec = replace(BENCHMARKS.get(options.benchmark), samples=options.samples)
    samples, _, _ = ready_benchmark(spec, llava.image_size)
    images_BCHW = torch.stack([torch.from_numpy(s.pixels_HWC) for s in samples]).permute(0, 3, 1, 2).float() * PIXEL
    tokens = [llava.tokens(sample.prompt, spec.task.labels(sample.references)[0]) for sample in samples]

    def loss(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        return llava.answer_loss(pixels_BCHW, [tokens[b] for b in index_B.tolist()])

    epsilon, steps, seeds = options.epsilon, options.steps, range(len(samples))
    clean = apgd(loss, images_BCHW, epsilon=epsilon, steps=steps)
    surface = apgd(loss, images_BCHW, epsilon=epsilon, steps=steps, start="surface", step_size=2.0, seeds=seeds)
    curves = {
        "APGD, clean start, first step 1 ε": clean.history.loss_SB,
        "APGD, start on the surface, first step 2 ε": surface.history.loss_SB,
        "Square (one query per step)": square(
            loss, images_BCHW, epsilon=epsilon, queries=steps + 1, seeds=seeds
        ).loss_QB,
        "random noise (one draw per step)": random_noise(
            loss, images_BCHW, epsilon=epsilon, draws=steps + 1, seeds=seeds
        ).loss_QB,
    }
    rows = [
        {"attack": name, "step": step, "loss": float(value)}
        for name, loss_SB in curves.items()
        for step, value in enumerate(loss_SB.cummax(0).values.mean(1))
    ]
    lines = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("loss:Q", title="best loss so far, mean over samples"),
            color=alt.Color("attack:N", title=None, sort=list(curves), legend=alt.Legend(labelLimit=320)),
        )
    )
    about = f"{options.model}, {options.benchmark}, {len(samples)} samples, ε = {epsilon:g}/255"
    title = alt.Title("Loss against step", subtitle=about, anchor="start")
    chart = cast(alt.LayerChart, alt.layer(lines, width=560, height=300, title=title))  # no row or column: no facets
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(render_png(chart))
    for name, loss_SB in curves.items():
        best_SB = loss_SB.cummax(0).values.mean(1)
        marks = ", ".join(f"{float(best_SB[s]):.2f}" for s in (0, 10, 20, 50, 100) if s < len(best_SB))
        print(f"{name}: {marks} (after 0, 10, 20, 50, 100)")
    print(f"written: {options.output}")


if __name__ == "__main__":
    run_script(main, Options, __doc__)
