"""Images that attacks found, of other candidates too: as start points, or to be shown."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rllava.attacks.outcome import unpack_images
from rllava.attacks.rounds import SMALLER, Start, other
from rllava.data.images import decode_png
from rllava.data.shards import read_shard, shard_path
from rllava.evaluation.samples import Sample
from rllava.specs import EvalSpec
from rllava.store import Store


def stored_images(store: Store, source: EvalSpec, shard: int, samples: Sequence[Sample]) -> list[np.ndarray | None]:
    """The 8-bit images that an evaluation stored for some samples, whatever their size.

    Args:
        shard: number; all evaluations of a benchmark share its shards.

    Returns:
        uint8 [H, W, 3] each; None for a sample that it did not attack.
    """
    path = shard_path(store.artifact("records", source.name, source).path, shard)
    rows = read_shard(store.filesystem, path, ["sample_id", "adversarial_png"]).to_pylist()
    stored = {row["sample_id"]: row["adversarial_png"] for row in rows}
    found = [stored.get(sample.sample_id) for sample in samples]
    return [None if png is None else decode_png(png) for png in found]


def images_of_others(store: Store, spec: EvalSpec, shard: int, samples: Sequence[Sample]) -> Mapping[Start, Tensor]:
    """What the evaluations that a spec comes after found for the same samples.

    Args:
        shard: number; all evaluations of a benchmark share its shards.

    Returns:
        Per source, counted from 0 in the order of ``spec.sources``, and for the smaller budget: scored images
        [B, 3, H, W] on the CPU; the clean image of a sample that was not attacked, or at another image size.
    """
    found = {}
    named = {other(number): source for number, source in enumerate(spec.sources)}
    if spec.smaller is not None:
        named[SMALLER] = spec.smaller
    for start, source in named.items():
        path = shard_path(store.artifact("records", source.name, source).path, shard)
        rows = read_shard(store.filesystem, path, ["sample_id", "adversarial_png", "adversarial_rest"]).to_pylist()
        stored = {row["sample_id"]: row for row in rows}
        images = [_image(stored.get(sample.sample_id, {}), sample) for sample in samples]
        found[start] = torch.stack(images)
    return found


def _image(row: Mapping[str, bytes | None], sample: Sample) -> Tensor:
    assert sample.pixels_HWC is not None
    rounded_HWC, rest = sample.pixels_HWC, None
    if row.get("adversarial_png") is not None and row.get("adversarial_rest") is not None:
        stored_HWC = np.array(Image.open(io.BytesIO(row["adversarial_png"] or b"")).convert("RGB"))
        if stored_HWC.shape == rounded_HWC.shape:
            rounded_HWC, rest = stored_HWC, row["adversarial_rest"]
    rest_HWC = np.zeros(rounded_HWC.shape, np.int8) if rest is None else np.frombuffer(rest, np.int8).copy()
    values = (torch.from_numpy(rounded_HWC), torch.from_numpy(rest_HWC.reshape(rounded_HWC.shape)))
    return unpack_images(*(value.permute(2, 0, 1) for value in values))
