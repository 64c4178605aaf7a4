"""A benchmark's bank of answers, from which wrong ones are taken as targets."""

from typing import Any

from rllava.data.shards import list_shards, read_shard
from rllava.tasks.task import Task


def answer_bank(filesystem: Any, folder: str, task: Task) -> tuple[str, ...]:
    """The answers of a benchmark's fixed sample list that its task aims at where they are wrong."""
    shards = list_shards(filesystem, folder)
    columns = [read_shard(filesystem, shard, ["references"]).column("references").to_pylist() for shard in shards]
    return task.decoys([references or () for column in columns for references in column])
