"""De-ID targets: the de-identified image T(x) that the decoder must reproduce.

Strengths are given in units that do not depend on the input size. The paper (Kansal, Wong, Kankanhalli, WACV 2024)
names pixelation as the best target; the strengths are our choice.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from ..registry import Registry


class DeIDTarget(ABC):
    """Contract of a De-ID target: a callable from images to de-identified images of the same shape.

    Constructor arguments are keywords with defaults; those named like a ``privacy.deid`` key take its value.

    Shape:
        images: (B, 3, H, W), RGB in [0, 1]. Output: the same shape and range; no gradient is needed.
    """

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return the de-identified images."""


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
        if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
            raise ValueError(f"blocks is {blocks!r}, must be a whole number >= 1 (blocks across the width).")
        self.blocks = blocks

    def __call__(self, images: Tensor) -> Tensor:
        """Pixelate a batch."""
        height, width = images.shape[-2:]
        if self.blocks > width:
            raise ValueError(f"blocks is {self.blocks}, must be <= the image width of {width} pixels.")
        rows = min(height, max(1, round(self.blocks * height / width)))
        means = F.adaptive_avg_pool2d(images, (rows, self.blocks))
        return F.interpolate(means, size=(height, width), mode="nearest-exact")


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
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma is {sigma}, must be > 0 (a fraction of the image height, such as 0.02).")
        self.sigma = sigma

    def __call__(self, images: Tensor) -> Tensor:
        """Blur a batch."""
        height, width = images.shape[-2:]
        sigma_px = self.sigma * height
        radius = max(1, min(math.ceil(3 * sigma_px), height - 1, width - 1))
        return gaussian_blur(images, kernel_size=[2 * radius + 1] * 2, sigma=[sigma_px] * 2)


@register_deid_target("none")
class NoDeID(DeIDTarget):
    """The clean decoder of the ablation: the target is the image itself, T(x) = x."""

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
    weights: dict[str, float] = {}
    for part in spec.split(","):
        name, _, text = part.strip().partition(":")
        DEID_TARGETS.get(name, key="privacy.deid.target")
        try:
            weight = float(text) if text else 1.0
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"privacy.deid.target gives '{name}' the weight '{text}', must be a number > 0.")
        if name in weights:
            raise ValueError(f"privacy.deid.target names '{name}' twice; give each target once, as NAME:WEIGHT.")
        weights[name] = weight
    return weights


def build_deid_target(name: str, **options: Any) -> DeIDTarget:
    """Build the registered target ``name`` with those of ``options`` that its constructor takes."""
    target = DEID_TARGETS.get(name)
    parameters = inspect.signature(target).parameters
    return target(**{key: value for key, value in options.items() if key in parameters})
