"""Codebooks of finite mechanisms that say little about single training people: large from few published vectors.

``residual``: two levels of k-means; a codeword is the direction of the sum of one center of each. a + b vectors are
published, each the mean over many people, and make a * b codewords. ``gaussian``: directions drawn from a normal
distribution with the leading principal components of the training rows; only these are learned. Both are our choice
for Re-ID features; residual quantization itself is standard (Juang and Gray, ICASSP 1982).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

GAUSSIAN_RANK = 32  # principal components behind the drawn directions


class StructuredCodebook(NamedTuple):
    """Unit codewords (M, d), and for each published vector the number of training people behind it."""

    codewords: Floats
    people_behind: npt.NDArray[np.int64]


def level_sizes(count: int) -> tuple[int, int]:
    """Return the two factors of ``count`` closest to each other, the larger first.

    Example:
        >>> level_sizes(4096), level_sizes(2048)
        ((64, 64), (64, 32))
    """
    smaller = next(size for size in range(math.isqrt(count), 0, -1) if count % size == 0)
    return count // smaller, smaller


def residual_codebook(unit: Floats, people: npt.NDArray[np.int64], count: int, seed: int) -> StructuredCodebook:
    """Fit two levels of k-means, the second on what the first leaves over.

    Args:
        unit: training rows of length 1, (n, d).
        people: (n,), numbers from 0.
        count: codewords; it needs two factors >= 2.
        seed: of k-means.

    Raises:
        ValueError: ``count`` is prime, or a level is larger than the number of rows.
    """
    from sklearn.cluster import KMeans

    sizes = level_sizes(count)
    if sizes[1] < 2 or sizes[0] > len(unit):
        raise ValueError(
            f"codewords is {count}, which splits into levels of {sizes[0]} and {sizes[1]}; both must be 2 to "
            f"{len(unit)}. Take a square such as 1024 or 4096."
        )
    left = unit
    centers: list[Floats] = []
    behind: list[int] = []
    for size in sizes:
        fitted = KMeans(size, n_init=1, max_iter=50, random_state=seed).fit(left)
        centers.append(fitted.cluster_centers_)
        left = left - fitted.cluster_centers_[fitted.labels_]
        behind.extend(len(np.unique(people[fitted.labels_ == cell])) for cell in range(size))
    joint = (centers[0][:, None] + centers[1][None]).reshape(-1, unit.shape[1])
    return StructuredCodebook(_directions(joint), np.array(behind))


def gaussian_codebook(
    unit: Floats, people: npt.NDArray[np.int64], count: int, seed: int, rank: int = GAUSSIAN_RANK
) -> StructuredCodebook:
    """Draw codewords with the leading principal components (not centered) of the training rows.

    Args:
        unit: training rows of length 1, (n, d), of centered features.
        people: (n,), numbers from 0.
        count: codewords.
        seed: of the draw.
        rank: principal components used, at most d.
    """
    values, vectors = np.linalg.eigh(unit.T @ unit / len(unit))
    leading = slice(-min(rank, unit.shape[1]), None)
    scale = np.sqrt(np.maximum(values[leading], 0.0))
    drawn = np.random.default_rng(seed).standard_normal((count, len(scale)))
    return StructuredCodebook(
        _directions(drawn * scale @ vectors[:, leading].T), np.array([len(np.unique(people))], dtype=np.int64)
    )


def _directions(rows: Floats) -> Floats:
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
