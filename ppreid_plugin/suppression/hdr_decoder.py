"""The ``hdr`` decoder network: full-size images, for pictures and large models."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from .decoder import Decoder, register_decoder

_CHANNELS = (128, 96, 64, 48, 32, 24)  # ours: 462 MMAC for 512 -> 256 x 128, about what HDRNet costs
_LEAST_START = 4  # pixels of the first map's shorter side


@register_decoder("hdr")
class HDRDecoder(Decoder):
    """Dense layer to a small map, then up to five times nearest-neighbor x2 and a 3 x 3 convolution, then the image.

    The shape of HDRNet (Kansal and Subramanyam, IEEE Access 2019) at the full input size; widths are ours. A feature
    map is not flattened: it is pooled to the first map's size and mixed by a 1 x 1 convolution. No batch normalization,
    so that it computes the same for training and frozen. An image of 256 x 128 starts from a map of 8 x 4 and costs

    =========================  =====  ==========
    input                       MMAC  parameters
    =========================  =====  ==========
    feature, 512               462.2      2.32 M
    feature, 2048              468.5      8.61 M
    feature map, 512 x 16 x 8  462.2      0.28 M
    =========================  =====  ==========

    of one image's forward pass, against 80 MMAC of OSNet x0.25 itself and 4 MMAC of ``light`` at 64 x 32.

    Raises:
        ValueError: height and width are no multiples of 8, or below 32.
    """

    def __init__(self, input_shape: tuple[int, ...], out_channels: int, height: int, width: int) -> None:
        super().__init__(input_shape, out_channels, height, width)
        if height % 8 or width % 8 or min(height, width) < 8 * _LEAST_START:
            raise ValueError(
                f"the hdr decoder's image is {height} x {width}; both must be multiples of 8 and >= "
                f"{8 * _LEAST_START}, such as 256 x 128 (privacy.deid.height, privacy.deid.width; 0: the input's size)."
            )
        doublings = 3
        while doublings < len(_CHANNELS) - 1 and all(
            size % 2 ** (doublings + 1) == 0 and size >> (doublings + 1) >= _LEAST_START for size in (height, width)
        ):
            doublings += 1
        self.start = (height >> doublings, width >> doublings)
        channels = _CHANNELS[len(_CHANNELS) - 1 - doublings :]
        if len(input_shape) == 3:
            self.first: nn.Module = nn.Sequential(
                nn.AdaptiveAvgPool2d(self.start), nn.Conv2d(input_shape[0], channels[0], 1)
            )
        else:
            self.first = nn.Sequential(
                nn.Linear(input_shape[0], channels[0] * self.start[0] * self.start[1]),
                nn.Unflatten(1, (channels[0], *self.start)),
            )
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], out_channels, 3, padding=1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Decode a batch."""
        return torch.sigmoid(self.layers(torch.relu(self.first(inputs))))
