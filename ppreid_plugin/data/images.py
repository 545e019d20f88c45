"""Reading images: a file that cannot be read is an error at once.

torchreid's own reader retries a corrupt file for ever. `use_strict_reading` puts the reader below in its place for
this process; what a readable image becomes is the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from PIL import Image

from ..toolbox import submodule


class ImageError(ValueError):
    """An image file that is missing, empty or corrupt; the message names the file."""


def read_image(path: str) -> Image.Image:
    """Read one image as RGB.

    Raises:
        ImageError: the file is missing, empty, or no image that Pillow can decode to its end.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise ImageError(f"image '{path}' does not exist. Restore it or remove it from the data set.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        size = os.path.getsize(path)
        what = "is empty (0 bytes)" if size == 0 else f"cannot be decoded ({error})"
        raise ImageError(f"image '{path}' {what}. Restore it or remove it from the data set.") from None


def use_strict_reading() -> None:
    """Make torchreid's data sets read images with `read_image` (in this process and its loader workers)."""
    setattr(submodule("data.datasets.dataset"), "read_image", read_image)  # noqa: B010  (a module has no such type)


def check_files(items: Iterable[tuple[Any, ...]]) -> None:
    """Check, without decoding, that every image of (path(s), pid, camid, ...) tuples exists and is not empty.

    Raises:
        ImageError: naming the first bad files and how many there are.
    """
    bad = []
    for item in items:
        for path in (item[0],) if isinstance(item[0], str) else item[0]:
            try:
                if os.path.getsize(path) == 0:
                    bad.append(f"'{path}' is empty (0 bytes)")
            except OSError as error:
                bad.append(f"'{path}': {error.strerror}")
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ImageError(f"image {'; '.join(bad[:3])}{more}. Restore them or remove them from the data set.")
