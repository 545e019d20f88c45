"""Codebooks of finite mechanisms: plain ones, and ones that make many codewords from few published vectors.

``residual``: levels of k-means, each on what those before leave over; a codeword is the direction of the sum of one
center of each. Levels of 64 and 64 publish 128 vectors, each the mean over many people, and make 4,096 codewords; four
levels of 23 publish 92 and make 279,841. ``gaussian``: directions drawn from a normal
distribution with the leading principal components of the training rows; only these are learned. Both are our choice
for Re-ID features; residual quantization itself is standard (Juang and Gray, ICASSP 1982).
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp import arrays

Floats = npt.NDArray[np.float64]
Codewords = npt.ArrayLike | torch.Tensor

GAUSSIAN_RANK = 32  # principal components behind the drawn directions
LEVELS = 2  # of a residual codebook


class Codebook(ABC):
    """Public codewords: M directions of d numbers.

    Attributes:
        columns: d.
    """

    columns: int

    @abstractmethod
    def __len__(self) -> int:
        """Return M."""

    @abstractmethod
    def cosines(self, unit: torch.Tensor) -> torch.Tensor:
        """Return the cosine of each row of length 1 with each codeword: float64 (n, d) -> (n, M)."""

    @abstractmethod
    def rows(self, symbols: npt.NDArray[np.int64]) -> Floats:
        """Return the codewords of these symbols: (n,) -> (n, d)."""

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Return the published arrays, from which :func:`codebook_from_arrays` makes it again."""


class DenseCodebook(Codebook):
    """Codewords as they are given, of any length above 0.

    Args:
        codewords: (M, d), M >= 2, finite, none of them zero; kept as float64, read-only.

    Raises:
        ValueError: another shape, NaN or infinity, or a zero row.
    """

    def __init__(self, codewords: Codewords) -> None:
        self.codewords = checked_rows("codebook", codewords)
        if not np.abs(self.codewords).max(axis=1).all():
            zero = int(np.flatnonzero(np.abs(self.codewords).max(axis=1) == 0)[0])
            raise ValueError(f"codebook row {zero} is zero, which is near to nothing. Drop it.")
        self.columns = self.codewords.shape[1]
        self._unit = arrays.directions(torch.tensor(self.codewords))[0]

    def __len__(self) -> int:
        return len(self.codewords)

    def cosines(self, unit: torch.Tensor) -> torch.Tensor:
        """Return (n, M) cosines."""
        return unit @ self._unit.to(unit.device).T

    def rows(self, symbols: npt.NDArray[np.int64]) -> Floats:
        """Return the codewords of these symbols."""
        return self.codewords[symbols]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return ``codewords``."""
        return {"codewords": self.codewords}


class LevelCodebook(Codebook):
    """Codewords that are directions of sums of one vector of each level; the last level's number runs fastest.

    Args:
        levels: (a, d), (b, d), ...: finite; together they make at least two codewords, and no sum may be zero.

    Raises:
        ValueError: another shape, NaN or infinity, or a sum that is zero.
    """

    def __init__(self, *levels: Codewords) -> None:
        named = {f"codebook level {number}": level for number, level in enumerate(levels)}
        self.levels = tuple(checked_rows(name, level, least=1) for name, level in named.items())
        if len({level.shape[1] for level in self.levels}) != 1:
            shapes = " and ".join(str(level.shape) for level in self.levels) or "none"
            raise ValueError(f"codebook levels have shapes {shapes}, must have equally many columns.")
        self.columns = self.levels[0].shape[1]
        self._shape = tuple(len(level) for level in self.levels)
        # |sum|^2 = sum of |.|^2 + 2 <., .> over pairs of levels
        squares = _outer_sum([torch.from_numpy(np.square(level).sum(axis=1))[None] for level in self.levels])[0]
        for (i, first), (j, second) in itertools.combinations(enumerate(self.levels), 2):
            shape = [1] * len(self.levels)
            shape[i], shape[j] = len(first), len(second)
            squares += torch.from_numpy(2 * first @ second.T).reshape(shape)
        scale = sum(float(np.square(level).sum(axis=1).max()) for level in self.levels)
        if squares.numel() < 2 or squares.min() <= 1e-12 * scale:
            raise ValueError("codebook levels have a sum of vectors that is zero, or make one codeword only.")
        self._inverse = squares.rsqrt_()

    def __len__(self) -> int:
        return math.prod(self._shape)

    def cosines(self, unit: torch.Tensor) -> torch.Tensor:
        """Return (n, M) cosines, from those of the levels alone."""
        parts = [unit @ torch.tensor(level, device=unit.device).T for level in self.levels]
        return _outer_sum(parts).mul_(self._inverse.to(unit.device)).flatten(1)

    def rows(self, symbols: npt.NDArray[np.int64]) -> Floats:
        """Return the codewords of these symbols, unit length."""
        places = np.unravel_index(symbols, self._shape)
        return _directions(np.sum([level[place] for level, place in zip(self.levels, places, strict=True)], axis=0))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return ``codeword_level_0``, ``codeword_level_1``, ..."""
        return {f"codeword_level_{number}": level for number, level in enumerate(self.levels)}


