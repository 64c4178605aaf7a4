"""Corruptions: the original's images, seeds that follow samples, and what cannot be corrupted."""

import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rllava.data import corruptions
from rllava.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    CorruptedViews,
    all_corruptions,
    at_stated_size,
    check_library,
    corrupt,
)
from rllava.data.images import DamagedImage, fit, preprocess
from rllava.errors import UserError

ORIGINAL = np.load(Path(__file__).parents[1] / "golden/corruptions.npz")
SEED = 7
"""Of the original's images; see tests/golden/make_corruptions.py."""

NOT_DRAWN = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


def encoded(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def pattern(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_every_severity_is_the_original_codes(name: str) -> None:
    """Motion blur sums in another order: one level at most, at few pixels. All others are equal, bit for bit."""
    for severity in SEVERITIES:
        with corruptions._numpy_seeded(SEED):
            arguments = {"seed": SEED} if name in corruptions._SEEDED else {}
            ours = corruptions._library().corrupt(ORIGINAL["image"], severity, name, **arguments)
        apart = np.abs(ours.astype(int) - ORIGINAL[f"{name}-{severity}"].astype(int))
        assert apart.max() <= (1 if name == "motion_blur" else 0), severity
        assert (apart > 0).mean() < 0.01


def test_there_are_the_fifteen_of_imagenet_c() -> None:
    assert sorted(CORRUPTIONS) == sorted({key.rsplit("-", 1)[0] for key in ORIGINAL.files} - {"image"})
    assert [CORRUPTIONS.get(name).group for name in all_corruptions()][::4] == ["noise", "blur", "weather", "digital"]
    groups = [CORRUPTIONS.get(name).group for name in CORRUPTIONS]
    assert {group: groups.count(group) for group in groups} == {"noise": 3, "blur": 4, "weather": 4, "digital": 4}


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_what_is_drawn_follows_the_sample_and_nothing_else(name: str) -> None:
    image = pattern(40, 56)
    first = corrupt(image, name, 3, "a sample")
    assert (first.dtype, first.shape) == (np.uint8, image.shape)
    np.random.seed(1)
    random.seed(1)
    before = np.random.get_state()[1].copy(), random.getstate()
    corrupt(image, name, 5, "another sample")
    assert np.array_equal(corrupt(image, name, 3, "a sample"), first)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert random.getstate() == before[1]
    other = corrupt(image, name, 3, "another sample")
    assert np.array_equal(other, first) == (name in NOT_DRAWN)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_the_hardest_severity_is_further_from_the_image_than_the_easiest(name: str) -> None:
    image = np.asarray(Image.fromarray(pattern(9, 12)).resize((160, 120), Image.Resampling.BICUBIC))
    distances = [
        np.mean([np.abs(corrupt(image, name, severity, f"{n}").astype(int) - image).mean() for n in range(4)])
        for severity in (1, 5)
    ]
    assert distances[0] < distances[1]


def test_an_image_gets_its_stated_size_and_keeps_it() -> None:
    assert at_stated_size(pattern(48, 64), 128, "inside").shape == (96, 128, 3)
    assert at_stated_size(pattern(48, 64), 128, "squash").shape == (128, 128, 3)
    assert at_stated_size(pattern(900, 2), 128, "inside").shape == (128, 1, 3)
    image = pattern(64, 64)
    assert at_stated_size(image, 64, "inside") is image


def test_models_of_all_sizes_are_shown_the_same_picture() -> None:
    """What is corrupted is the picture, not a model's input: both of these are resized from one corrupted image."""
    views = CorruptedViews("gaussian_noise", (2, 4), 96, "inside")
    shown = views(encoded(pattern(60, 80)), "a sample")
    assert [view.shape for view in shown] == [(72, 96, 3)] * 2
    large = fit(shown[0], 96)
    assert np.array_equal(fit(shown[0], 48), preprocess(encoded(shown[0]), 48))
    assert np.array_equal(large[12:84], shown[0]), "a square of the stated size is padded alone"


def test_grey_and_wide_images_are_corrupted_and_too_small_ones_named() -> None:
    grey = encoded(np.repeat(pattern(40, 40)[:, :, :1], 3, axis=2))
    assert CorruptedViews("snow", (1,), 64, "inside")(grey, "s")[0].shape == (64, 64, 3)
    assert CorruptedViews("fog", (5,), 336, "inside")(encoded(pattern(8, 64)), "s")[0].shape == (42, 336, 3)
    with pytest.raises(DamagedImage, match=r"^64 x 1 pixels, the size at which it is corrupted, are too few for fog"):
        CorruptedViews("fog", (1,), 64, "inside")(encoded(pattern(1, 64)), "s")
    assert CorruptedViews("fog", (1,), 64, "squash")(encoded(pattern(1, 1)), "s")[0].shape == (64, 64, 3)


def test_unknown_names_and_severities_are_answered_in_one_line() -> None:
    with pytest.raises(UserError, match="unknown corruption 'gausian_noise'; did you mean gaussian_noise"):
        corrupt(pattern(40, 40), "gausian_noise", 1, "s")
    for severity in (0, 6):
        with pytest.raises(UserError, match=rf"severity {severity}: expected one of 1, 2, 3, 4, 5"):
            corrupt(pattern(40, 40), "fog", severity, "s")


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError, match=r"pip install 'rllava\[corruptions\]' and then pip install --no-deps"):
        check_library()
