r"""Public transforms that project: PCA, whitening and LDA, fitted on the training split like every transform.

Each is :math:`y = \operatorname{normalize}((u - m) A)` with :math:`u = x / |x|` and the mean m of the training rows'
u; they differ in the matrix A (d, k). Under additive noise fewer columns change little for a clean query. For codebooks
LDA with a large shrinkage and 64 to 128 columns is the best that we know (docs/results.md): what tells people apart is
what the few symbols are spent on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from ppreid_plugin.dp.arrays import directions, row_chunks
from ppreid_plugin.dp.transforms import (
    PublicTransform,
    column_values,
    frozen,
    normalized,
    register_transform,
    unit_mean,
)
from ppreid_plugin.number_checks import require_not_negative, require_whole

Pids = npt.NDArray[np.int64]

_NO_VARIANCE = 1e-28  # of unit rows that are equal but for float64's rounding


class Projection(PublicTransform):
    """What PCA, whitening and LDA share. A zero row has u = 0; a row without a direction afterwards becomes e_1.

    Args:
        components: number of columns after the transform; None keeps all that the training rows span.

    Attributes:
        mean: (d,), float64, read-only; None before :meth:`fit`. It tells about the training people.
        matrix: A, (d, k), float64, read-only; None before :meth:`fit`. So does it.
    """

    learned: ClassVar[tuple[str, ...]] = ("mean", "matrix")

    def __init__(self, components: int | None = None) -> None:
        if components is not None:
            require_whole("components", components, hint="None: all")
        self.components = components
        self.mean: npt.NDArray[np.float64] | None = None
        self.matrix: npt.NDArray[np.float64] | None = None

    @abstractmethod
    def axes(self, covariance: torch.Tensor, rows: torch.Tensor, mean: torch.Tensor, pids: Pids | None) -> torch.Tensor:
        """Return the columns of A, most useful first, from the training rows and their covariance (d, d)."""

    def fit_rows(self, rows: torch.Tensor, pids: Pids | None = None) -> None:
        """Take mean and covariance of the unit rows, in float64, and the axes from them."""
        mean = unit_mean(rows)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=rows.device)
        for span in row_chunks(rows):
            centered = directions(rows[span].double())[0] - mean
            covariance.addmm_(centered.T, centered)
        axes = self.axes(covariance / len(rows), rows, mean, pids)
        wanted = axes.shape[1] if self.components is None else self.components
        if not 1 <= wanted <= axes.shape[1]:
            raise ValueError(
                f"components is {wanted}, but {len(rows)} training rows give {axes.shape[1]} axes. "
                "Ask for fewer, or fit on more rows."
            )
        self.mean = frozen(mean.cpu().numpy())
        self.matrix = frozen(np.ascontiguousarray(axes[:, :wanted].cpu().numpy()))

    def transform_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalize, subtract, project, normalize."""
        mean, matrix = column_values(self.mean, rows), column_values(self.matrix, rows)
        return normalized((directions(rows)[0] - mean) @ matrix)

    def describe(self) -> dict[str, Any]:
        """Return the name and what it was fitted on, in numbers of rows and columns."""
        columns, components = (None, self.components) if self.matrix is None else self.matrix.shape
        return {
            "transform": self.name,
            "fitted_rows": self.fitted_rows,
            "columns": columns,
            "components": components,
        }


class ShrunkProjection(Projection):
    """What whitening and LDA share: variances that are divided by are shrunken towards their mean first.

    Args:
        components: as in :class:`Projection`.
        shrinkage: added to each variance, as a fraction of the mean one. Features of training people whom the encoder
            knows by heart vary too little: a larger one helps there.

    """

    learned: ClassVar[tuple[str, ...]] = (*Projection.learned, "shrinkage")

    def __init__(self, components: int | None = None, shrinkage: float = 0.1) -> None:
        super().__init__(components)
        self.shrinkage = require_not_negative("shrinkage", shrinkage, hint="0.1 is usual")

    @classmethod
    def from_state(cls, state: Mapping[str, npt.ArrayLike]) -> Self:
        """Return the fitted transform that :meth:`state` was taken from.

        Raises:
            ValueError: an array is missing, is not one of this transform, or is not finite.
        """
        transform = super().from_state(state)
        transform.shrinkage = float(transform.shrinkage)
        return transform

    def describe(self) -> dict[str, Any]:
        """Return what the projection says, and the shrinkage."""
        return {**super().describe(), "shrinkage": self.shrinkage}

    def _floor(self, variances: torch.Tensor) -> torch.Tensor:
        """Return what is added to each variance before the fit."""
        return self.shrinkage * variances.mean()


