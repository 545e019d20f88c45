"""Decoder networks: from a feature (or feature map) to a small image."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ..registry import Registry

_START = 8  # the light decoder starts from a map about 8 pixels high
_CHANNELS = (32, 24, 16, 12)  # ours: 4 MMAC for 512 -> 64 x 32, against 80 MMAC of OSNet x0.25
_MAP_POOL = 4  # a feature map is pooled to a grid of 2 * _MAP_POOL x _MAP_POOL before it is decoded


class Decoder(nn.Module):
    """Contract of a decoder network.

    Args:
        input_shape: (d,) of a feature or (C, h, w) of a feature map.
        out_channels: 3 for each De-ID target.
        height, width: size of the decoded image in pixels.

    Shape:
        inputs: (B, *input_shape). Output: (B, out_channels, height, width), RGB in [0, 1].
    """

    def __init__(self, input_shape: tuple[int, ...], out_channels: int, height: int, width: int) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.out_channels = out_channels
        self.height = height
        self.width = width


DECODERS: Registry[type[Decoder]] = Registry("decoder", contract=Decoder)
register_decoder = DECODERS.register


@register_decoder("light")
class LightDecoder(Decoder):
    """Dense layer to a small map, then nearest-neighbor x2 and a 3 x 3 convolution, until the image is reached.

    The shape of HDRNet (Kansal and Subramanyam, IEEE Access 2019) on a reduced grid: about 4 million multiply-adds for
    512 dimensions and 64 x 32 pixels. No batch normalization, so that it computes the same for training and frozen.

    Raises:
        ValueError: height or width is no multiple of 8, or below 16.
    """

    def __init__(self, input_shape: tuple[int, ...], out_channels: int, height: int, width: int) -> None:
        super().__init__(input_shape, out_channels, height, width)
        if height % 8 or width % 8 or min(height, width) < 16:
            raise ValueError(
                f"the light decoder's image is {height} x {width}; both must be multiples of 8 and >= 16, "
                "such as 64 x 32 (privacy.deid.height, privacy.deid.width)."
            )
        doublings = max(1, min(3, round(math.log2(height / _START)), (height & -height).bit_length() - 1))
        self.start = (height >> doublings, width >> doublings)
        channels = _CHANNELS[: doublings + 1]
        if len(input_shape) == 3:
            self.pool: nn.Module = nn.AdaptiveAvgPool2d((2 * _MAP_POOL, _MAP_POOL))
            flat = input_shape[0] * 2 * _MAP_POOL * _MAP_POOL
        else:
            self.pool = nn.Identity()
            flat = input_shape[0]
        self.dense = nn.Linear(flat, channels[0] * self.start[0] * self.start[1])
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        layers[-2:] = [nn.Conv2d(channels[-2], out_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Decode a batch."""
        hidden = torch.relu(self.dense(self.pool(inputs).flatten(1)))
        return torch.sigmoid(self.layers(hidden.unflatten(1, (-1, *self.start))))