class ProjectedCodebook(Codebook):
    """Codewords in few published directions: symbol i is coefficients[i] @ basis.

    Args:
        coefficients: (M, r), M >= 2, finite, none of them zero.
        basis: (r, d), orthonormal rows.

    Raises:
        ValueError: another shape, NaN or infinity, a zero row, or a basis that is not orthonormal.
    """

    def __init__(self, coefficients: Codewords, basis: Codewords) -> None:
        self.coefficients = DenseCodebook(coefficients).codewords
        self.basis = checked_rows("codebook basis", basis, least=1)
        if self.basis.shape[0] != self.coefficients.shape[1]:
            raise ValueError(
                f"codebook basis has {len(self.basis)} rows, the coefficients have {self.coefficients.shape[1]} "
                "columns; they must be equally many."
            )
        if np.abs(self.basis @ self.basis.T - np.eye(len(self.basis))).max() > 1e-6:
            raise ValueError("codebook basis is not orthonormal: its rows must have length 1 and right angles.")
        self.columns = self.basis.shape[1]
        self._unit = torch.from_numpy(_directions(self.coefficients))

    def __len__(self) -> int:
        return len(self.coefficients)

    def cosines(self, unit: torch.Tensor) -> torch.Tensor:
        """Return (n, M) cosines."""
        return (unit @ torch.tensor(self.basis, device=unit.device).T) @ self._unit.to(unit.device).T

    def rows(self, symbols: npt.NDArray[np.int64]) -> Floats:
        """Return the codewords of these symbols, unit length."""
        return _directions(self.coefficients[symbols] @ self.basis)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return ``codeword_coefficients`` and ``codeword_basis``."""
        return {"codeword_coefficients": self.coefficients, "codeword_basis": self.basis}


def as_codebook(codebook: Codebook | Codewords) -> Codebook:
    """Return a codebook: the one given, or a dense one of the rows given."""
    return codebook if isinstance(codebook, Codebook) else DenseCodebook(codebook)


def codebook_from_arrays(named: Mapping[str, np.ndarray]) -> Codebook:
    """Return the codebook whose :meth:`Codebook.arrays` are among ``named``.

    Raises:
        ValueError: they are not there, or are no codebook.
    """
    if "codewords" in named:
        return DenseCodebook(named["codewords"])
    if levels := sorted(name for name in named if name.startswith("codeword_level_")):
        return LevelCodebook(*(named[f"codeword_level_{number}"] for number in range(len(levels))))
    if {"codeword_coefficients", "codeword_basis"} <= set(named):
        return ProjectedCodebook(named["codeword_coefficients"], named["codeword_basis"])
    raise ValueError(
        f"no codebook among {', '.join(sorted(named)) or 'no arrays'}; needs codewords, levels, or a basis."
    )


class FittedCodebook(NamedTuple):
    """A codebook, and for each published vector the number of training people behind it."""

    codebook: Codebook
    people_behind: npt.NDArray[np.int64]


def level_sizes(count: int, levels: int = LEVELS) -> tuple[int, ...]:
    """Return factors of ``count`` close to each other, one a level, the largest first.

    Example:
        >>> level_sizes(4096), level_sizes(2048, 3), level_sizes(279841, 4)
        ((64, 64), (16, 16, 8), (23, 23, 23, 23))
    """
    if levels == 1:
        return (count,)
    root = round(count ** (1 / levels), 9)
    first = next(size for size in range(math.ceil(root), count + 1) if count % size == 0)
    return tuple(sorted((first, *level_sizes(count // first, levels - 1)), reverse=True))


def checked_level_sizes(count: int, levels: int, rows: float = math.inf) -> tuple[int, ...]:
    """Return the levels' sizes, the largest first.

    Args:
        count: codewords; it needs ``levels`` factors >= 2.
        levels: how many.
        rows: to fit them on; not known: no limit.

    Raises:
        ValueError: ``count`` has too few factors, or a level is larger than the number of rows.
    """
    sizes = level_sizes(count, levels)
    if sizes[-1] < 2 or sizes[0] > rows:
        allowed = "at least 2" if math.isinf(rows) else f"2 to {rows}"
        raise ValueError(
            f"codewords is {count}, which splits into levels of {' and '.join(map(str, sizes))}; all must be {allowed}."
            f" Take a product of {levels} numbers alike, such as {16**levels} or {32**levels}."
        )
    return sizes


def residual_codebook(
    unit: Floats, people: npt.NDArray[np.int64], count: int, seed: int, levels: int = LEVELS
) -> FittedCodebook:
    """Fit levels of k-means, each on what those before leave over.

    Args:
        unit: training rows of length 1, (n, d).
        people: (n,), numbers from 0.
        count: codewords; it needs that many factors >= 2.
        seed: of k-means.
        levels: how many.

    Raises:
        ValueError: ``count`` has too few factors, or a level is larger than the number of rows.
    """
    from sklearn.cluster import KMeans

    sizes = checked_level_sizes(count, levels, len(unit))
    left = unit
    centers: list[Floats] = []
    behind: list[int] = []
    for size in sizes:
        fitted = KMeans(size, n_init=1, max_iter=50, random_state=seed).fit(left)
        centers.append(fitted.cluster_centers_)
        left = left - fitted.cluster_centers_[fitted.labels_]
        behind.extend(len(np.unique(people[fitted.labels_ == cell])) for cell in range(size))
    return FittedCodebook(LevelCodebook(*centers), np.array(behind))


def gaussian_codebook(
    unit: Floats, people: npt.NDArray[np.int64], count: int, seed: int, rank: int = GAUSSIAN_RANK, power: float = 1.0
) -> FittedCodebook:
    """Draw codewords with the leading principal components (not centered) of the training rows.

    r components of n people are taken to have n / r people behind each.

    Args:
        unit: training rows of length 1, (n, d), of centered features.
        people: (n,), numbers from 0.
        count: codewords.
        seed: of the draw.
        rank: principal components used, at most d.
        power: exponent of the components' variances; 1: as those of the rows, 0: all alike.
    """
    values, vectors = np.linalg.eigh(unit.T @ unit / len(unit))
    leading = slice(-min(rank, unit.shape[1]), None)
    scale = np.maximum(values[leading], 0.0) ** (power / 2)
    drawn = np.random.default_rng(seed).standard_normal((count, len(scale)))
    codebook = ProjectedCodebook(drawn * scale, np.ascontiguousarray(vectors[:, leading].T))
    behind = len(np.unique(people)) // len(scale)
    return FittedCodebook(codebook, np.full(len(scale), behind, dtype=np.int64))


def checked_rows(name: str, rows: Codewords, least: int = 2) -> Floats:
    """Return rows (M, d) as float64, read-only.

    Raises:
        ValueError: another shape, fewer than ``least`` rows, NaN or infinity.
    """
    values = rows.detach().cpu().numpy() if isinstance(rows, torch.Tensor) else rows
    result = np.array(values, dtype=np.float64)
    if result.ndim != 2 or len(result) < least or not result.shape[1]:
        raise ValueError(f"{name} has shape {result.shape}, must be (M, d) with at least {least} codewords.")
    if not np.isfinite(result).all():
        bad = np.flatnonzero(~np.isfinite(result).all(axis=1))
        raise ValueError(
            f"{name} rows {', '.join(map(str, bad[:5]))} ({len(bad)} of {len(result)}) hold NaN or infinity."
        )
    result.flags.writeable = False
    return result


def _outer_sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return all sums of one entry of each part: (n, a), (n, b), ... -> (n, a, b, ...)."""
    total = parts[0]
    for part in parts[1:]:
        total = total[..., None] + part.reshape(len(part), *[1] * (total.dim() - 1), -1)
    return total.clone() if len(parts) == 1 else total


def _directions(rows: Floats) -> Floats:
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
