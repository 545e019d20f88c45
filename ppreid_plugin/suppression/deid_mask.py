"""The De-ID target ``mask``: coarse blocks over the head, finer ones below, cut along a silhouette that is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..data.images import read_image
from ..data.silhouettes import silhouette_of
from .deid import DeIDTarget, Pixelate, register_deid_target

_THUMBNAIL = (32, 16)  # rows, columns at which a training image is compared with its file
_SAME = 0.004  # median difference of thumbnails, as a fraction of the pixel range, up to which they show the same


@register_deid_target("mask")
class Mask(DeIDTarget):
    r"""Lower detail where it identifies most: blocks of two sizes (our definition).

    In the top quarter of the rows, where the head is, blocks are a quarter of the width wide; below, an eighth. Where a
    silhouette S (1 = person) is known,

    .. math:: T(x) = S \odot \text{blocks}(x; S) + (1 - S) \odot \text{blocks}(x; 1 - S),

    with means over the person's pixels, or the background's, of a block only: a flat figure with a sharp outline, and
    nothing of the street in its colors. S = 1 everywhere where none is known, which is blocks alone.

    Silhouettes are known by an image's file, but training images are augmented. So each is compared with its file and
    that file's mirror image at 32 x 16 pixels; the silhouette is used as it is or mirrored, whichever fits, and not at
    all where neither does (median difference above one gray level), as after ``random_crop``, ``color_jitter`` or an
    image transform. ``random_erase`` does not disturb this unless it erases half of the image.

    Args:
        blocks: blocks across the width below the head, >= 2; half as many across the head.
        silhouettes: from an image's path to its silhouette, (h, w) bool, or None where it has none. By default the true
            ones of the generated pedestrians (`silhouette_of`). Silhouettes and thumbnails of files are kept in memory,
            about 6 kB an image.

    Shape:
        images: (B, 3, H, W) with H >= 4 and W >= ``blocks``. Output: the same.

    Raises:
        ValueError: ``blocks`` is no whole number >= 2, or images are too small.
    """

    def __init__(self, blocks: int = 8, silhouettes: Callable[[str], np.ndarray | None] = silhouette_of) -> None:
        self._below = Pixelate(blocks)
        if blocks < 2:
            raise ValueError(f"blocks is {blocks}, must be >= 2 for mask, which halves it over the head.")
        self._head = Pixelate(blocks // 2)
        self.blocks = blocks
        self.silhouettes = silhouettes
        self._known: dict[tuple[str, int, int], tuple[np.ndarray, np.ndarray] | None] = {}

    def check_size(self, height: int, width: int) -> None:
        """Check that there are pixels for all blocks."""
        self._below.check_size(height, width)

    def __call__(self, images: Tensor) -> Tensor:
        """De-identify images without silhouettes."""
        return self._blocks(images)

    def of_batch(self, images: Tensor, paths: Sequence[str]) -> Tensor:
        """De-identify augmented images with the silhouettes of their files, where those are known and fit."""
        person = self.place(images, paths)
        street = 1 - person
        return person * self._blocks(images, person) + street * self._blocks(images, street)

    def place(self, images: Tensor, paths: Sequence[str]) -> Tensor:
        """Return S of each image, (B, 1, H, W) of 0 and 1, turned as the image is; 1 where it is not known.

        Raises:
            ValueError: not as many paths as images.
        """
        if len(paths) != len(images):
            raise ValueError(f"mask got {len(paths)} paths for {len(images)} images; there must be one for each.")
        height, width = images.shape[-2:]
        small = F.adaptive_avg_pool2d(images, _THUMBNAIL).cpu().numpy()
        placed = np.ones((len(images), 1, height, width), np.float32)
        for place, (shown, path) in enumerate(zip(small, paths, strict=True)):
            known = self._of_file(path, height, width)
            if known is None:
                continue
            packed, thumbnail = known
            seen = np.unpackbits(packed, count=height * width).reshape(height, width)
            direct, mirrored = (float(np.median(np.abs(shown - t))) for t in (thumbnail, thumbnail[..., ::-1]))
            if min(direct, mirrored) <= _SAME:
                placed[place, 0] = seen if direct <= mirrored else seen[:, ::-1]
        return torch.from_numpy(placed).to(images.device, images.dtype)

    def _of_file(self, path: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Silhouette (packed bits) and thumbnail of a file at the size of the images; None if it has no silhouette."""
        key = (path, height, width)
        if key not in self._known:
            seen = self.silhouettes(path)
            self._known[key] = None
            if seen is not None:
                rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip((height, width), seen.shape, strict=True))
                fitted = seen[np.ix_(rows.astype(int), columns.astype(int))]
                picture = np.array(read_image(path).resize((width, height), Image.Resampling.BILINEAR))
                tensor = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
                self._known[key] = np.packbits(fitted), F.adaptive_avg_pool2d(tensor, _THUMBNAIL)[0].numpy()
        return self._known[key]

    def _blocks(self, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """Replace blocks by their mean color, weighted: coarse in the top quarter of the rows, finer below."""
        head = max(1, round(images.shape[-2] / 4))
        parts = []
        for pixelate, rows in ((self._head, slice(0, head)), (self._below, slice(head, None))):
            part = images[..., rows, :]
            if weights is None:
                parts.append(pixelate(part))
            else:
                shares = pixelate.means(weights[..., rows, :])
                means = pixelate.means(part * weights[..., rows, :]) / shares.clamp(min=torch.finfo(images.dtype).tiny)
                parts.append(F.interpolate(means.clamp(0, 1), size=part.shape[-2:], mode="nearest-exact"))
        return torch.cat(parts, dim=-2)
