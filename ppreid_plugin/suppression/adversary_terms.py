"""What adversaries add to the encoder's loss, as functions of losses and logits: bounded, and flat at their optimum."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_RAMP_STEEPNESS = 10.0  # Ganin and Lempitsky, ICML 2015, section 4.1


def ramp(progress: float) -> float:
    r"""Factor that grows from 0 to 1 with the training's progress p: :math:`2 / (1 + e^{-10 p}) - 1`.

    Source:
        Ganin and Lempitsky, ICML 2015, arXiv 1409.7495, section 4.1.
    """
    return 2.0 / (1.0 + math.exp(-_RAMP_STEEPNESS * progress)) - 1.0


def bounded(losses: Tensor, bounds: Tensor | float) -> Tensor:
    """Return min(losses, bounds), whose gradient is exactly zero at or beyond the bound (`torch.clamp`'s is not at it).

    Shape:
        losses: (B,) or (B, tasks); bounds: a number, or a shape that broadcasts to it.

    Example:
        >>> bounded(torch.tensor([0.5, 2.0]), 1.0)
        tensor([0.5000, 1.0000])
    """
    limit = torch.as_tensor(bounds, dtype=losses.dtype, device=losses.device).expand_as(losses)
    return torch.where(losses < limit, losses, limit)


def divergence_from_uniform(logits: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence :math:`\mathrm{KL}(u \| p) = -\log C - \frac{1}{C} \sum_c \log p_c` of each row.

    At least 0; 0 with zero gradient where the posterior p = softmax(logits) is uniform.

    Shape:
        logits: (B, C). Output: (B,).

    Example:
        >>> divergence_from_uniform(torch.zeros(1, 3)).abs() < 1e-6
        tensor([True])
    """
    return -math.log(logits.shape[1]) - F.log_softmax(logits, dim=1).mean(1)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over samples by weight, then over the tasks that have any weight; 0 where nothing has.

    Divided by the sum of the batch's weights, so that a bound on the values bounds the mean too.

    Shape:
        values, weights: (B,) or (B, tasks); weights >= 0, None: all 1. Output: scalar.

    Example:
        >>> weighted_mean(torch.tensor([[1.0, 5.0], [3.0, 9.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
        tensor(1.5000)
    """
    if weights is None:
        return values.mean()
    totals = weights.sum(0)
    known = totals > 0
    means = (values * weights).sum(0) / torch.where(known, totals, torch.ones_like(totals))
    return (means * known).sum() / known.sum().clamp(min=1)
