"""The published evaluation loop beside ours: the same protocol, weights and samples in one run, on one machine.

    python -m benchmarks.published_loop --robustvlm CHECKOUT --storage results --model tiny-tecoa4

The other side is the loop of RobustVLM and Robust-LLaVA (``vlm_eval/run_evaluation.py``): one image at a time, round by
round over all images, with their own APGD, logits of the whole sequence, and a greedy answer after every round. As
RobustVLM releases it, such an answer is made without a cache: the image is encoded and the whole text read again for
every token (``open_flamingo/eval/models/llava.py`` asks for ``use_cache=False``, ``llava_llama.py`` hands the image on
to every step); and attention is two matrix products and a softmax, as in the transformers commit that its requirements
pin. Ours is the attack worker as the pipeline runs it, without Ray. The model is one that the ablation has trained.
"""

import contextlib
import importlib.util
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import ready_benchmark, trained_llava, write_sheet
from rllava.attacks.common import PIXEL
from rllava.attacks.protocols import PROTOCOLS, in_precision
from rllava.attacks.rounds import BEST, SAME, Round
from rllava.conditions.attack import Attack, within
from rllava.data.benchmarks import BENCHMARKS, BenchmarkSpec
from rllava.errors import UserError
from rllava.evaluation.samples import Sample
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.shard_checks import CHECKED_PER_SHARD
from rllava.evaluation.victim import Victim
from rllava.metrics.metric import Metric, MetricState
from rllava.model.conversation import Tokens
from rllava.model.llava import Llava, spliced_labels
from rllava.specs import EvalSpec
from sweeps.console import run_script


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        robustvlm: folder of a checkout of chs20/RobustVLM.
        storage: local results folder of an ablation.
        model: candidate trained there.
        benchmarks: names.
        samples: of each.
        epsilon: in 1/255.
        protocol: name.
        fast_protocol: name of another protocol that ours runs too, in a row of its own beside the same published run.
        batch_size: of ours.
        as_released: whether the published side decodes and computes attention as released; False: as ours does.
        threads: of PyTorch.
        output: Markdown file to write.
    """

    robustvlm: Path
    storage: Path = Path("results")
    model: str = "tiny-tecoa4"
    benchmarks: tuple[str, ...] = ("easy_vqa", "easy_captions")
    samples: int = 128
    epsilon: float = 8.0
    protocol: str = "paper_ensemble_10steps"
    fast_protocol: str | None = None
    batch_size: int = 128
    as_released: bool = True
    threads: int = 2
    output: Path = Path("benchmarks/sheets/published_loop.md")


Worst = tuple[list[float], float]
"""Worst score per sample, and seconds."""

HEAD = (
    "benchmark", "score, published", "score, ours", "samples that differ", "samples/s, published", "samples/s, ours",
    "ratio",
)  # fmt: skip
"""Of the table of comparisons."""

TOLERANCE = 1e-6
"""Scores closer than this are equal."""


@dataclass(frozen=True)
class Comparison:
    """Both sides on the same samples.

    Attributes:
        label: benchmark, and our protocol where it is another one.
    """

    label: str
    theirs: Worst
    ours: Worst

    @property
    def ratio(self) -> float:
        """Our samples per second over theirs."""
        return self.theirs[1] / self.ours[1]

    @property
    def differing(self) -> int:
        """Samples whose scores are not equal."""
        return sum(abs(a - b) > TOLERANCE for a, b in zip(self.ours[0], self.theirs[0], strict=True))

    @property
    def higher(self) -> int:
        """Samples whose score is higher on our side: a weaker attack."""
        return sum(a > b + TOLERANCE for a, b in zip(self.ours[0], self.theirs[0], strict=True))

    def row(self) -> tuple[str, ...]:
        """Cells under :data:`HEAD`."""
        samples = len(self.theirs[0])
        return (
            self.label,
            f"{np.mean(self.theirs[0]):.2f}",
            f"{np.mean(self.ours[0]):.2f}",
            f"{self.differing} ({self.higher} higher)",
            f"{samples / self.theirs[1]:.3g}",
            f"{samples / self.ours[1]:.3g}",
            f"{self.ratio:.2f}",
        )


def published_code(checkout: Path) -> Any:
    """Imports the published attack.

    Args:
        checkout: of chs20/RobustVLM.

    Raises:
        UserError: if its code is not there.
    """
    code = checkout / "vlm_eval/attacks/apgd.py"
    spec = importlib.util.spec_from_file_location("published", code)
    if spec is None or spec.loader is None or not code.is_file():
        raise UserError(f"{code} is not there; --robustvlm takes the folder of a checkout of chs20/RobustVLM")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PublishedLoop:
    """Rounds over images one at a time, as published.

    Args:
        checkout: of chs20/RobustVLM.
        as_released: see :class:`Options`.
    """

    def __init__(
        self, checkout: Path, llava: Llava, metric: Metric, state: MetricState, as_released: bool = True
    ) -> None:
        self.published = published_code(checkout)
        self.llava, self.metric, self.state, self.as_released = llava, metric, state, as_released

    def run(self, evaluation: EvalSpec, samples: list[Sample]) -> Worst:
        """The whole protocol.

        Returns:
            Scores and seconds.
        """
        with released_attention(self.llava) if self.as_released else contextlib.nullcontext():
            return self.rounds(evaluation, samples)

    def rounds(self, evaluation: EvalSpec, samples: list[Sample]) -> Worst:
        """The whole protocol, with the model as it is.

        Returns:
            Scores and seconds.
        """
        started = time.perf_counter()
        benchmark = evaluation.benchmark
        images = [torch.from_numpy(s.pixels_HWC).permute(2, 0, 1)[None].float() * PIXEL for s in samples]
        worst = [self.answer(image, sample, benchmark) for image, sample in zip(images, samples, strict=True)]
        best_images, best_labels = list(images), [0] * len(samples)
        active = [not benchmark.task.drops(score) for score in worst]
        condition = evaluation.condition
        assert isinstance(condition, Attack)
        for entry in condition.protocol.rounds(benchmark.task.kind):
            for b, sample in enumerate(samples):
                labels = benchmark.task.labels(sample.references)
                number = best_labels[b] if entry.label == SAME else entry.label.number or 0
                text = entry.label.text or (labels[number] if number < len(labels) else None)
                if not active[b] or text is None:
                    continue
                start = best_images[b] - images[b] if entry.start == BEST else None
                image = self.attack(images[b], sample, text, entry, condition.epsilon, start)
                score = self.answer(image, sample, benchmark)
                if score < worst[b]:
                    worst[b], best_images[b] = score, image
                    if entry.label.of == "reference":
                        best_labels[b] = number
                active[b] = not benchmark.task.drops(score)
        return worst, time.perf_counter() - started

    def attack(
        self, image: Tensor, sample: Sample, text: str, entry: Round, epsilon: float, start: Tensor | None
    ) -> Tensor:
        """One run of the published APGD.

        Args:
            image: clean, [1, C, H, W].
            epsilon: in 1/255.
            start: perturbation to start from, or None.

        Returns:
            Adversarial image, [1, C, H, W].
        """
        tokens = self.llava.tokens(sample.prompt, text)
        sign = -1.0 if entry.targeted else 1.0
        found: Tensor = self.published.apgd(
            lambda pixels: sign * self.loss(pixels, tokens), image, "linf", epsilon * PIXEL,
            n_iter=entry.steps, alpha=1.0, pert_init=start,
        )[0]  # fmt: skip
        return found.detach()

    def loss(self, pixels_1CHW: Tensor, tokens: Tokens) -> Tensor:
        """Mean cross-entropy with logits of the whole sequence, as transformers computes it from labels.

        Returns:
            [1].
        """
        connector = self.llava.connector
        visual_1PD = connector.visual_tokens(self.llava.features(pixels_1CHW))
        embedded_TD = connector.embed(visual_1PD, [tokens.ids])[0]
        labels = torch.tensor([spliced_labels(tokens, visual_1PD.shape[1])])
        out = connector.language_model(inputs_embeds=embedded_TD[None], labels=labels)
        loss: Tensor = out.loss[None]
        return loss

    def answer(self, image: Tensor, sample: Sample, benchmark: BenchmarkSpec) -> float:
        """Score of the greedy answer.

        Args:
            image: [1, C, H, W].

        Returns:
            In the metric's units.
        """
        tokens = self.llava.tokens(sample.prompt)
        if self.as_released:
            text = self.decoded(image, tokens, benchmark.task.decoding.max_new_tokens)
        else:
            text = self.llava.generate(image, [tokens], benchmark.task.decoding.max_new_tokens)[0]
        return self.metric.score(self.metric.clean(text), sample.references, self.state)

    @torch.no_grad()
    def decoded(self, image: Tensor, tokens: Tokens, max_new_tokens: int) -> str:
        """A greedy answer without a cache.

        Args:
            image: [1, C, H, W].
            max_new_tokens: at most so many tokens.
        """
        connector, ids = self.llava.connector, list(tokens.ids)
        for _ in range(max_new_tokens):
            visual_1PD = connector.visual_tokens(self.llava.features(image))
            embedded_TD = connector.embed(visual_1PD, [ids])[0]
            logits_1TV = connector.language_model(inputs_embeds=embedded_TD[None], use_cache=False).logits
            ids.append(int(logits_1TV[0, -1].argmax()))
            if ids[-1] in self.llava.stop_ids:
                break
        answer: str = self.llava.tokenizer.decode(ids[len(tokens.ids) :], skip_special_tokens=True)
        return answer.strip()


@contextlib.contextmanager
def released_attention(llava: Llava) -> Iterator[None]:
    """A stretch of code in which the parts of a model that are transformers' compute attention step by step.

    Yields:
        Nothing.
    """
    parts = [llava.connector.language_model, *(part for encoder in llava.encoders for part in encoder.children())]
    models = [cast(Any, part) for part in parts if hasattr(part, "set_attn_implementation")]
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            model.set_attn_implementation("eager")
        yield
    finally:
        for model, name in zip(models, before, strict=True):
            model.set_attn_implementation(name)


def ours(
    evaluation: EvalSpec, llava: Llava, samples: list[Sample], metric: Metric, state: MetricState,
    checked: int = CHECKED_PER_SHARD,
) -> Worst:  # fmt: skip
    """The attack worker.

    Args:
        checked: how many attacks are checked: as the pipeline does, or 0, for the same work as the published loop's.

    Returns:
        Scores and seconds.
    """
    started = time.perf_counter()
    worker = Victim(llava, torch.device("cpu"))
    bank = evaluation.benchmark.task.decoys([sample.references for sample in samples])
    ((_, table),) = evaluate_shard(worker, samples, [evaluation], metric, state, bank=bank, checked=checked)
    return table.column("score").to_pylist(), time.perf_counter() - started


def compare(
    checkout: Path, evaluation: EvalSpec, llava: Llava, samples: list[Sample], metric: Metric, state: MetricState,
    fast_protocol: str | None = None, checked: int = CHECKED_PER_SHARD, as_released: bool = True,
) -> list[Comparison]:  # fmt: skip
    """Runs and prints both sides.

    Args:
        checkout: of chs20/RobustVLM.
        fast_protocol: name of another protocol that ours runs too, or None.
        checked: how many attacks are checked: as the pipeline does, or 0, for the same work as the published loop's.
        as_released: see :class:`Options`.

    Returns:
        The comparison, and that of the other protocol with the same published run.
    """
    sides = [(evaluation.benchmark.name, evaluation)]
    if fast_protocol is not None:
        assert isinstance(evaluation.condition, Attack)
        protocol = in_precision(PROTOCOLS.get(fast_protocol), "float32")
        other = replace(evaluation, condition=replace(evaluation.condition, protocol=protocol))
        sides.append((f"{evaluation.benchmark.name}, {fast_protocol}", other))
    theirs = PublishedLoop(checkout, llava, metric, state, as_released).run(evaluation, samples)
    compared = []
    for label, side in sides:
        compared.append(Comparison(label, theirs, ours(side, llava, samples, metric, state, checked)))
        print(*compared[-1].row(), sep=" | ", flush=True)
    return compared


def published_side(as_released: bool) -> str:
    """How the published side computes.

    Args:
        as_released: see :class:`Options`.
    """
    return "as released" if as_released else "given our attention and cached decoding"


def main(options: Options) -> None:
    """Runs both sides and writes the sheet.

    Args:
        options: see :class:`Options`.
    """
    torch.set_num_threads(options.threads)
    llava, model = trained_llava(options.storage, options.model)
    compared = []
    for name in options.benchmarks:
        benchmark = replace(BENCHMARKS.get(name), samples=options.samples)
        samples, metric, state = ready_benchmark(benchmark, llava.image_size)
        protocol = in_precision(PROTOCOLS.get(options.protocol), "float32")
        condition = within(protocol, options.epsilon)
        evaluation = EvalSpec(options.model, model, model.encoders, benchmark, condition, options.batch_size)
        compared += compare(
            options.robustvlm, evaluation, llava, samples, metric, state, options.fast_protocol,
            as_released=options.as_released,
        )  # fmt: skip
    write_sheet(
        options.output,
        "The published evaluation loop beside ours",
        f"`python -m benchmarks.published_loop`: {options.model} of the ablation, {options.protocol} at "
        f"{options.epsilon:g}/255 on {options.samples} samples per benchmark, float32, {options.threads} threads\n"
        f"({platform.machine()}, torch {torch.__version__}); ours with batches of {options.batch_size}; "
        f"published side {published_side(options.as_released)}.",
        HEAD,
        [comparison.row() for comparison in compared],
    )


if __name__ == "__main__":
    run_script(main, Options, __doc__)