@register_transform("pca")
class PCA(Projection):
    """Projects on the directions of largest variance of the training rows.

    Args:
        components: number of columns kept; None: all with variance.

    Example:
        >>> PCA(components=1).fit(np.array([[1.0, 0.1], [1.0, -0.1]])).transform(np.array([[1.0, 3.0]])).shape
        (1, 1)
    """

    name = "pca"

    def axes(self, covariance: torch.Tensor, rows: torch.Tensor, mean: torch.Tensor, pids: Pids | None) -> torch.Tensor:
        """Return the eigenvectors with variance, largest first."""
        return _spectrum(covariance)[1]


@register_transform("whiten")
class Whiten(ShrunkProjection):
    r"""PCA, then divides each column by :math:`\sqrt{\lambda_i + s \bar\lambda}` of its training variance.

    Args:
        components: number of columns kept; None: all with variance.
        shrinkage: s, what is added to each variance as a fraction of the mean one, so that columns of hardly any
            variance are not blown up; our choice.

    Example:
        >>> Whiten().fit(np.eye(3)).transform(np.eye(3)).shape
        (3, 2)
    """

    name = "whiten"

    def axes(self, covariance: torch.Tensor, rows: torch.Tensor, mean: torch.Tensor, pids: Pids | None) -> torch.Tensor:
        """Return the eigenvectors with variance, each over the root of its shrunken variance."""
        values, vectors = _spectrum(covariance)
        return vectors / (values + self._floor(values)).sqrt()


@register_transform("lda")
class LDA(ShrunkProjection):
    r"""Whitens the scatter within people, then projects on the directions in which people differ most.

    Args:
        components: number of columns kept, at most people - 1; None: all.
        shrinkage: what is added to each within-person variance as a fraction of the mean one; our choice.

    Example:
        >>> rows = np.array([[1.0, 0.1, 0.0], [1.0, -0.1, 0.0], [1.0, 0.1, 0.9], [1.0, -0.1, 0.9]])
        >>> LDA().fit(rows, [0, 0, 1, 1]).transform(rows).round(3).ravel()
        array([-1., -1.,  1.,  1.])
    """

    name = "lda"
    needs_pids = True

    def axes(self, covariance: torch.Tensor, rows: torch.Tensor, mean: torch.Tensor, pids: Pids | None) -> torch.Tensor:
        """Return the generalized eigenvectors of between-person against within-person scatter."""
        people, of_row = np.unique(np.asarray(pids), return_inverse=True)
        if len(people) < 2:
            raise ValueError(f"pids name {len(people)} person, lda needs at least 2. Fit on more people.")
        labels = torch.from_numpy(of_row).to(rows.device)
        sums = torch.zeros(len(people), len(mean), dtype=torch.float64, device=rows.device)
        for span in row_chunks(rows):
            sums.index_add_(0, labels[span], directions(rows[span].double())[0] - mean)
        counts = torch.bincount(labels, minlength=len(people)).double()[:, None]
        between = (sums / counts).T @ sums / len(rows)
        values, vectors = torch.linalg.eigh(covariance - between)
        floor = self._floor(values.clamp(min=0)) + 1e-12 * covariance.diagonal().mean()
        whitening = vectors / (values.clamp(min=0) + floor).sqrt()
        axes = whitening @ _spectrum(whitening.T @ between @ whitening)[1][:, : len(people) - 1]
        return axes * torch.where(axes.sum(dim=0) < 0, -1.0, 1.0)  # a sign that does not hang on the solver


def _spectrum(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvalues above rounding error, largest first, and their eigenvectors with a fixed sign."""
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(symmetric))
    kept = values > (1e-12 * values.abs().max()).clamp(min=_NO_VARIANCE)
    vectors = vectors[:, kept]
    return values[kept], vectors * torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)
