"""Samples on their way from a benchmark's shard to an attack worker. Light: the tasks that decode import no torch."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rllava.conditions.condition import Views
from rllava.data.images import DamagedImage, fit, preprocess
from rllava.data.shards import read_shard
from rllava.store import Store
from rllava.tasks.task import Needs

IMAGE_AND_REFERENCES = Needs()


@dataclass(frozen=True)
class Sample:
    """One sample, ready for the model.

    Attributes:
        pixels_HWC: uint8 in the encoder's input space; None where there is an error, or no image.
        error: why the sample cannot be scored, or None.
        row: position in the benchmark's fixed list.
        judged_as: what judges are told was asked; None: the prompt.
        views: what a condition shows instead, as ``pixels_HWC``; none where it shows nothing else.
    """

    sample_id: str
    prompt: str
    references: tuple[str, ...]
    pixels_HWC: np.ndarray | None
    error: str | None
    row: int = 0
    views: tuple[np.ndarray, ...] = ()
    judged_as: str | None = None


def decode_shard(
    table: pa.Table, image_size: int, views: Views | None = None, needs: Needs = IMAGE_AND_REFERENCES
) -> list[Sample]:
    """Samples of a benchmark's shard; what is wrong with one becomes its error.

    Args:
        table: rows of ``BENCHMARK_SCHEMA``.
        image_size: of the encoder, in pixels.
        views: makes other images of each; None: none.
        needs: what the benchmark's task needs of a row.
    """
    samples = []
    for row in table.to_pylist():
        pixels, error = None, None
        shown: tuple[np.ndarray, ...] = ()
        references = tuple(text for text in row["references"] or () if text.strip())
        if row["image"] is None:
            error = "no image" if needs.image else None
        else:
            try:
                pixels = preprocess(row["image"], image_size)
            except DamagedImage as damage:
                error = f"damaged image: {damage}"
        try:
            if views is not None and pixels is not None:
                shown = tuple(fit(view, image_size) for view in views(row["image"], row["sample_id"]))
        except DamagedImage as damage:
            error = f"cannot be shown: {damage}"
        if error is None and needs.references and not references:
            error = "no references"
        head = (row["sample_id"], row["prompt"], references, pixels, error, row["row"])
        samples.append(Sample(*head, shown, row["question"]))
    return samples


def load_unit(
    item: dict[str, Any], storage: str, image_size: int, views: Mapping[int, Views | None], needs: Mapping[str, Needs]
) -> dict[str, Any]:
    """Reads and decodes a shard (in a CPU task).

    Args:
        item: a unit of work: benchmark, path, shard number, indices of evaluations.
        image_size: of the encoder, in pixels.
        views: what each evaluation makes of the images, by its index.
        needs: what the tasks of benchmarks need of a row, by the benchmark's name.

    Returns:
        The unit with its samples as one serialised table.
    """
    table = read_shard(Store(storage).filesystem, item["path"])
    samples = decode_shard(table, image_size, views[int(item["indices"][0])], needs=needs[item["benchmark"]])
    kept = {name: item[name] for name in ("benchmark", "shard", "indices")}
    return {**kept, "samples": pack(samples)}


def pack(samples: Sequence[Sample]) -> bytes:
    """Samples as one Arrow stream, so that Ray ships a single buffer of 8-bit pixels."""
    table = pa.table(
        {
            "sample_id": [sample.sample_id for sample in samples],
            "prompt": [sample.prompt for sample in samples],
            "references": pa.array([list(sample.references) for sample in samples], pa.list_(pa.string())),
            "pixels": pa.array(
                [None if sample.pixels_HWC is None else sample.pixels_HWC.tobytes() for sample in samples], pa.binary()
            ),
            "side": [0 if sample.pixels_HWC is None else sample.pixels_HWC.shape[0] for sample in samples],
            "error": pa.array([sample.error for sample in samples], pa.string()),
            "row": [sample.row for sample in samples],
            "judged_as": pa.array([sample.judged_as for sample in samples], pa.string()),
            "views": pa.array(
                [[view.tobytes() for view in sample.views] for sample in samples], pa.list_(pa.large_binary())
            ),
        }
    )
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpack(stream: bytes) -> list[Sample]:
    """What :func:`pack` packed."""
    return [
        Sample(
            row["sample_id"],
            row["prompt"],
            tuple(row["references"]),
            None if row["pixels"] is None else _square(row["pixels"], row["side"]),
            row["error"],
            row["row"],
            tuple(_square(view, row["side"]) for view in row["views"]),
            row["judged_as"],
        )
        for row in pa.ipc.open_stream(stream).read_all().to_pylist()
    ]


def _square(pixels: bytes, side: int) -> np.ndarray:
    return np.frombuffer(pixels, np.uint8).reshape(side, side, 3).copy()
