"""The inversion adversary: it tries to reconstruct the original image."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..components import Batch, Context
from ..number_checks import require_whole
from .adversary import Adversary, register_adversary
from .decoder import LightDecoder

_SIZES = "multiples of 8 from 16 on, such as image:height=64+width=32"


class Inverter(nn.Module):
    """A network that makes images, with the mean image of what it has learned from.

    Args:
        network: from (B, ...) to images (B, 3, height, width).
        height, width: size of the images in pixels.
    """

    mean_image: Tensor
    images_seen: Tensor

    def __init__(self, network: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean_image", torch.zeros(3, height, width))
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        """Reconstruct a batch."""
        return self.network(inputs)

    @torch.no_grad()
    def observe(self, images: Tensor) -> None:
        """Take images (B, 3, height, width) into the mean of all that were seen."""
        self.images_seen += len(images)
        self.mean_image += (images - self.mean_image).sum(0) / self.images_seen


@register_adversary("image")
class ImageAdversary(Adversary):
    r"""Reconstructs the original image x at a reduced size; the encoder is pushed to the floor of the mean image.

    A sample's loss is the mean squared error over pixels and channels, RGB in [0, 1]. Its bound is what the mean image
    of the images learned so far reaches *on that sample*: who outputs a constant can do no better on average than with
    the mean, so the gradient is zero exactly where nothing of the sample is recovered. (One bound for all, the mean of
    these errors, would keep pushing images near the mean, which nobody needs a feature for, and stop at unusual ones
    while they are still recognized.) Under ``alternating`` the encoder minimizes the mean squared distance between the
    reconstruction and the mean image, which is 0 there.

    Args:
        height, width: size of the reconstruction in pixels when the feature is read (from a De-ID decoder's image it
            is that image's).
        settings: of every adversary.

    Raises:
        ValueError: a size that the ``light`` decoder network does not have, or a setting out of range.
    """

    name = "adversary_image"

    def __init__(self, *, height: int = 64, width: int = 32, **settings: Any) -> None:
        super().__init__(**settings)
        for side, pixels in (("height", height), ("width", width)):
            if require_whole(f"image adversary {side}", pixels, least=16, hint=_SIZES) % 8:
                raise ValueError(f"image adversary {side} is {pixels}, must be a multiple of 8 ({_SIZES}).")
        self.height, self.width = height, width

    def make_module(self, input_shape: tuple[int, ...], context: Context) -> nn.Module:
        """Return the ``light`` decoder for a feature, a small network of convolutions for an image."""
        drop = nn.Dropout(self.dropout) if self.dropout > 0 else nn.Identity()
        if len(input_shape) == 1:
            network = nn.Sequential(LightDecoder(input_shape, 3, self.height, self.width))
            return Inverter(nn.Sequential(drop, *network), self.height, self.width)
        channels, height, width = input_shape
        network = nn.Sequential(
            nn.Conv2d(channels, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            drop,
            nn.Conv2d(48, 48, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(48, 24, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(size=(height, width), mode="nearest"),
            nn.Conv2d(24, 3, 3, padding=1),
            nn.Sigmoid(),
        )
        return Inverter(network, height, width)

    def sample_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of each image."""
        return (outputs - _wanted(outputs, batch)).square().flatten(1).mean(1)

    def chance_loss(self, context: Context) -> float:
        """No one number: the bound is each sample's own (`bounds`)."""
        return math.inf

    def bounds(self, module: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error of the mean image on each sample; 0 (no gradient) before any image was learned from."""
        mean = cast(Inverter, module).mean_image
        if not cast(Inverter, module).images_seen:
            return mean.new_zeros(len(batch.images))
        return (mean - _wanted(mean[None], batch)).square().flatten(1).mean(1)

    def forgetting(self, module: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean squared distance of each reconstruction from the mean image."""
        return (outputs - cast(Inverter, module).mean_image).square().flatten(1).mean(1)

    def observe(self, module: nn.Module, batch: Batch) -> None:
        """Take the images into the mean."""
        inverter = cast(Inverter, module)
        inverter.observe(_wanted(inverter.mean_image[None], batch))

    def figures(self, outputs: Tensor, batch: Batch) -> dict[str, float]:
        """Peak signal-to-noise ratio of the batch in decibels."""
        error = float(self.sample_losses(outputs.detach(), batch).mean())
        return {f"psnr_{self.name}": -10.0 * math.log10(max(error, 1e-10))}


def _wanted(outputs: Tensor, batch: Batch) -> Tensor:
    """Return the images at the size of the outputs, by the mean of the area."""
    size = outputs.shape[-2:]
    return batch.images if batch.images.shape[-2:] == size else F.interpolate(batch.images, size=size, mode="area")
