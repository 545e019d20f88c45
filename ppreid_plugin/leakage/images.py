"""Images of rows of features, read when they are asked for: from an array in the file, or from files below a folder.

Only what is asked for is in memory: 6 kB a row at 64 x 32. Nothing is normalized but the size.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..data.images import check_files, read_image
from .cues import FineCues, cues_beside, cues_in

HEIGHT, WIDTH = 64, 32  # at which reconstructions are made and compared

Pixels = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


class RowImages(ABC):
    """The image of each row of a set."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def take(self, places: Places) -> RowImages:
        """Return the images of these rows."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest that changes with the images."""

    @abstractmethod
    def _read(self, place: int) -> Image.Image:
        """Return one image, RGB, as large as it is."""

    def load(self, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
        """Return all images at one size, (n, height, width, 3), RGB; resized bilinearly, smoothed where they shrink.

        Raises:
            ImageError: a file that cannot be read.
        """
        return self.load_sizes([(height, width)])[0]

    def load_sizes(self, sizes: Sequence[tuple[int, int]]) -> list[Pixels]:
        """Return all images at each of several sizes (height, width), as `load` does; each image is read once.

        Raises:
            ImageError: a file that cannot be read.
        """
        loaded = [np.empty((len(self), height, width, 3), dtype=np.uint8) for height, width in sizes]
        for place in range(len(self)):
            image = self._read(place)
            for (height, width), into in zip(sizes, loaded, strict=True):
                fits = image.size == (width, height)
                into[place] = np.asarray(image if fits else image.resize((width, height), Image.Resampling.BILINEAR))
        return loaded

    @abstractmethod
    def cues(self) -> FineCues | None:
        """Return where fine cues are seen in the images; None: not known."""

    def crops(self, boxes: npt.NDArray[np.int64], size: int) -> Pixels:
        """Return a box of each image, cut out at the image's own resolution, then resized: (n, size, size, 3), RGB.

        Args:
            boxes: (n, 4): left, top, right, bottom in pixels, right and bottom exclusive.
            size: of the result, in pixels.

        Raises:
            ImageError: a file that cannot be read.
            ValueError: a box that reaches beyond its image.
        """
        cut = np.empty((len(self), size, size, 3), dtype=np.uint8)
        for place, box in enumerate(boxes.tolist()):
            image = self._read(place)
            if min(box) < 0 or box[2] > image.width or box[3] > image.height:
                raise ValueError(
                    f"row {place} has the box {box}, its image is {image.width} x {image.height} pixels. Boxes are "
                    "(left, top, right, bottom) in pixels of the images that are given: give those at full size."
                )
            cut[place] = np.asarray(image.crop(tuple(box)).resize((size, size), Image.Resampling.BILINEAR))
        return cut


class ArrayImages(RowImages):
    """Images in an array.

    Args:
        images: (n, H, W, 3), uint8, RGB.
        cues: where fine cues are seen in them; None: not known.

    Raises:
        ValueError: another shape or type, or cues of another number of rows.

    Example:
        >>> ArrayImages(np.zeros((5, 128, 64, 3), dtype=np.uint8)).load().shape
        (5, 64, 32, 3)
    """

    def __init__(self, images: Pixels, cues: FineCues | None = None) -> None:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
            raise ValueError(
                f"images has shape {images.shape} and type {images.dtype}, must be (n, H, W, 3), uint8, RGB: one a row "
                "of features."
            )
        _check_cues(cues, len(images))
        self._images, self._cues = images, cues

    def __len__(self) -> int:
        return len(self._images)

    def take(self, places: Places) -> ArrayImages:
        """Return the images of these rows."""
        return ArrayImages(self._images[places], self._cues and self._cues.take(places))

    def cues(self) -> FineCues | None:
        """Return the cues that were given."""
        return self._cues

    def fingerprint(self) -> str:
        """Return a digest of the pixels, and of the cues where there are any."""
        digest = hashlib.sha256(f"{self._images.shape}".encode() + self._images.tobytes())
        if self._cues is not None:
            digest.update(self._cues.fingerprint().encode())
        return digest.hexdigest()

    def _read(self, place: int) -> Image.Image:
        return Image.fromarray(self._images[place])


class ImageFiles(RowImages):
    """Images in files.

    Args:
        root: folder that the names are relative to.
        names: (n,), one a row.
        cues: where fine cues are seen in them; None: as the generated pedestrians' folder says, if they are of it.

    Raises:
        ValueError: cues of another number of rows.
    """

    def __init__(self, root: str | Path, names: Sequence[str], cues: FineCues | None = None) -> None:
        _check_cues(cues, len(names))
        self._root, self._names, self._cues = Path(root), tuple(names), cues

    def __len__(self) -> int:
        return len(self._names)

    def take(self, places: Places) -> ImageFiles:
        """Return the images of these rows."""
        names = [self._names[place] for place in places.tolist()]
        return ImageFiles(self._root, names, self._cues and self._cues.take(places))

    def cues(self) -> FineCues | None:
        """Return the cues that were given, else those that the generated pedestrians' folder has."""
        return cues_beside(self._root, self._names) if self._cues is None else self._cues

    def fingerprint(self) -> str:
        """Return a digest of the files' names, sizes and times, and of the cues where there are any."""
        digest = hashlib.sha256()
        for name in self._names:
            about = (self._root / name).stat()
            digest.update(f"{name} {about.st_size} {about.st_mtime_ns}\n".encode())
        if (cues := self.cues()) is not None:  # those of the generated pedestrians' folder too
            digest.update(cues.fingerprint().encode())
        return digest.hexdigest()

    def check(self) -> ImageFiles:
        """Return itself if every file is there and not empty.

        Raises:
            ImageError: the first of those that are not, and how many there are.
        """
        check_files((str(self._root / name),) for name in self._names)
        return self

    def _read(self, place: int) -> Image.Image:
        return read_image(str(self._root / self._names[place]))


def row_images(arrays: dict[str, Any], names: Sequence[str], root: str | None) -> RowImages | None:
    """Return the images of a file of features: its array ``images``, else files below ``root``; None: neither.

    Args:
        arrays: of the file; ``paths``, (n,) text, name the images where ``row_ids`` do not.
        names: the row ids.
        root: folder of the images; None: none was given.

    Raises:
        ValueError: an array that holds no images, a root that is no folder, no names to look for.
    """
    if "images" in arrays:
        return ArrayImages(arrays["images"], cues_in(arrays))
    if root is None:
        return None
    paths = [str(path) for path in arrays["paths"].tolist()] if "paths" in arrays else list(names)
    if not paths:
        raise ValueError(
            f"holds neither images, paths nor row_ids: no image can be looked for below '{root}'. Add one of them."
        )
    return image_files(root, paths, cues_in(arrays))


def image_files(root: str, names: Sequence[str], cues: FineCues | None = None) -> ImageFiles:
    """Return the images of these names below a folder, with their cues where they are given.

    Raises:
        ValueError: the root is no folder.
    """
    if not Path(root).is_dir():
        raise ValueError(f"--images-root is '{root}', which is no folder. Name the one that row_ids are relative to.")
    return ImageFiles(root, names, cues)


def _check_cues(cues: FineCues | None, rows: int) -> None:
    if cues is not None and len(cues) != rows:
        raise ValueError(f"there are boxes of {len(cues)} rows for {rows} images.")
