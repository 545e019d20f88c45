"""De-identified images T(x) as features: what attackers find in the target that stage 1 teaches.

Whatever a decoder is to reproduce from a feature, the feature has to hold. So the target's own leakage is what stage 1
means to leave, and pixels that no person recognizes may be enough for a network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..suppression.deid import DeIDTarget
from .images import HEIGHT, WIDTH, RowImages
from .inversion_decoder import to_images

_AT_ONCE = 256  # images of 256 x 128: 100 MB as floats
_LARGEST = 32  # pixels of a block at 64 x 32
_SAME = 1e-5  # of the pixel range, far below one of 255 levels: rounding of the block means


def deid_features(
    images: Sequence[RowImages], target: DeIDTarget, *, height: int = 256, width: int = 128
) -> list[npt.NDArray[np.float32]]:
    """Return T(x) of each image as a row, one matrix for each of several sets of images.

    Images are resized to the model's input size, de-identified there, and averaged down to 64 x 32 as training does.
    Where all images of all sets consist of squares of one color, as after pixelation, a square is one number a channel:
    nothing is lost by that, and attackers are no slower than on features.

    Args:
        images: the sets.
        target: T.
        height: of the model's input in pixels.
        width: of it.

    Shape:
        Output: (n, 3 h w) for each set, float32 in [0, 1], channel by channel and row by row; h, w: 64, 32, or both
        divided by a power of two.

    Raises:
        ValueError: images of this size cannot be de-identified.
        ImageError: a file that cannot be read.
    """
    target.check_size(height, width)
    made = [_averaged(one, target, height, width) for one in images]
    side = min(map(_side_of_squares, made), default=1)
    return [F.avg_pool2d(one, side).flatten(1).numpy() for one in made]


def _averaged(images: RowImages, target: DeIDTarget, height: int, width: int) -> Tensor:
    """Return T(x) at 64 x 32, (n, 3, 64, 32)."""
    made = torch.empty(len(images), 3, HEIGHT, WIDTH)
    for places in np.split(np.arange(len(images)), range(_AT_ONCE, len(images), _AT_ONCE)):
        shown = target(to_images(images.take(places).load(height, width)))
        made[torch.from_numpy(places)] = F.interpolate(shown, size=(HEIGHT, WIDTH), mode="area")
    return made


def _side_of_squares(images: Tensor) -> int:
    """Return the side in pixels of the largest squares, a power of two, that all images consist of."""
    side = _LARGEST
    while side > 1 and not all(_is_of_squares(part, side) for part in images.split(_AT_ONCE)):
        side //= 2
    return side


def _is_of_squares(images: Tensor, side: int) -> bool:
    squares = F.interpolate(F.avg_pool2d(images, side), scale_factor=side, mode="nearest")
    return bool(((squares - images).abs() < _SAME).all())
