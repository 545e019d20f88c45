"""De-ID targets: the de-identified image T(x) that the decoder must reproduce.

Here: what a target is, and the plain ones; `deid_noise`, `deid_mask` and `deid_mean` hold the others. Strengths are
given in units that do not depend on the input size. The paper (Kansal, Wong, Kankanhalli, WACV 2024) names pixelation
as the best target; the strengths are our choice.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from ..components import Context
from ..number_checks import require_positive, require_whole
from ..registry import Registry, parse_weights


class DeIDTarget(ABC):
    """Contract of a De-ID target: a callable from images to de-identified images of the same shape.

    Constructor arguments are keywords with defaults; those named like a ``privacy.deid`` key take its value, and
    ``seed`` takes ``train.seed``. A target is a fixed function of an image: the same image has the same target in every
    epoch and batch, and no target moves torch's global generator. `of_batch`, `fresh`, `check_size` and `prepare` are
    optional.

    Attributes:
        is_image_transform: whether the name may stand in ``data.transforms`` and ``data.transforms_test``.

    Shape:
        images: (B, 3, H, W), RGB in [0, 1]. Output: the same shape and range; no gradient is needed.
    """

    is_image_transform: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return the de-identified images."""

    def of_batch(self, images: Tensor, paths: Sequence[str]) -> Tensor:
        """Return the targets of augmented images whose files are known; overridden by targets that look at the file."""
        return self(images)

    def fresh(self, images: Tensor) -> Tensor:
        """De-identify as a training-image transform: noise is drawn anew, from torch's global generator."""
        return self(images)

    def check_size(self, height: int, width: int) -> None:  # noqa: B027  (most targets take every size)
        """Check that images of this size in pixels can be de-identified, before any are read.

        Raises:
            ValueError: they cannot.
        """

    def prepare(self, context: Context) -> None:  # noqa: B027  (most targets need nothing)
        """Take what is needed from the engine before training, such as access to its training images."""


DEID_TARGETS: Registry[type[DeIDTarget]] = Registry("De-ID target", contract=DeIDTarget)
register_deid_target = DEID_TARGETS.register


@register_deid_target("pixelate")
class Pixelate(DeIDTarget):
    r"""Replaces every square block by its mean color.

    Args:
        blocks: blocks across the width; the number of rows of blocks is ``round(blocks * H / W)``, at least 1.

    Shape:
        images: (B, 3, H, W) with H, W >= the number of blocks. Output: the same.

    Raises:
        ValueError: ``blocks`` is no whole number >= 1, or larger than the width of the images in pixels.

    Source:
        Kansal, Wong, Kankanhalli, WACV 2024 (pixelation as De-ID target); the default of 8 blocks is ours.

    Example:
        >>> import torch
        >>> images = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(1, 3, 2, 2)
        >>> Pixelate(blocks=1)(images)[0, 0]
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    def __init__(self, blocks: int = 8) -> None:
        self.blocks = require_whole("blocks", blocks, hint="blocks across the width")

    def __call__(self, images: Tensor) -> Tensor:
        """Pixelate a batch."""
        return F.interpolate(self.means(images), size=images.shape[-2:], mode="nearest-exact")

    def check_size(self, height: int, width: int) -> None:
        """Check that there are pixels for all blocks."""
        if self.blocks > width:
            raise ValueError(f"blocks is {self.blocks}, must be <= the image width of {width} pixels.")

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the number of blocks down and across an image of that size.

        Raises:
            ValueError: more blocks than pixels across.
        """
        self.check_size(height, width)
        return min(height, max(1, round(self.blocks * height / width))), self.blocks

    def means(self, images: Tensor) -> Tensor:
        """Return the mean color of each block: (B, 3, blocks down, blocks across)."""
        return F.adaptive_avg_pool2d(images, self.grid(*images.shape[-2:]))


