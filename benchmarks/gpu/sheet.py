"""The measurements as a Markdown sheet, judged by the goals."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.gpu.device import GIB, machine_name
from benchmarks.gpu.options import Options
from benchmarks.gpu.results import ATTACK_STEPS, PARTS, MatrixRate, TowerResult
from benchmarks.gpu.shapes import Shapes
from rllava.torchvision_shim import declare_missing_operators

declare_missing_operators()  # before transformers is imported

import transformers  # noqa: E402

GOAL_TOWER = "clip-l"
GOAL_SECONDS = 5.0
"""Per sample for APGD-100 with that tower, at most."""
GOAL_SHARE = 0.55
"""Of the machine's measured matrix rate, at least."""


@dataclass(frozen=True)
class Report:
    """What the sheet is made of; it grows tower by tower."""

    options: Options
    shapes: Shapes
    rates: tuple[MatrixRate, ...]
    results: list[TowerResult] = field(default_factory=list)

    @property
    def matrix_rate(self) -> float:
        """The machine's measured rate: the largest, in FLOP/s."""
        return max(rate.rate for rate in self.rates)


def sheet(report: Report) -> str:
    """The report as Markdown.

    Args:
        report: of all towers so far.
    """
    return "\n\n".join(
        [
            f"# APGD-{ATTACK_STEPS} on the shapes of a LLaVA ({report.options.shapes})",
            _how(report),
            "\n".join(goal_lines(report)),
            "## Per tower\n\n" + _table_of_towers(report),
            "## Per batch size\n\n" + _table_of_batches(report),
            "## Where a step's time goes, at the best batch size\n\n" + _table_of_parts(report),
            "## Matrix products\n\n" + _table_of_products(report),
        ]
    ) + "\n"  # fmt: skip


def _how(report: Report) -> str:
    options, shapes = report.options, report.shapes
    sequence = options.prompt_tokens + shapes.visual_tokens + options.answer_tokens
    cuda = f", CUDA {torch.version.cuda}" if options.device.type == "cuda" else ""
    return (
        f"`{options.command}` on {machine_name(options.device)}; Python {platform.python_version()}, "
        f"torch {torch.__version__}{cuda}, transformers {transformers.__version__}.\n\n"
        f"Random weights in {options.precision}; image, perturbation and projection in float32. {shapes.visual_tokens} "
        f"visual and {options.prompt_tokens} text tokens, {options.answer_tokens} labelled ones: {sequence} in all. "
        f"Attacks of {options.steps} steps were timed after a warm-up, the median of {options.repeats}; seconds per "
        f"sample are those of {ATTACK_STEPS} steps and 1 forward pass, divided by the batch. The towers' layers "
        "behind the one whose output LLaVA takes are not built. A step's operations are counted by PyTorch as it runs: "
        "forward, and backward to the pixels; the language model's causal attention is counted in full, though its "
        "kernels skip half. The share is of the fastest matrix product below."
    )


def goal_lines(report: Report) -> list[str]:
    """Whether the measurements meet the goals.

    Args:
        report: of all towers so far.
    """
    if report.options.shapes != "7b":
        return ["Goals: for the shapes of 7b only."]
    lines = []
    for result in report.results:
        for what, batch in (("", result.best), (", compiled", result.compiled)):
            if batch is None:
                continue
            share = result.rate(batch) / report.matrix_rate
            place = f"{result.tower.label}{what}, batch {batch.count}"
            if result.name == GOAL_TOWER:
                met = "met" if batch.sample_s <= GOAL_SECONDS else "missed"
                lines.append(f"- Goal, at most {GOAL_SECONDS:g} s per sample, {met}: {batch.sample_s:.4g} s ({place}).")
            met = "met" if share >= GOAL_SHARE else "missed"
            lines.append(f"- Goal, {GOAL_SHARE:.0%} of the measured matrix rate, {met}: {share:.1%} ({place}).")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _table_of_towers(report: Report) -> str:
    rows = []
    for result in report.results:
        best, tower, flops, memory = result.best, result.tower, result.flops, result.sample_bytes
        rows.append(
            (
                tower.label, f"{tower.layers_run} of {tower.layers}", f"{result.weight_bytes / GIB:.4g}",
                "–" if memory is None else f"{memory / GIB:.3g}", f"{flops.counted / 1e12:.4g}",
                f"{flops.estimated / 1e12:.4g}", f"{flops.attention / flops.counted:.1%}", str(best.count),
                f"{best.sample_s:.4g}", f"{result.batches[0].sample_s:.4g}",
                f"{result.rate(best) / report.matrix_rate:.1%}",
            )
        )  # fmt: skip
    return _table(
        (
            "tower", "layers run", "weights, GiB", "GiB per sample", "TFLOP per sample and step", "estimated",
            "of which attention", "best batch", "s per sample", "s per sample, batch 1", "share of matrix rate",
        ),
        rows,
    )  # fmt: skip


def _table_of_batches(report: Report) -> str:
    rows: list[Sequence[str]] = []
    for result in report.results:
        measured = [(str(batch.count), batch) for batch in result.batches]
        if result.compiled is not None:
            measured.append((f"{result.compiled.count}, compiled", result.compiled))
        for size, batch in measured:
            rate, memory = result.rate(batch), batch.peak_bytes
            rows.append(
                (
                    result.tower.label, size, f"{batch.sample_s:.4g}", f"{1000 * batch.step_s:.4g}",
                    f"{1000 * batch.forward_s:.4g}", f"{rate / 1e12:.4g}", f"{rate / report.matrix_rate:.1%}",
                    "–" if memory is None else f"{memory / GIB:.4g}",
                )
            )  # fmt: skip
        if result.too_large is not None:
            rows.append((result.tower.label, str(result.too_large), "out of memory", *["–"] * 5))
    return _table(
        ("tower", "batch", "s per sample", "ms per step", "ms per forward", "TFLOP/s", "share", "peak GiB"), rows
    )


def _table_of_parts(report: Report) -> str:
    rows = []
    for result in report.results:
        total = sum(result.parts_s.values())
        cells = [f"{seconds / total:.1%} ({1000 * seconds:.4g} ms)" for seconds in result.parts_s.values()]
        rows.append((result.tower.label, str(result.best.count), *cells, f"{1000 * total:.4g} ms"))
    return _table(("tower", "batch", *PARTS, "step"), rows)


def _table_of_products(report: Report) -> str:
    rows = [(f"{rate.rows} x {rate.inner} x {rate.columns}", f"{rate.rate / 1e12:.4g}") for rate in report.rates]
    return _table(("product", "TFLOP/s"), rows)
