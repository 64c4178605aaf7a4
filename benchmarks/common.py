"""What benchmarks share: a LLaVA that the ablation has trained, samples ready for it, and the sheet they write."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rllava.data.benchmarks import BenchmarkSpec, build_benchmark, read_metric
from rllava.data.shards import read_shard
from rllava.errors import UserError
from rllava.evaluation.samples import Sample, decode_shard
from rllava.filesystem import open_filesystem
from rllava.metrics.metric import Metric, MetricState
from rllava.model.assemble import load_llava
from rllava.model.llava import Llava
from rllava.recipes import PRESETS, parse_candidate
from rllava.specs import ModelSpec
from rllava.store import Store


def trained_llava(storage: Path, candidate: str) -> tuple[Llava, ModelSpec]:
    """A candidate of preset ``tiny`` as the ablation has trained it.

    Returns:
        The frozen model in float32, and its spec.

    Raises:
        UserError: if it is not there.
    """
    spec = parse_candidate(candidate, PRESETS.get("tiny").model).model
    assert isinstance(spec, ModelSpec)
    store = Store(str(storage))
    artifact = store.artifact("models", spec.name, spec)
    if not store.is_complete(artifact):
        raise UserError(f"no trained {candidate} under {storage}; run make ablation, or give another --storage")
    return load_llava(spec, store.filesystem, artifact.path, spec.encoders), spec


def ready_benchmark(benchmark: BenchmarkSpec, image_size: int) -> tuple[list[Sample], Metric, MetricState]:
    """A benchmark built and read back as the pipeline does.

    Args:
        benchmark: data, task and sample list.

    Returns:
        Its samples in order, its metric, and the metric's state.
    """
    with tempfile.TemporaryDirectory(prefix="rllava-benchmark-") as name:
        filesystem, folder = open_filesystem(name)
        shards = build_benchmark(benchmark, filesystem, folder)
        tables = [read_shard(filesystem, shard) for shard in shards]
        samples = [sample for table in tables for sample in decode_shard(table, image_size, needs=benchmark.task.needs)]
        return samples, *read_metric(filesystem, folder)


def write_sheet(path: Path, title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes a Markdown sheet: a title, what was run, a table.

    Args:
        text: the command and its settings.
    """
    table = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"# {title}", "", text, "", *table]) + "\n")
    print(f"written: {path}")
