"""De-ID targets with noise: Gaussian pixel noise and differentially private pixelation.

As a target the noise is a fixed function of the image's 8-bit content, its place in the image, and a seed: an image has
the same target in every epoch and batch and on every device, another image (its mirror image too) has other noise. A
pattern that all images shared would be no noise at all: a decoder learns it as a bias. As a transform of training
images (`DeIDTarget.fresh`) the noise is drawn anew each time.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from ..number_checks import require_positive, require_whole
from .deid import DeIDTarget, Pixelate, register_deid_target

_STEP = 0x9E3779B97F4A7C15  # SplitMix64: Steele, Lea, Flood, OOPSLA 2014
_MIXERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_BITS = {torch.float64: 52}  # of a uniform number; 23 in float32
_MAX_SEED = 2**63 - 1


class NoisyTarget(DeIDTarget):
    """Base of targets with noise. A subclass says how many uniform numbers an image needs, and what it does with them.

    Args:
        seed: of the noise of the target, >= 0.

    Raises:
        ValueError: ``seed`` is no whole number from 0 to 2^63 - 1.
    """

    def __init__(self, seed: int = 1) -> None:
        self.seed = require_whole("seed of a De-ID target", seed, least=0, most=_MAX_SEED)

    @abstractmethod
    def noise_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (rows, columns) of the noise of one channel."""

    @abstractmethod
    def perturb(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Return the de-identified images, given uniform numbers in (0, 1) of shape (B, 3, *noise_shape)."""

    def __call__(self, images: Tensor) -> Tensor:
        """De-identify a batch with the noise that belongs to each image."""
        shape = images.shape[1], *self.noise_shape(*images.shape[-2:])
        return self.perturb(images, image_uniforms(images, shape, self.seed))

    def fresh(self, images: Tensor) -> Tensor:
        """De-identify a batch with new noise from torch's global generator."""
        shape = *images.shape[:2], *self.noise_shape(*images.shape[-2:])
        bits = _BITS.get(images.dtype, 23)
        drawn = torch.randint(1 << bits, shape, device=images.device)
        return self.perturb(images, _to_unit(drawn, bits, images.dtype))


@register_deid_target("noise")
class Noise(NoisyTarget):
    r"""Adds Gaussian noise to every pixel and clips to [0, 1].

    A decoder that minimizes the squared error reproduces :math:`E[T(x) | f]`, in which zero-mean noise cancels: apart
    from clipping, this target teaches what the clean decoder (``none``) teaches. It is in the paper's comparison, and
    here to show that.

    Args:
        noise_std: standard deviation, as a fraction of the pixel range (0.2 is 51 gray levels), > 0.
        seed: of the noise; the same image and seed give the same target.

    Shape:
        images: (B, 3, H, W). Output: the same.

    Raises:
        ValueError: ``noise_std`` is not > 0.
    """

    def __init__(self, noise_std: float = 0.2, seed: int = 1) -> None:
        super().__init__(seed)
        require_positive("noise_std", noise_std, hint="a fraction of the pixel range, such as 0.2")
        self.noise_std = noise_std

    def noise_shape(self, height: int, width: int) -> tuple[int, int]:
        """One number a pixel."""
        return height, width

    def perturb(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Add Gaussian noise by its inverse distribution function."""
        normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
        return (images + self.noise_std * normal).clamp(0, 1)


@register_deid_target("dp_pixelate")
class DPPixelate(NoisyTarget):
    r"""Differentially private pixelation: block means plus Laplace noise, clipped to the pixel range.

    Two images are neighbors when they differ in at most m pixels. In gray levels, for one color channel and blocks of
    b x b pixels, such images' block means differ by at most :math:`255 m / b^2` in L1 norm, so noise of scale

    .. math:: \lambda = \frac{255 \, m}{b^2 \varepsilon}

    makes that channel :math:`\varepsilon`-DP. A pixel has three channels, and each gets this noise, so that **one image
    gets** :math:`3 \varepsilon` (`image_epsilon`) by composition: sequential, since the same m pixels count in all
    three. Where the width is no multiple of ``blocks``, neighboring blocks share pixels; :math:`1 / b^2` is then the
    largest total weight that a pixel has in the block means (`pixel_weight`).

    What the guarantee is about: m pixels of one image as this class gets it, after resizing and cropping. It hides a
    detail of m pixels (at 256 x 128 a face has about 500), not the whole person unless m is the area of the image.
    Images of one person compose; so do several draws of one image.

    What it is not: the noise comes from a seeded generator in floating point, which the attack of Mironov (CCS 2012)
    distinguishes, and its tails end at 16 scales. As a De-ID target it is a fixed function of image and seed, so that
    the guarantee holds only against who does not know the seed. Research noise: for comparisons, not for publication.

    Args:
        blocks: blocks across the width (8 at width 128: b = 16), as for ``pixelate``.
        epsilon: budget of one *channel* of one draw, > 0; `image_epsilon` is three times that.
        neighborhood: m, pixels in which neighboring images may differ, >= 1.
        seed: of the noise of the target.

    Shape:
        images: (B, 3, H, W), clipped to [0, 1] first. Output: the same.

    Raises:
        ValueError: a number out of range, or more blocks than pixels across.

    Source:
        Fan, "Image pixelization with differential privacy", DBSec 2018, for gray images; colors and the defaults
        (epsilon 1 a channel, m = 16) are ours.

    Example:
        >>> target = DPPixelate(blocks=8, epsilon=0.5, neighborhood=16)
        >>> 255 * target.scale(256, 128)  # gray levels: 255 * 16 / (16 * 16 * 0.5)
        31.875
        >>> target.image_epsilon
        1.5
    """

    def __init__(self, blocks: int = 8, epsilon: float = 1.0, neighborhood: int = 16, seed: int = 1) -> None:
        super().__init__(seed)
        self._pixelate = Pixelate(blocks)
        require_positive("epsilon of dp_pixelate", epsilon, hint="the budget of one color channel, such as 1")
        require_whole("neighborhood of dp_pixelate", neighborhood, hint="pixels, such as 16")
        self.blocks, self.epsilon, self.neighborhood = blocks, epsilon, neighborhood

    def check_size(self, height: int, width: int) -> None:
        """Check that there are pixels for all blocks."""
        self._pixelate.check_size(height, width)

    @property
    def image_epsilon(self) -> float:
        """Budget that one draw of one image spends, all three channels together."""
        return 3 * self.epsilon

    def pixel_weight(self, height: int, width: int) -> float:
        """Return the largest total weight of a pixel in the block means: 1 / b^2 for blocks that divide the image."""
        rows, columns = self._pixelate.grid(height, width)
        return _largest_weight(height, rows) * _largest_weight(width, columns)

    def scale(self, height: int, width: int) -> float:
        """Return the noise's scale, as a fraction of the pixel range (times 255: gray levels)."""
        rows, columns = self._pixelate.grid(height, width)
        # no block mean can change by more than the pixel range
        sensitivity = min(self.neighborhood * self.pixel_weight(height, width), float(rows * columns))
        return sensitivity / self.epsilon

    def noise_shape(self, height: int, width: int) -> tuple[int, int]:
        """One number a block."""
        return self._pixelate.grid(height, width)

    def perturb(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Add Laplace noise to the block means by its inverse distribution function."""
        size = images.shape[-2:]
        centered = uniform - 0.5
        laplace = -centered.sign() * torch.log1p(-2 * centered.abs())
        means = self._pixelate.means(images.clamp(0, 1)) + self.scale(*size) * laplace
        return F.interpolate(means.clamp(0, 1), size=size, mode="nearest-exact")


def image_uniforms(images: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return uniform numbers in (0, 1) that depend on each image's 8-bit content, its own place and ``seed`` only.

    Integer arithmetic throughout: the same on every device, and whatever else is in the batch.

    Shape:
        images: (B, 3, H, W) in [0, 1]. Output: (B, *shape), of the images' type.
    """
    levels = (images.clamp(0, 1) * 255).round().to(torch.int64).flatten(1)
    places = torch.arange(1, levels.shape[1] + 1, device=images.device)
    # a random odd factor for each place makes the weighted sum a hash of the content
    keys = _mixed((levels * (_mixed(places * _signed(_STEP) + seed) | 1)).sum(1))
    bits = _BITS.get(images.dtype, 23)
    steps = torch.arange(1, math.prod(shape) + 1, device=images.device) * _signed(_STEP)
    drawn = _shifted(_mixed(keys[:, None] + steps), 64 - bits)
    return _to_unit(drawn, bits, images.dtype).unflatten(1, shape)


def _mixed(words: Tensor) -> Tensor:
    """Scramble 64-bit words (the finalizer of SplitMix64); products wrap around."""
    for shift, factor in _MIXERS:
        words = (words ^ _shifted(words, shift)) * _signed(factor)
    return words ^ _shifted(words, _LAST_SHIFT)


def _shifted(words: Tensor, shift: int) -> Tensor:
    """Shift right, filling with zeros: torch has signed 64-bit words only."""
    return (words >> shift) & ((1 << (64 - shift)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _to_unit(drawn: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Whole numbers below 2^bits as the middles of as many intervals of (0, 1): never 0 or 1, symmetric about 1/2."""
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    return (drawn.to(wide) + 0.5) * 2.0**-bits


def _largest_weight(size: int, bins: int) -> float:
    """Largest sum of 1 / length over the intervals of adaptive pooling that one place along an axis lies in."""
    weights = [0.0] * size
    for index in range(bins):
        start, stop = index * size // bins, -(-(index + 1) * size // bins)
        for place in range(start, stop):
            weights[place] += 1 / (stop - start)
    return max(weights)