@register_deid_target("blur")
class Blur(DeIDTarget):
    """Gaussian blur.

    Args:
        sigma: standard deviation as a fraction of the image's height (0.02 is 5 pixels of 256).

    Shape:
        images: (B, 3, H, W). Output: the same. Borders are reflected.

    Raises:
        ValueError: ``sigma`` is not > 0.
    """

    def __init__(self, sigma: float = 0.02) -> None:
        require_positive("sigma", sigma, hint="a fraction of the image height, such as 0.02")
        self.sigma = sigma

    def __call__(self, images: Tensor) -> Tensor:
        """Blur a batch."""
        height, width = images.shape[-2:]
        sigma_px = self.sigma * height
        radius = max(1, min(math.ceil(3 * sigma_px), height - 1, width - 1))
        # one axis after the other: the same blur at a tenth of the cost
        across = gaussian_blur(images, kernel_size=[2 * radius + 1, 1], sigma=[sigma_px] * 2)
        return gaussian_blur(across, kernel_size=[1, 2 * radius + 1], sigma=[sigma_px] * 2)


@register_deid_target("color_quantize")
class ColorQuantize(DeIDTarget):
    r"""Rounds every color channel to a few levels, :math:`\text{round}(x (L - 1)) / (L - 1)`.

    A weak target, for comparison: edges, and so shapes and large print, stay.

    Args:
        levels: L, levels of a channel, >= 2 (4: 64 colors).

    Shape:
        images: (B, 3, H, W). Output: the same.

    Raises:
        ValueError: ``levels`` is no whole number from 2 to 256.

    Example:
        >>> import torch
        >>> ColorQuantize(levels=3)(torch.tensor([0.1, 0.3, 0.7, 0.9]))
        tensor([0.0000, 0.5000, 0.5000, 1.0000])
    """

    def __init__(self, levels: int = 4) -> None:
        self.levels = require_whole("levels", levels, least=2, most=256, hint="levels of a color channel")

    def __call__(self, images: Tensor) -> Tensor:
        """Quantize a batch."""
        return (images * (self.levels - 1)).round() / (self.levels - 1)


@register_deid_target("none")
class NoDeID(DeIDTarget):
    """The clean decoder of the ablation: the target is the image itself, T(x) = x."""

    is_image_transform = False

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images."""
        return images


def parse_deid_targets(spec: str) -> dict[str, float]:
    """Parse ``"pixelate"`` or ``"pixelate:1.0,blur:0.5"`` into names and weights.

    Raises:
        ValueError: an unknown name (the nearest is suggested), a weight that is no number > 0, a name given twice.

    Example:
        >>> parse_deid_targets("pixelate:1.0,blur:0.5")
        {'pixelate': 1.0, 'blur': 0.5}
    """
    key = "privacy.deid.target"
    return parse_weights(spec, key=key, check=lambda name: DEID_TARGETS.get(name, key=key))


def taken_by_deid_targets(spec: str) -> set[str]:
    """Return the names of the arguments that the targets of ``spec`` take.

    Example:
        >>> sorted(taken_by_deid_targets("pixelate,blur"))
        ['blocks', 'sigma']
    """
    return {
        name for target in parse_deid_targets(spec) for name in inspect.signature(DEID_TARGETS.get(target)).parameters
    }


def standalone_deid_target(name: str, *, key: str) -> type[DeIDTarget]:
    """Return a target that makes T(x) of an image alone, for use where no engine prepares it.

    Raises:
        ValueError: an unknown name (the nearest is suggested), or a target that learns from training images first, in
            the name of the ``key`` that holds it.
    """
    target = DEID_TARGETS.get(name, key=key)
    if target.prepare is not DeIDTarget.prepare:
        raise ValueError(
            f"{key} is {name!r}, which learns from training images first; T(x) of an image alone is needed. Name "
            "another, such as 'pixelate'."
        )
    return target


def build_deid_target(name: str, **options: Any) -> DeIDTarget:
    """Build the registered target ``name`` with those of ``options`` that its constructor takes."""
    target = DEID_TARGETS.get(name)
    parameters = inspect.signature(target).parameters
    return target(**{key: value for key, value in options.items() if key in parameters})
