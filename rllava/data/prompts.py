"""Benchmarks of prompts in a file that the user names: what they are is its content, not where it lies."""

import dataclasses
import hashlib
import os
from pathlib import Path

from rllava.data.benchmarks import PROMPTS, BenchmarkSpec
from rllava.data.prompt_files import parse_prompts, read_content
from rllava.missing import Missing
from rllava.pinned import NOTHINGS_HASH, Pinned
from rllava.tasks.continuation import INSTRUCTION_PROMPT, PUBLISHED_DECODING, Continuation
from rllava.tasks.task import Task

INSTRUCTIONS = Continuation(INSTRUCTION_PROMPT, PUBLISHED_DECODING)


def prompts_benchmark(
    path: str | Path, task: Task = INSTRUCTIONS, *, samples: int = 0, seed: int = 42, rows_per_shard: int = 25
) -> BenchmarkSpec:
    """Describes a benchmark of the prompts in a file, see :mod:`rllava.data.prompt_files`; the file is not opened.

    Args:
        task: that needs neither images nor references.
        samples: length of the sample list; 0: all prompts of the file, which :func:`pin_benchmark` counts.
        seed: of the sample list.

    Returns:
        A spec named by the file, without its ending. It has no fingerprint until it is pinned.
    """
    file = Path(os.path.abspath(os.path.expanduser(path)))
    return BenchmarkSpec(
        file.stem, PROMPTS, "all", samples, seed, task, rows_per_shard=rows_per_shard, file=Pinned(str(file))
    )


def is_pinned(spec: BenchmarkSpec) -> bool:
    """Whether a benchmark says all that decides what its rows are, so that its file may be gone once it is built."""
    return spec.file is None or (spec.file.sha256 is not None and spec.samples > 0)


def missing_prompts(spec: BenchmarkSpec) -> list[Missing]:
    """The file of a benchmark, if it is not there; it is not opened."""
    if spec.file is None or os.path.exists(spec.file.path):
        return []
    return [Missing(f"prompts of benchmark {spec.name}", spec.file.path, "the command line")]


PROMPTS_ASSUMED = 100
"""How many prompts a file that is not there is taken to hold, where a plan is made without it."""


def stand_in_file(spec: BenchmarkSpec) -> BenchmarkSpec:
    """A benchmark that has a fingerprint though its file is not looked at: nothing is found by it."""
    if spec.file is None or is_pinned(spec):
        return spec
    file = Pinned(spec.file.path, NOTHINGS_HASH)
    return dataclasses.replace(spec, samples=spec.samples or PROMPTS_ASSUMED, file=file)


def pin_benchmark(spec: BenchmarkSpec) -> BenchmarkSpec:
    """A benchmark that means one content of its file.

    Returns:
        The spec with the hash and, where it asks for all, the number of prompts; as it is if it has no file, or is
        pinned and its file is gone.

    Raises:
        UserError: if the file cannot be read, has another hash, or is not in its format.
    """
    if spec.file is None or (is_pinned(spec) and missing_prompts(spec)):
        return spec
    path = Path(spec.file.path)
    content = read_content(path, spec.file.sha256)
    count = len(parse_prompts(content, path))
    file = Pinned(spec.file.path, hashlib.sha256(content).hexdigest())
    return dataclasses.replace(spec, samples=spec.samples or count, file=file)
