"""What images have in common, as numbers to erase from features: their largest principal components."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..number_checks import require_whole
from .images import RowImages

HEIGHT, WIDTH = 16, 8  # pixels: what pixelation with 8 blocks across leaves of a person


def image_components(images: RowImages, count: int) -> npt.NDArray[np.float64]:
    """Return the first principal components of images at 16 x 8 pixels, RGB in [0, 1]: (n, count), of mean 0.

    They are what a linear inversion of features shows first. With features from which they are erased
    (:meth:`.Leace.fit_concepts`), least squares makes of every training row the same image, up to what the others hold.

    Args:
        images: of training rows, n >= 2.
        count: how many, largest variance first; at most n - 1, and 384.

    Raises:
        ValueError: a count out of range.
        ImageError: a file that cannot be read.
    """
    require_whole("count", count, most=min(len(images) - 1, HEIGHT * WIDTH * 3), hint="of image components")
    pixels = images.load(HEIGHT, WIDTH).reshape(len(images), -1) / 255.0
    pixels -= pixels.mean(axis=0)
    _, vectors = np.linalg.eigh(pixels.T @ pixels)
    return pixels @ vectors[:, : -count - 1 : -1]
