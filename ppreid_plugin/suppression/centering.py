"""The center that features are seen from while the encoder trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RunningCenter(nn.Module):
    r"""The mean direction of the training features, kept over batches, and rows seen from it.

    .. math:: c = \frac{u - m}{|u - m|}, \qquad u = \frac{f}{|f|}

    as stage 2's transform ``center`` does with the mean m of the whole training split. Here m is the mean over the
    first 1 / (1 - momentum) batches and an exponential average afterwards, without gradient.

    Args:
        columns: d.
        momentum: share of the old mean that a batch leaves, in [0, 1).
    """

    mean: Tensor
    batches: Tensor

    def __init__(self, columns: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Take a batch (B, d) into the mean."""
        self.batches += 1
        share = max(1.0 / int(self.batches), 1.0 - self.momentum)
        self.mean.lerp_(F.normalize(features, dim=1).mean(0).to(self.mean), share)

    def forward(self, features: Tensor) -> Tensor:
        """Return unit rows (B, d) as seen from the center; a feature of zeros, without direction, gets no gradient."""
        features = torch.where(features.detach().any(dim=1, keepdim=True), features, features.detach())
        return F.normalize(F.normalize(features, dim=1) - self.mean, dim=1)
