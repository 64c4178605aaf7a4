"""The fifteen common corruptions of ImageNet-C (Hendrycks & Dietterich 2019), five severities each.

Computed by ``imagecorruptions-imaug``, a kept-up version of ``imagecorruptions`` (Michaelis et al. 2019), whose images
``tests/golden/corruptions.npz`` holds. ``docs/corruptions.md`` says how those differ from ImageNet-C's own. Light: the
tasks that corrupt import no torch.
"""

import contextlib
import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rllava.data.images import DamagedImage, decode_png
from rllava.errors import UserError
from rllava.registry import Registry

SEVERITIES = (1, 2, 3, 4, 5)

SMALLEST_SIDE = 32
"""Shortest side, in pixels, that the library corrupts."""

Fit = Literal["inside", "squash"]
"""How an image gets its stated size: scaled until its longer side has it, or squashed to a square, as in the published
code."""

SIZING_VERSION = 1
"""Raised when :func:`at_stated_size` makes other pixels of an image."""

Group = Literal["noise", "blur", "weather", "digital"]

_LIBRARY = "imagecorruptions"
_SEEDED = frozenset({"impulse_noise", "glass_blur"})
"""Those that draw from a generator of their own, not from NumPy's global one."""


@dataclass(frozen=True)
class CorruptionKind:
    """One corruption.

    Attributes:
        name: in ImageNet-C and in the library.
        variant: in what it differs from ImageNet-C's own code; empty: in nothing.
        version: raised when it makes other pixels of an image, e.g. with another release of the library.
    """

    name: str
    group: Group
    variant: str = ""
    version: int = 1

    @property
    def label(self) -> str:
        """Name and version, as records carry them."""
        return f"{self.name}-v{self.version}"


CORRUPTIONS: Registry[CorruptionKind] = Registry("corruption", "rllava.corruptions")

for _kind in (
    CorruptionKind("gaussian_noise", "noise"),
    CorruptionKind("shot_noise", "noise"),
    CorruptionKind("impulse_noise", "noise"),
    CorruptionKind("defocus_blur", "blur"),
    CorruptionKind("glass_blur", "blur"),
    CorruptionKind("motion_blur", "blur", "a kernel of its own in place of ImageMagick's"),
    CorruptionKind("zoom_blur", "blur"),
    CorruptionKind("snow", "weather", "a motion kernel of its own in place of ImageMagick's"),
    CorruptionKind("frost", "weather", "one of six photographs, where ImageNet-C draws one of the first five"),
    CorruptionKind("fog", "weather"),
    CorruptionKind("brightness", "weather"),
    CorruptionKind("contrast", "digital"),
    CorruptionKind("elastic_transform", "digital", "no affine map, and other strengths, in shares of the image's side"),
    CorruptionKind("pixelate", "digital", "scaled up by nearest neighbours, where ImageNet-C takes boxes"),
    CorruptionKind("jpeg_compression", "digital"),
):
    CORRUPTIONS.register(_kind.name, _kind)


def all_corruptions() -> list[str]:
    """All names, by group.

    Returns:
        In the order of ImageNet-C's groups.
    """
    return sorted(CORRUPTIONS, key=lambda name: get_args(Group).index(CORRUPTIONS.get(name).group))


def check_library() -> None:
    """Says how to get the library where it lacks.

    Raises:
        UserError: if it cannot be imported.
    """
    _library()


def at_stated_size(pixels_HWC: NDArray[np.uint8], side: int, fit: Fit) -> NDArray[np.uint8]:
    """An image at the size at which it is corrupted: noise, blur and blocks are so many pixels, whatever a model takes.

    Args:
        pixels_HWC: uint8 [H, W, 3].
        side: of the result, in pixels: its longer one, or both.
        fit: see :data:`Fit`.

    Returns:
        uint8 [H, W, 3]; unchanged if it has the size already, else resized (bicubic).
    """
    height, width = pixels_HWC.shape[:2]
    scale = side / max(height, width)
    wanted = (side, side) if fit == "squash" else (max(1, round(width * scale)), max(1, round(height * scale)))
    if wanted == (width, height):
        return pixels_HWC
    return np.array(Image.fromarray(pixels_HWC).resize(wanted, Image.Resampling.BICUBIC), dtype=np.uint8)


def corrupt(pixels_HWC: NDArray[np.uint8], name: str, severity: int, sample_id: str) -> NDArray[np.uint8]:
    """Corrupts an image. What is drawn depends on the sample, the corruption and its severity alone.

    Args:
        pixels_HWC: uint8 [H, W, 3].
        name: in :data:`CORRUPTIONS`.
        severity: from 1 to 5.

    Returns:
        uint8, of the same shape.

    Raises:
        UserError: if corruption or severity are unknown, or the library is not here.
        DamagedImage: if the image is too small.
    """
    kind = CORRUPTIONS.get(name)
    check_severity(severity)
    height, width = pixels_HWC.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise DamagedImage(
            f"{width} x {height} pixels, the size at which it is corrupted, are too few for {name}, which needs "
            f"{SMALLEST_SIDE} a side"
        )
    seed = int.from_bytes(hashlib.sha256(f"{kind.label} {severity} {sample_id}".encode()).digest()[:4], "big")
    with _numpy_seeded(seed):
        arguments = {"seed": seed} if name in _SEEDED else {}
        found: NDArray[np.uint8] = _library().corrupt(pixels_HWC, severity, name, **arguments)
    return found


def check_severity(severity: int) -> None:
    """Refuses what is no severity.

    Args:
        severity: from 1 to 5.

    Raises:
        UserError: if it is not.
    """
    if severity not in SEVERITIES:
        raise UserError(f"severity {severity}: expected one of {', '.join(map(str, SEVERITIES))}; 0 is the clean image")


@dataclass(frozen=True)
class CorruptedViews:
    """Makes of an encoded image its corrupted versions, one per severity; see ``rllava.conditions.condition.Views``.

    Attributes:
        name: in :data:`CORRUPTIONS`.
        severities: from 1 to 5.
        side: at which size, in pixels.
        fit: how it gets that size.
    """

    name: str
    severities: tuple[int, ...]
    side: int
    fit: Fit

    def __call__(self, image: bytes, sample_id: str) -> list[NDArray[np.uint8]]:
        """The images.

        Returns:
            uint8 [H, W, 3] each.
        """
        sized_HWC = at_stated_size(decode_png(image), self.side, self.fit)
        return [corrupt(sized_HWC, self.name, severity, sample_id) for severity in self.severities]


def known_fit(fit: str) -> bool:
    """Whether a word says how an image gets its size."""
    return fit in get_args(Fit)


def _library() -> Any:
    try:
        return importlib.import_module(_LIBRARY)
    except ImportError as error:
        raise UserError(
            "corruptions need a library that is not here; pip install 'rllava[corruptions]' and then pip install "
            f"--no-deps imagecorruptions-imaug ({error})"
        ) from error


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator, which the library draws from, as a seed leaves it; put back afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
