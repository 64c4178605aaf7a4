"""Makes the universal images of a candidate in a pool of attack workers (Ray Data), each image by one of them.

A unit of work is one image. A worker loads the model once; what it makes is kept while it is in flight, so that a
killed worker's successor goes on from there. An image that is there is never made again.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data

from rllava.evaluation.loading import dtype_of, load_victim
from rllava.evaluation.universal_image import make_image
from rllava.image_spec import ImageSpec
from rllava.store import Store


@dataclass(frozen=True)
class ImagingJob:
    """What the workers of one candidate need to know. All specs share model and encoders.

    Attributes:
        model_path: of the trained LLaVA in the storage.
        specs: of images, complete ones left out.
        paths: of their artifacts, in the same order.
        save_every_s: seconds between two saved states of an image in flight; a killed worker loses at most that.
    """

    storage: str
    model_path: str
    specs: tuple[ImageSpec, ...]
    paths: tuple[str, ...]
    save_every_s: float = 60.0


Tell = Callable[[int, int, float], None]
"""Takes the index of a spec, the steps taken, and the cross-entropy of the last one's targets."""


@dataclass(frozen=True)
class ImageMade:
    """One image was written.

    Attributes:
        index: of its spec in the job.
        facts: see :meth:`rllava.evaluation.universal_image.Attempt.evidence`, with the ``seconds`` it took since its
            last start.
    """

    index: int
    facts: Mapping[str, Any]


def make_images(job: ImagingJob, workers: Mapping[str, Any], tell: Tell) -> Iterator[ImageMade]:
    """Makes what is missing.

    Args:
        job: what to do; the leases of its artifacts are held by the caller.
        workers: resources of the pool of attack workers, as arguments of ``map_batches``.
        tell: goes along to them.

    Yields:
        Each image as it is written.
    """
    ray.data.DataContext.get_current().enable_progress_bars = False
    units = [{"index": index} for index in range(len(job.specs))]
    dataset = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
        ImageMaker,
        fn_constructor_kwargs={"job": job, "tell": tell},
        batch_size=1,
        **{"compute": ray.data.ActorPoolStrategy(size=1), **workers},
    )
    for row in dataset.iter_rows():
        yield ImageMade(int(row["index"]), row["facts"])


class ImageMaker:
    """An attack worker as Ray Data wants it: constructed once per actor, called with one unit at a time."""

    def __init__(self, job: ImagingJob, tell: Tell) -> None:
        self.job, self.store, self.tell = job, Store(job.storage), tell
        first = job.specs[0]
        dtype = dtype_of(spec.making.precision for spec in job.specs)
        self.victim = load_victim(self.store, first.model, job.model_path, first.encoders, dtype)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Makes one image.

        Args:
            batch: a unit: the index of its spec.

        Returns:
            A row that tells of it.
        """
        index, started = int(batch["index"][0]), time.monotonic()
        spec, path = self.job.specs[index], self.job.paths[index]
        facts = make_image(
            self.victim, spec, self.store, path, self.job.save_every_s, lambda step, loss: self.tell(index, step, loss)
        )
        return {"index": [index], "facts": [{**facts, "seconds": round(time.monotonic() - started, 2)}]}
