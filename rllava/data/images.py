"""Images from encoded bytes to the encoder's input square, as the paper does it; and lossless PNG for records.

The perturbation lives in the padded, resized square (Robust-LLaVA ``open_flamingo/eval/models/llava.py``: LLaVA's
``mm_utils.expand2square`` by ``image_aspect_ratio='pad'``, then bicubic resizing), so this is all that ever happens to
an image before the attack. Normalisation is the encoder's own.
"""

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
PADDING_COLOUR = (int(255 * CLIP_MEAN[0]), int(255 * CLIP_MEAN[1]), int(255 * CLIP_MEAN[2]))
"""Colour of the padding bars, RGB: (122, 116, 104), the same for all encoders."""

PREPROCESSING_VERSION = 1
"""Raised when :func:`preprocess` makes other pixels of an image."""

MAX_SIDE = 16384
"""Longest side that is padded, in pixels: the square takes 3 * MAX_SIDE^2 bytes (0.8 GB)."""


class DamagedImage(ValueError):  # noqa: N818 (the name of a state of the data, as rows report it)
    """The bytes are no image that can be used; the message says why."""


Fit = Literal["pad", "crop"]
"""How an image becomes square: padded to its longer side, or cropped to its shorter one after resizing."""


def preprocess(image_bytes: bytes, image_size: int, fit: Fit = "pad") -> NDArray[np.uint8]:
    """Decodes an image, pads it to a square with the CLIP-mean colour and resizes it (bicubic).

    As in the paper's code, an EXIF orientation is ignored. Pixels become RGB as Pillow's ``convert("RGB")`` makes
    them: transparency is dropped (not composited), palette and CMYK images are converted, grey is repeated. 16-bit
    grey is scaled to 8 bits, where ``convert`` would clip it to white. Of an animation the first frame is taken. A
    square image of the right size comes out with unchanged pixels.

    Args:
        image_bytes: an encoded image (PNG, JPEG, ...).
        image_size: side of the result, in pixels.
        fit: ``crop`` instead does what CLIP's pre-processing does (Hugging Face's ``CLIPImageProcessor``, as LLaVA's
            pre-training without ``image_aspect_ratio='pad'``): the shorter side gets the size, the middle is taken.

    Returns:
        uint8 [image_size, image_size, 3], RGB.

    Raises:
        DamagedImage: if the bytes are empty, no image, truncated or too large.
        ValueError: if ``image_size`` is not positive.
    """
    image = _decode_rgb(image_bytes)
    return _fitted(image, image_size) if fit == "pad" else _cropped(image, image_size)


def fit(pixels_HWC: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """What :func:`preprocess` does to an image once it is decoded.

    Args:
        pixels_HWC: uint8 [H, W, 3], RGB.
        image_size: side of the result, in pixels.

    Returns:
        uint8 [image_size, image_size, 3], RGB.

    Raises:
        DamagedImage: if the image is too large.
        ValueError: if ``image_size`` is not positive.
    """
    return _fitted(Image.fromarray(pixels_HWC), image_size)


def _fitted(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; give a positive number of pixels")
    square = _pad_to_square(image)
    if square.size != (image_size, image_size):
        square = square.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.array(square, dtype=np.uint8)


def _cropped(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; give a positive number of pixels")
    shorter, longer = sorted(image.size)
    scaled = int(image_size * longer / shorter)
    if max(longer, scaled) > MAX_SIDE:
        raise DamagedImage(f"the image is {image.width} x {image.height} pixels; at most {MAX_SIDE} a side are resized")
    width, height = (image_size, scaled) if image.width <= image.height else (scaled, image_size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return np.array(resized.crop((left, top, left + image_size, top + image_size)), dtype=np.uint8)


def encode_png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Encodes pixels without loss.

    Args:
        pixels_HWC: uint8 [H, W, 3], RGB.

    Returns:
        A PNG file; the same bytes for the same pixels and version of Pillow.

    Raises:
        ValueError: if the array has another type or shape.
    """
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
        raise ValueError(f"encode_png needs uint8 [H, W, 3], got {pixels_HWC.dtype} {list(pixels_HWC.shape)}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_HWC)).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(png: bytes) -> NDArray[np.uint8]:
    """Decodes an image without resizing it; the inverse of :func:`encode_png`.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        DamagedImage: if the bytes cannot be decoded.
    """
    return np.array(_decode_rgb(png), dtype=np.uint8)


def _decode_rgb(image_bytes: bytes) -> Image.Image:
    if not image_bytes:
        raise DamagedImage("the image has no bytes")
    try:
        with Image.open(io.BytesIO(image_bytes)) as image:
            image.load()
            return _to_rgb(image)
    # Pillow's decoders raise many kinds of errors on damaged bytes (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        text = "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DamagedImage(f"the image cannot be decoded: {text} ({len(image_bytes)} bytes)") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours as by convert("RGB"), without Pillow's warning
    return image.convert("RGB")


def _pad_to_square(image: Image.Image) -> Image.Image:
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image
    if side > MAX_SIDE:
        raise DamagedImage(f"the image is {width} x {height} pixels; at most {MAX_SIDE} a side can be padded")
    square = Image.new("RGB", (side, side), PADDING_COLOUR)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
