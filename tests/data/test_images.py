"""Preprocessing of ordinary, awkward and damaged images."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rllava.data.images import PADDING_COLOUR, DamagedImage, decode_png, encode_png, preprocess


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002 (Pillow's own word)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_square_of_the_right_size_is_unchanged() -> None:
    pixels = noise(32, 32)
    assert np.array_equal(preprocess(encode_png(pixels), 32), pixels)


def test_png_round_trip_and_same_bytes() -> None:
    pixels = noise(5, 9)
    assert np.array_equal(decode_png(encode_png(pixels)), pixels)
    assert encode_png(pixels) == encode_png(pixels.copy())
    assert np.array_equal(decode_png(encode_png(pixels[:, ::-1])), pixels[:, ::-1])


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_only_rgb_of_8_bits_is_encoded(array: Any) -> None:
    with pytest.raises(ValueError, match=r"encode_png needs uint8"):
        encode_png(array)


@pytest.mark.parametrize(("height", "width"), [(20, 32), (32, 21), (1, 32), (32, 1)])
def test_shorter_side_is_padded_on_both_sides_with_the_clip_mean(height: int, width: int) -> None:
    pixels = noise(height, width)
    expected = np.empty((32, 32, 3), np.uint8)
    expected[:] = PADDING_COLOUR
    top, left = (32 - height) // 2, (32 - width) // 2
    expected[top : top + height, left : left + width] = pixels
    assert np.array_equal(preprocess(encode_png(pixels), 32), expected)
    assert PADDING_COLOUR == (122, 116, 104)


def test_resizing_is_pillows_bicubic_after_padding() -> None:
    pixels = noise(40, 60)
    square = Image.new("RGB", (60, 60), PADDING_COLOUR)
    square.paste(Image.fromarray(pixels), (0, 10))
    expected = np.asarray(square.resize((33, 33), Image.Resampling.BICUBIC))
    assert np.array_equal(preprocess(encode_png(pixels), 33), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_become_what_pillow_converts_them_to(mode: str) -> None:
    image = Image.fromarray(noise(16, 16)).convert(mode)
    stored = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    assert Image.open(io.BytesIO(stored)).mode == mode
    assert np.array_equal(preprocess(stored, 16), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_is_decoded() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = preprocess(encoded(image, "JPEG"), 16)[8, 8]
    assert red > 240
    assert max(green, blue) < 15


def test_transparency_is_dropped_not_composited() -> None:
    image = Image.new("RGBA", (8, 8), (200, 10, 20, 0))
    assert preprocess(encoded(image), 8)[0, 0].tolist() == [200, 10, 20]


def test_palette_with_transparency_gives_its_colours_and_no_warning() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = preprocess(encoded(image, transparency=b"\x00\x10"), 8)
    assert pixels[0, 0].tolist() == [10, 200, 30]


def test_16_bit_grey_is_scaled() -> None:
    grey = np.array([[0, 257 * 7], [257 * 128, 65535]], np.uint16)
    pixels = preprocess(encoded(Image.fromarray(grey)), 2)
    assert pixels[..., 0].tolist() == [[0, 7], [128, 255]]
    assert (pixels == pixels[..., :1]).all()


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(16, 16))
    assert np.array_equal(preprocess(encoded(image, exif=exif), 16), np.asarray(image))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("P", (8, 8), index) for index in (0, 1)]
    for frame in frames:
        frame.putpalette([255, 0, 0, 0, 0, 255])
    stored = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert preprocess(stored, 8)[0, 0].tolist() == [255, 0, 0]


def test_one_pixel_becomes_a_plain_square() -> None:
    pixels = preprocess(encode_png(np.array([[[9, 99, 199]]], np.uint8)), 14)
    assert pixels.shape == (14, 14, 3)
    assert (pixels == [9, 99, 199]).all()


JPEG = encoded(Image.fromarray(noise(40, 40)), "JPEG")
PNG = encode_png(noise(40, 40))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no bytes"),
        (b"hello", "no known image format"),
        (b"\x89PNG\r\n\x1a\n", r"cannot be decoded"),
        (PNG[: len(PNG) // 2], "truncated"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[:100] + b"\x00" * 50 + PNG[150:], "cannot be decoded"),
    ],
    ids=["empty", "text", "header", "half png", "half jpeg", "zeroed png"],
)
def test_damaged_images_say_why(content: bytes, reason: str) -> None:
    with pytest.raises(DamagedImage, match=reason):
        preprocess(content, 32)
    with pytest.raises(DamagedImage, match=reason):
        decode_png(content)


def test_an_image_too_long_to_pad_is_refused() -> None:
    with pytest.raises(DamagedImage, match=r"20000 x 1 pixels; at most 16384"):
        preprocess(encoded(Image.new("L", (20000, 1))), 32)


def test_image_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="give a positive number"):
        preprocess(PNG, 0)


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (50, 40), (336, 336), (91, 1000), (400, 301)])
def test_a_crop_is_clips_own_preprocessing(size: tuple[int, int]) -> None:
    """Pixel for pixel: Hugging Face's processor by Pillow, as LLaVA's pre-training uses it."""
    generator = np.random.default_rng(sum(size))
    pixels_HWC = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    sides = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    processor = CLIPImageProcessorPil(do_normalize=False, do_rescale=False, **sides)
    theirs_CHW = np.asarray(processor(Image.fromarray(pixels_HWC))["pixel_values"][0])
    ours_HWC = preprocess(encode_png(pixels_HWC), 336, "crop")
    assert np.array_equal(ours_HWC, theirs_CHW.transpose(1, 2, 0))
