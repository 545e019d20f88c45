"""The networks of adversaries that classify: an image or a feature, to logits."""

from __future__ import annotations

from torch import nn

_HIDDEN = 256  # of a feature's classifier (ours)
_IMAGE_HIDDEN = 128


def classifier(input_shape: tuple[int, ...], outputs: int, dropout: float = 0.0) -> nn.Module:
    """Return three strided convolutions and two dense layers for an image, two dense layers for a feature.

    Args:
        input_shape: (d,) of a feature or (C, h, w) of an image.
        outputs: number of logits: the classes of one label, or of several one after the other (a head each).
        dropout: probability that a unit of the last hidden layer is left out while the network learns.

    Shape:
        Input: (B, *input_shape). Output: (B, outputs).
    """
    last = [nn.Dropout(dropout)] if dropout > 0 else []
    if len(input_shape) == 1:
        return nn.Sequential(
            nn.LayerNorm(input_shape[0]),
            nn.Linear(input_shape[0], _HIDDEN),
            nn.ReLU(),
            *last,
            nn.Linear(_HIDDEN, outputs),
        )
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((8, 4)),
        nn.Flatten(),
        nn.Linear(64 * 8 * 4, _IMAGE_HIDDEN),
        nn.ReLU(),
        *last,
        nn.Linear(_IMAGE_HIDDEN, outputs),
    )
