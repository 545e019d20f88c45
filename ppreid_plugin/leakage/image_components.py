"""What images have in common, as numbers to erase from features: their largest principal components."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..number_checks import require_whole
from ..suppression.image_erasure import HEIGHT, WIDTH
from .data import LeakageSet
from .images import RowImages

HEAD = 4  # the head is in the first of so many parts of the height
MOST = HEIGHT * WIDTH * 3  # components that there are
_FINE = 2  # times as many pixels each way, there


def image_components(images: RowImages, count: int, *, head: bool = False) -> npt.NDArray[np.float64]:
    """Return the first principal components of images at 16 x 8 pixels, RGB in [0, 1]: (n, count), of mean 0.

    They are what a linear inversion of features shows first. With features from which they are erased
    (:meth:`.Leace.fit_concepts`), least squares makes of every training row the same image, up to what the others hold.

    Args:
        images: of training rows, n >= 2.
        count: how many, largest variance first; at most n - 1, and 384.
        head: of the upper quarter of the images alone, where heads are, at 8 x 16 pixels.

    Raises:
        ValueError: a count out of range.
        ImageError: a file that cannot be read.
    """
    return _components(images, {head: count})[0]


def named_components(rows: LeakageSet, count: int, head_count: int) -> npt.NDArray[np.float64] | None:
    """Return components of rows' whole images and of heads side by side, (n, count + head_count); None: both are 0.

    Raises:
        ValueError: rows without images, or a count out of range.
        ImageError: a file that cannot be read.
    """
    counts = {head: many for head, many in ((False, count), (True, head_count)) if many}
    return np.concatenate(_components(rows.pictures, counts), axis=1) if counts else None


def _components(images: RowImages, counts: Mapping[bool, int]) -> list[npt.NDArray[np.float64]]:
    """Return so many components of each kind, by whether they are of the head; each image is read once."""
    for head, count in counts.items():
        what = "of head components" if head else "of image components"
        require_whole("count", count, most=min(len(images) - 1, MOST), hint=what)
    sizes = [(HEIGHT * _FINE, WIDTH * _FINE) if head else (HEIGHT, WIDTH) for head in counts]
    found = []
    for (head, count), pixels in zip(counts.items(), images.load_sizes(sizes), strict=True):
        shown = pixels[:, : HEIGHT * _FINE // HEAD] if head else pixels
        offsets = shown.reshape(len(images), -1) / 255.0
        offsets -= offsets.mean(axis=0)
        _, vectors = np.linalg.eigh(offsets.T @ offsets)
        found.append(offsets @ vectors[:, : -count - 1 : -1])
    return found
