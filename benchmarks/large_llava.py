"""The published evaluation loop beside ours on a LLaVA of about 100M parameters: matrix products, not Python, decide.

    python -m benchmarks.large_llava --robustvlm CHECKOUT

The weights are random, so the references are what the model itself answers to the clean images; a caption has the
sample's own captions beside it, so that a protocol has several rounds to run. Both sides attack the same weights,
prompts and samples with the same number of threads (:mod:`benchmarks.published_loop` says what each of them is).
"""

import platform
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.common import ready_benchmark, write_sheet
from benchmarks.published_loop import HEAD, Comparison, compare, published_code, published_side
from benchmarks.random_llava import Size, parameters, random_llava
from rllava.attacks.protocols import PROTOCOLS, in_precision
from rllava.conditions.attack import within
from rllava.conditions.clean import Clean
from rllava.data.benchmarks import ANNOTATORS, BENCHMARKS
from rllava.evaluation.samples import Sample
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.shard_checks import CHECKED_PER_SHARD
from rllava.evaluation.victim import Victim
from rllava.metrics.metric import Metric, MetricState
from rllava.model.llava import Llava
from rllava.specs import EvalSpec
from sweeps.console import run_script

GOAL = 1.5
"""So many times the published loop's samples per second, in every benchmark."""


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        robustvlm: folder of a checkout of chs20/RobustVLM.
        size: of the model.
        seed: of its weights.
        benchmarks: names.
        samples: of each.
        epsilon: in 1/255; small, as random weights give in to larger budgets in the first round, and no other is run.
        protocol: name.
        fast_protocol: name of another protocol that ours runs too, in a row of its own beside the same published run.
        batch_size: of ours.
        checked: whether ours also checks the attacks of the first samples, as the pipeline does for every shard. With a
            shard of so few samples that would be most of its work, and the published loop has nothing like it.
        as_released: whether the published side decodes and computes attention as released; False: as ours does.
        captions: how many of a sample's own captions stand beside the model's.
        threads: of PyTorch.
        output: Markdown file to write.
    """

    robustvlm: Path
    size: Size = field(default_factory=Size)
    seed: int = 0
    benchmarks: tuple[str, ...] = ("easy_vqa", "easy_captions")
    samples: int = 8
    epsilon: float = 0.25
    protocol: str = "paper_ensemble_10steps"
    fast_protocol: str | None = None
    batch_size: int = 8
    checked: bool = False
    as_released: bool = True
    captions: int = 2
    threads: int = 2
    output: Path = Path("benchmarks/sheets/large_llava.md")


def answered_by_itself(
    llava: Llava, evaluation: EvalSpec, samples: list[Sample], metric: Metric, state: MetricState, captions: int
) -> tuple[list[Sample], MetricState]:
    """Samples whose references are the model's own clean answers, so that there is something to attack.

    Args:
        state: of the metric, for the samples as they are.
        captions: how many of the sample's own references a captioning sample keeps.

    Returns:
        The samples, and the state of the metric for them.
    """
    worker = Victim(llava, torch.device("cpu"))
    clean = replace(evaluation, condition=Clean(evaluation.precisions[0]))
    ((_, table),) = evaluate_shard(worker, samples, [clean], metric, state)
    answers = [answer or "nothing" for answer in table.column("clean_prediction").to_pylist()]
    if evaluation.benchmark.task.kind == "captioning":
        references = [(answer, *sample.references[:captions]) for answer, sample in zip(answers, samples, strict=True)]
    else:
        references = [(answer,) * ANNOTATORS for answer in answers]
    answered = [replace(sample, references=texts) for sample, texts in zip(samples, references, strict=True)]
    return answered, metric.prepare([sample.references for sample in answered])


def verdict(compared: list[Comparison]) -> str:
    """Says whether the goal is met.

    Args:
        compared: the rows of one protocol.
    """
    met = all(comparison.ratio >= GOAL for comparison in compared)
    ratios = ", ".join(f"{comparison.ratio:.2f} on {comparison.label}" for comparison in compared)
    return (
        f"Goal, {GOAL} times as many samples per second at the same protocol: {'met' if met else 'not met'} ({ratios})."
    )


def described(llava: Llava) -> str:
    """What the model consists of."""
    counts = [parameters(part) / 1e6 for part in (llava, llava.encoders, llava.connector.language_model)]
    return "{:.1f}M random parameters, {:.1f}M of them in the encoder, {:.1f}M in the language model".format(*counts)


def main(options: Options) -> None:
    """Runs both sides and writes the sheet.

    Args:
        options: see :class:`Options`.
    """
    torch.set_num_threads(options.threads)
    protocol = in_precision(PROTOCOLS.get(options.protocol), "float32")
    published_code(options.robustvlm)  # before anything that takes time
    llava, model = random_llava(options.size, options.seed)
    print(described(llava), flush=True)
    rows, same = [], []
    for name in options.benchmarks:
        benchmark = replace(BENCHMARKS.get(name), samples=options.samples)
        samples, metric, state = ready_benchmark(benchmark, llava.image_size)
        condition = within(protocol, options.epsilon)
        evaluation = EvalSpec("random", model, model.encoders, benchmark, condition, options.batch_size)
        samples, state = answered_by_itself(llava, evaluation, samples, metric, state, options.captions)
        compared = compare(
            options.robustvlm,
            evaluation,
            llava,
            samples,
            metric,
            state,
            options.fast_protocol,
            CHECKED_PER_SHARD if options.checked else 0,
            options.as_released,
        )
        same.append(compared[0])
        rows += [comparison.row() for comparison in compared]
    print(verdict(same))
    write_sheet(
        options.output,
        "The published evaluation loop beside ours, on a large model",
        f"`python -m benchmarks.large_llava`: {described(llava)}; {options.protocol}\nat {options.epsilon:g}/255 on "
        f"{options.samples} samples per benchmark, float32, {options.threads} threads ({platform.machine()}, torch "
        f"{torch.__version__}); ours with\nbatches of {options.batch_size}, {'with' if options.checked else 'without'} "
        "attack checks. References are the model's own clean answers, for captions\n"
        f"with {options.captions} of the sample's. Published side {published_side(options.as_released)}.\n\n"
        f"{verdict(same)}",
        HEAD,
        rows,
    )


if __name__ == "__main__":
    run_script(main, Options, __doc__)
