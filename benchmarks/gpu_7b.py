"""Speed of an attack on LLaVA-1.5-7B's shapes on one GPU: seconds and memory per sample, and where the time goes.

    python -m benchmarks.gpu_7b                               # towers one after the other, on the GPU
    python -m benchmarks.gpu_7b --shapes tiny --device cpu    # the same code on a small model, in seconds

The weights are random, since speed depends on shapes and not on values; nothing is downloaded. It needs PyTorch,
transformers and safetensors; neither Ray nor DeepSpeed nor a data set.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from benchmarks.gpu.bench import say
from benchmarks.gpu.device import machine_name
from benchmarks.gpu.flops import matrix_rates
from benchmarks.gpu.measure import measure_tower
from benchmarks.gpu.models import build_language_model
from benchmarks.gpu.options import Options
from benchmarks.gpu.shapes import SHAPES
from benchmarks.gpu.sheet import Report, goal_lines, sheet
from rllava.errors import SweepError, UserError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return int(text)


def parse(arguments: Sequence[str] | None) -> Options:
    """Reads the command line.

    Args:
        arguments: without the program's name; None: those of the process.

    Raises:
        UserError: if something is wrong with them.
    """
    parser = _Parser("python -m benchmarks.gpu_7b", description=(__doc__ or "").split("\n")[0])
    towers = list(SHAPES["7b"].towers)
    parser.add_argument("--shapes", choices=list(SHAPES), default="7b")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda if there is a GPU)")
    parser.add_argument("--towers", nargs="+", choices=towers, default=towers)
    parser.add_argument("--steps", type=_positive, default=10, help="of the attacks that are timed")
    parser.add_argument("--repeats", type=_positive, default=3, help="timings of which the median counts")
    parser.add_argument("--max-batch", type=_positive, default=64, help="largest batch, if memory allows it")
    parser.add_argument("--prompt-tokens", type=_positive, default=40, help="text tokens around the image")
    parser.add_argument("--answer-tokens", type=_positive, default=12, help="labelled, the end token among them")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16", help="of the weights")
    parser.add_argument("--compile", action="store_true", help="time the best batch with torch.compile, too")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/sheets/gpu_7b.md"), help="sheet to write")
    given = vars(parser.parse_args(arguments))
    device = _device(given.pop("device"), given["shapes"])
    options = Options(device=device, towers=tuple(dict.fromkeys(given.pop("towers"))), **given)
    _check_output(options.output)
    return options


def _device(name: str | None, shapes: str) -> torch.device:
    """The wanted device, or a mistake said before anything is built."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ("cuda" if available else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {name}: unknown; give cuda, cuda:N or cpu") from error
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"--device {name}: neither cuda nor cpu, which is what this measures")
    if device.type == "cuda" and (device.index or 0) >= available:
        raise UserError(f"--device {name}: this machine shows {available} CUDA GPUs; --shapes tiny also runs on cpu")
    if device.type == "cpu" and shapes != "tiny":
        raise UserError(f"--shapes {shapes} needs a CUDA GPU, and the device is cpu; --shapes tiny runs on a CPU")
    return device


def _check_output(path: Path) -> None:
    """Says before the measurements, not after them, that the sheet cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path}: cannot make its folder ({error.strerror}); give another path") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--output {path}: no file that can be written; give another path")


def run(options: Options) -> Report:
    """Measures, and writes the sheet anew after every tower."""
    torch.manual_seed(0)
    if options.device.type == "cuda":
        torch.cuda.set_device(options.device)
    shapes = SHAPES[options.shapes]
    say(f"{machine_name(options.device)}, torch {torch.__version__}")
    report = Report(options, shapes, matrix_rates(shapes, options))
    language_model = build_language_model(shapes, options.dtype, options.device)
    for name in options.towers:
        report.results.append(measure_tower(name, language_model, shapes, options))
        options.output.write_text(sheet(report))
    for line in goal_lines(report):
        say(line)
    say(f"written: {options.output}")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """The script.

    Args:
        arguments: of the command line; None: those of the process.

    Returns:
        Exit status: 0 done, 1 something failed, 2 a mistake in the arguments, 130 interrupted.
    """
    try:
        run(parse(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (SweepError, torch.OutOfMemoryError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the sheet holds the towers that were done", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
