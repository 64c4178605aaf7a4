"""Writes corruptions.npz: what the original code makes of one image, for each corruption and severity.

    python tests/golden/make_corruptions.py

Runs where ``imagecorruptions`` 1.1.2 does (Michaelis et al. 2019: ImageNet-C's code without ImageMagick): a virtual
environment of its own, ``pip install "numpy<2" "scikit-image<0.22" "opencv-python-headless<4.10" "setuptools<81"`` and
``pip install --no-deps imagecorruptions==1.1.2``. Two things of it are replaced: ``multichannel``, which scikit-image
knows no more in any release for Python 3.11, and the generator that impulse noise draws from, which it did not seed.
"""

import sys
from pathlib import Path
from typing import Any

import imagecorruptions
import numpy as np
import skimage.util
from imagecorruptions import corruptions
from PIL import Image

SEED = 7
SHAPE = (36, 48)
_gaussian, _random_noise = corruptions.gaussian, skimage.util.random_noise


def gaussian(image: Any, sigma: float, multichannel: bool = False, **others: Any) -> Any:
    """As of scikit-image 0.18."""
    return _gaussian(image, sigma=sigma, channel_axis=-1 if multichannel else None, **others)


def random_noise(image: Any, mode: str, amount: float) -> Any:
    """With a seed."""
    return _random_noise(image, mode=mode, rng=SEED, amount=amount)


def picture() -> "np.ndarray[Any, Any]":
    """Smooth patches of all colours, uint8 [H, W, 3]."""
    patches = np.random.RandomState(0).randint(0, 256, (9, 12, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(patches).resize(SHAPE[::-1], Image.Resampling.BICUBIC))


def main() -> None:
    """Writes the file."""
    corruptions.gaussian = gaussian
    skimage.util.random_noise = random_noise
    image = picture()
    found = {"image": image}
    for name in imagecorruptions.get_corruption_names():
        for severity in range(1, 6):
            np.random.seed(SEED)
            found[f"{name}-{severity}"] = imagecorruptions.corrupt(image, severity, name)
    path = Path(__file__).with_name("corruptions.npz")
    np.savez_compressed(path, **found)
    print(f"{path}: {len(found) - 1} images, {path.stat().st_size} bytes, numpy {np.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
