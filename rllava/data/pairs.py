"""Image-caption pairs of easy-VQA: arrays for the training of encoders, and the wording of captions."""

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rllava.data.easy_vqa_source import COLOURS, SHAPES, EasyImage, easy_images, shuffled

CAPTION_TEMPLATES = (
    "A {colour} {shape}.",
    "There is a {colour} {shape}.",
    "There is a {shape} that is {colour}.",
    "The picture shows a {colour} {shape}.",
    "A {shape} colored {colour}.",
    "A {colour} {shape} on a plain background.",
    "The image contains one {colour} {shape}.",
    "A single {shape} in {colour}.",
)
"""Wordings of a caption. All say no more than colour, shape and what holds for every image of the data set."""


class EasyPairs(NamedTuple):
    """Images with their classes.

    Attributes:
        images: uint8 [N, 64, 64, 3], RGB.
        colour_index: int64 [N], index into :data:`rllava.data.easy_vqa_source.COLOURS`.
        shape_index: int64 [N], index into :data:`rllava.data.easy_vqa_source.SHAPES`.
    """

    images: NDArray[np.uint8]
    colour_index: NDArray[np.int64]
    shape_index: NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Images with a class each, and the class captions.

    Attributes:
        images_NHWC: uint8.
        class_N: index into ``captions``.
        captions: per class, its wordings; the first is the one for zero-shot classification.
    """

    images_NHWC: NDArray[np.uint8]
    class_N: NDArray[np.int64]
    captions: tuple[tuple[str, ...], ...]


def labelled_images(split: str) -> list[tuple[EasyImage, str, str]]:
    """Lists the images whose colour and shape are both known.

    Args:
        split: ``"train"`` (3578 of 4000 images) or ``"test"`` (888 of 1000).

    Returns:
        (image, colour, shape), by number.
    """
    return [
        (image, image.colour, image.shape)
        for image in easy_images(split)
        if image.colour is not None and image.shape is not None
    ]


def easy_pairs(split: str) -> EasyPairs:
    """Decodes the images whose colour and shape are both known.

    Args:
        split: ``"train"`` (3578 images) or ``"test"`` (888).

    Returns:
        Images and class indices, by number of the image: all 24 classes (8 colours x 3 shapes) about equally often.
    """
    labelled = labelled_images(split)
    images = [np.asarray(Image.open(io.BytesIO(image.png)).convert("RGB")) for image, _, _ in labelled]
    colour_index = [COLOURS.index(colour) for _, colour, _ in labelled]
    shape_index = [SHAPES.index(shape) for _, _, shape in labelled]
    return EasyPairs(
        np.stack(images).astype(np.uint8), np.asarray(colour_index, np.int64), np.asarray(shape_index, np.int64)
    )


def class_pairs(split: str, limit: int | None = None) -> Pairs:
    """The images of :func:`easy_pairs` with one class per colour and shape.

    Args:
        split: ``"train"`` or ``"test"``.
        limit: how many images; None: all.
    """
    images, colours, shapes = easy_pairs(split)
    captions = tuple(
        tuple(caption_of(colour, shape, template) for template in range(len(CAPTION_TEMPLATES)))
        for colour in COLOURS
        for shape in SHAPES
    )
    return Pairs(images[:limit], (colours * len(SHAPES) + shapes)[:limit], captions)


def caption_of(colour: str, shape: str, template: int = 0) -> str:
    """Words one caption.

    Args:
        template: index into :data:`CAPTION_TEMPLATES`.

    Returns:
        A sentence, e.g. ``"A red circle."``.
    """
    return CAPTION_TEMPLATES[template].format(colour=colour, shape=shape)


def captions_of(sample_id: str, colour: str, shape: str, count: int) -> list[str]:
    """Words ``count`` different captions of one image; which ones depends on ``sample_id`` alone.

    Args:
        count: how many, at most ``len(CAPTION_TEMPLATES)``.
    """
    templates = shuffled(CAPTION_TEMPLATES, f"captions of {sample_id}")[:count]
    return [template.format(colour=colour, shape=shape) for template in templates]
