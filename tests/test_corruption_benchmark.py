"""The benchmark of the tasks that corrupt images: what it feeds its worker is what a sweep would."""

import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.corruption_pipeline import SIDE, Answerer, Options, main, photograph, seconds_per_image, write_benchmark
from rllava.data.corruptions import SEVERITIES, CorruptedViews
from rllava.data.images import decode_png
from rllava.errors import UserError
from rllava.evaluation.samples import load_unit
from rllava.tasks.task import Needs


def test_a_unit_holds_every_image_and_the_worker_takes_its_time_for_each(tmp_path: Path) -> None:
    paths = write_benchmark(str(tmp_path), Options(rows=2, shards=1))
    unit = {"benchmark": "photographs", "path": paths[0], "shard": 0, "indices": [0]}
    views = {0: CorruptedViews("fog", SEVERITIES, SIDE, "inside")}
    loaded = load_unit(unit, str(tmp_path), SIDE, views, {"photographs": Needs()})
    batch = {"samples": np.array([loaded["samples"]], dtype=object)}
    started = time.time()
    (row,) = Answerer(0.02)(batch)
    assert row["images"] == [2 * len(SEVERITIES)]
    assert started <= row["began"][0] <= row["ended"][0] - 0.02 * 2 * len(SEVERITIES)


def test_pictures_differ_and_cost_time() -> None:
    pictures = [photograph(seed) for seed in range(3)]
    assert {decode_png(picture).shape for picture in pictures} == {(480, 640, 3)}
    assert len(set(pictures)) == 3
    assert seconds_per_image("fog", pictures) > 0


def test_too_little_to_do_is_refused() -> None:
    with pytest.raises(UserError, match="expected at least --rows 2 and --shards 1"):
        main(Options(rows=1))
