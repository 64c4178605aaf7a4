"""The answers of a benchmark's fixed sample list, which are wrong ones for others."""

from typing import Any

from rllava.data.benchmarks import read_metric
from rllava.data.listed import Listed, SampleList
from rllava.data.shards import list_shards, read_shard
from rllava.tasks.task import Task


def answer_bank(filesystem: Any, folder: str, task: Task) -> tuple[str, ...]:
    """The answers of a benchmark's fixed sample list that its task aims at where they are wrong."""
    shards = list_shards(filesystem, folder)
    columns = [read_shard(filesystem, shard, ["references"]).column("references").to_pylist() for shard in shards]
    return task.decoys([references or () for column in columns for references in column])


def sample_list(filesystem: Any, folder: str, task: Task) -> SampleList:
    """A benchmark's fixed list, without its images, with its metric."""
    metric, state = read_metric(filesystem, folder)
    rows = [
        Listed(row["sample_id"], row["prompt"], tuple(text for text in row["references"] or () if text.strip()))
        for shard in list_shards(filesystem, folder)
        for row in read_shard(filesystem, shard, ["sample_id", "prompt", "references"]).to_pylist()
    ]
    return SampleList(
        tuple(rows),
        lambda text, references: metric.score(metric.clean(text), references, state),
        task.drops,
        task.decoys([row.references for row in rows]),
    )
