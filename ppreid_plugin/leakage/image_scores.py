"""How near a reconstruction is to the image: SSIM, PSNR, and their means over people."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WINDOW, SIGMA_PX = 11, 1.5  # Gaussian window of Wang et al. 2004
_C1, _C2 = 0.01**2, 0.03**2  # its constants, for a range of 1
_LEAST_ERROR = 1e-10  # mean squared error below which PSNR says nothing more: 100 dB


def ssim(images: Tensor, others: Tensor) -> Tensor:
    r"""Return the structural similarity of each image with its counterpart.

    .. math:: \frac{(2\mu_x\mu_y + C_1)(2\sigma_{xy} + C_2)}{(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}

    averaged over channels and over the positions at which the window of 11 x 11 pixels lies inside the image.

    Shape:
        images, others: (B, C, H, W), in [0, 1], H and W >= 11. Output: (B,), 1 = equal. Differentiable.

    Raises:
        ValueError: shapes that differ, or images smaller than the window.

    Source:
        Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity",
        IEEE TIP 2004.

    Example:
        >>> ssim(torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 16))
        tensor([1.])
    """
    _check(images, others)
    height, width = images.shape[-2:]
    if min(height, width) < WINDOW:
        raise ValueError(f"images are {height} x {width}, must be at least {WINDOW} x {WINDOW} for SSIM.")
    down, across = (_window(size, images.dtype).to(images.device) for size in (height, width))
    moments = torch.stack([images, others, images * images, others * others, images * others])
    mean_x, mean_y, square_x, square_y, product = down @ moments @ across.T
    variances = square_x - mean_x * mean_x + square_y - mean_y * mean_y
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    return (luminance * (2 * covariance + _C2) / (variances + _C2)).flatten(1).mean(1)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    r"""Return the peak signal-to-noise ratio :math:`-10 \log_{10} \text{MSE}` of each image, in dB, 100 at most.

    Shape:
        images, others: (B, C, H, W), in [0, 1]. Output: (B,).

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> psnr(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1)).round()
        tensor([20.])
    """
    _check(images, others)
    error = (images - others).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=_LEAST_ERROR))


def mean_over_people(values: npt.NDArray[np.float64], pids: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean of rows' values, each person counted alike, and its standard error over people.

    Shape:
        values, pids: (n,).

    Example:
        >>> mean_over_people(np.array([1.0, 1.0, 0.0]), np.array([1, 1, 2]))
        (0.5, 0.5)
    """
    _, person = np.unique(pids, return_inverse=True)
    each = np.bincount(person, values) / np.bincount(person)
    error = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else 0.0
    return float(each.mean()), error


def in_chunks(function: Callable[..., Tensor], *tensors: Tensor, size: int = 512) -> Tensor:
    """Return ``function`` of equally long tensors, called on so many rows at a time, without a graph."""
    with torch.no_grad():
        return torch.cat([function(*parts) for parts in zip(*(one.split(size) for one in tensors), strict=True)])


@lru_cache(maxsize=8)
def _window(size: int, dtype: torch.dtype) -> Tensor:
    """Return the (size - 10, size) matrix that weighs each position's neighbors: windows are products of two."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA_PX**2))
    weights = weights / weights.sum()
    matrix = torch.zeros(size - WINDOW + 1, size, dtype=torch.float64)
    for row in range(len(matrix)):
        matrix[row, row : row + WINDOW] = weights
    return matrix.to(dtype)


def _check(images: Tensor, others: Tensor) -> None:
    if images.shape != others.shape or images.ndim != 4:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, the others {tuple(others.shape)}; both must be the same "
            "(B, C, H, W)."
        )
