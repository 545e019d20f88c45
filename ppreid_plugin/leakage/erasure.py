r"""LEACE, the baseline defence: no linear attacker finds the erased concepts, and rows change as little as possible.

A public transform, fitted once on the training split with its attribute labels; training-free otherwise, so it goes on
any model. What it guarantees is about linear attackers and the training rows' distribution: an MLP may find what is
left, and people outside the training split have it erased as far as they are like those in it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from ..dp.arrays import directions, to_rows
from ..dp.transform_files import FileTransform
from ..dp.transforms import column_values, frozen, register_transform

if TYPE_CHECKING:
    from concept_erasure import LeaceEraser

_UNKNOWN = -1
_NO_CORRELATION = 1e-9  # of a whitened row with a label: float64's rounding error


@register_transform("leace")
class Leace(FileTransform):
    r"""Removes from the normalized row u what is linearly correlated with the concepts on the training rows.

    .. math:: y = u - W^+ Q Q^T W (u - m), \qquad W = \Sigma_{uu}^{-1/2},

    Q an orthonormal basis of the columns of :math:`W \Sigma_{uz}`, z the one-hot labels of all concepts, and numbers
    where there are some, side by side. Then Cov(y, z) = 0 on the training rows, so no linear classifier of y, nor
    least squares, beats the best constant there; and of all affine maps that reach this it has the least mean
    :math:`|y - u|^2` (in any inner product, the paper shows).

    The result is not normalized: scaling each row by its own length is not linear and may bring some of it back, and a
    gallery that is normalized afterwards does so. Measure it.

    Args:
        center: whether the training mean m is taken off the result, as ``center`` does; nothing else changes.

    Attributes:
        mean, added: m and what is added back, m or 0; (d,), float64, read-only; None before the fit.
        right, left: (d, r) and (d, r): :math:`W Q` and :math:`W^+ Q`; r is the number of erased directions.

    Source:
        Belrose et al., NeurIPS 2023, arXiv 2306.03819, theorem 4.3; the library ``concept-erasure`` computes it.

    Example:
        >>> rows = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 1.0], [1.0, 1.1]])
        >>> erased = Leace().fit_concepts(rows, np.array([[0], [0], [1], [1]])).transform(rows)
        >>> np.abs(erased[:2].mean(axis=0) - erased[2:].mean(axis=0)).max() < 1e-12
        np.True_
    """

    name = "leace"
    needs_fit = False  # fitted with labels that commands do not have, or loaded: they must not fit it on --train
    learned = ("mean", "added", "right", "left")

    def __init__(self, *, center: bool = False) -> None:
        self.center = center
        self.mean: npt.NDArray[np.float64] | None = None
        self.added: npt.NDArray[np.float64] | None = None
        self.right: npt.NDArray[np.float64] | None = None
        self.left: npt.NDArray[np.float64] | None = None

    def fit_rows(self, rows: torch.Tensor, pids: npt.NDArray[np.int64] | None = None) -> None:
        """Refuse: what is to be erased has to be named."""
        raise ValueError(
            "transform 'leace' learns from the labels of what it erases, and fit() has none. Call "
            "fit_concepts(features, concepts) with concepts (n, k), or load what was fitted: leace:FILE.safetensors"
        )

    def fit_concepts(
        self,
        features: np.ndarray | torch.Tensor,
        concepts: npt.ArrayLike | None = None,
        *,
        numbers: npt.ArrayLike | None = None,
    ) -> Self:
        """Learn what to erase from rows of the *training* split; a new fit replaces the old one.

        Args:
            features: training rows, (n, d).
            concepts: labels, (n, k) whole numbers, a column a concept (an attribute, the camera); -1 where not known:
                such rows are left out.
            numbers: (n, r), what is to be erased and is a number, such as :func:`.image_components`.

        Raises:
            ValueError: neither, shapes that differ, labels below -1 or no whole numbers, fewer than two rows with
                labels, a concept of one class (columns are named), NaN or infinity (rows are named).
            ImportError: the library is not there.
        """
        rows, _ = to_rows(features)
        if concepts is None and numbers is None:
            raise ValueError("leace was given nothing to erase. Give concepts, (n, k) labels, or numbers, (n, r).")
        known = np.ones(len(rows), dtype=bool)
        parts = []
        if concepts is not None:
            labels = checked_concepts(concepts, len(rows))
            known = (labels != _UNKNOWN).all(axis=1)
            if known.sum() < 2:
                raise ValueError(f"concepts has {known.sum()} rows with all labels known, must have at least 2.")
            parts.append(_one_hot(labels[known]))
        if numbers is not None:
            parts.append(checked_numbers(numbers, len(rows))[known])
        units = directions(rows[torch.from_numpy(known).to(rows.device)].double().cpu())[0]
        eraser = _fitted(units, torch.from_numpy(np.concatenate(parts, axis=1)))
        kept = torch.linalg.vector_norm(eraser.proj_left, dim=0) > 0
        mean = units.mean(dim=0).numpy()
        self.mean, self.added = frozen(mean), frozen(np.zeros_like(mean) if self.center else mean.copy())
        self.right = frozen(np.ascontiguousarray(eraser.proj_right[kept].T.numpy()))
        self.left = frozen(np.ascontiguousarray(eraser.proj_left[:, kept].numpy()))
        self.fitted, self.fitted_rows = True, int(known.sum())
        self.note_fitted_on(rows[torch.from_numpy(known).to(rows.device)])
        return self

    def transform_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalize, subtract the mean, take the erased directions out, add what is to be added."""
        mean, added = column_values(self.mean, rows), column_values(self.added, rows)
        offset = directions(rows)[0] - mean
        return offset - (offset @ column_values(self.right, rows)) @ column_values(self.left, rows).T + added

    def describe(self) -> dict[str, Any]:
        """Return the name and what it was fitted on, in numbers of rows, columns and erased directions."""
        columns, erased = (None, None) if self.right is None else self.right.shape
        return {
            "transform": self.name,
            "fitted_rows": self.fitted_rows,
            "columns": columns,
            "erased_directions": erased,
        }

    def _require_fitted(self) -> None:
        if not self.fitted:
            raise RuntimeError("transform 'leace' is not fitted; call fit_concepts(features, concepts) first.")


def _fitted(units: torch.Tensor, targets: torch.Tensor) -> LeaceEraser:
    try:
        with warnings.catch_warnings():  # of torch, about how the library is compiled
            warnings.simplefilter("ignore", FutureWarning)
            from concept_erasure import LeaceFitter
    except ImportError:
        raise ImportError("leace needs concept-erasure. Install it with: pip install concept-erasure") from None

    # the library's own defaults keep small correlations, and bound the trace at the price of the erasure
    return LeaceFitter.fit(units, targets, shrinkage=False, constrain_cov_trace=False, svd_tol=_NO_CORRELATION).eraser


def checked_concepts(concepts: npt.ArrayLike, rows: int) -> npt.NDArray[np.int64]:
    """Return labels (rows, k) as whole numbers; raise ValueError if they are none or fall below -1."""
    labels = np.asarray(concepts)
    if labels.ndim != 2 or len(labels) != rows or not labels.shape[1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"concepts has shape {labels.shape} of {labels.dtype}, must be ({rows}, k), whole numbers: one column a "
            "concept. One concept: labels[:, None]."
        )
    if labels.size and labels.min() < _UNKNOWN:
        raise ValueError(f"concepts holds {labels.min()}, must be at least 0, or -1 where not known.")
    return labels.astype(np.int64)


def checked_numbers(numbers: npt.ArrayLike, rows: int) -> npt.NDArray[np.float64]:
    """Return numbers (rows, r) as float64; raise ValueError if they are none, or not finite."""
    values = np.asarray(numbers)
    if values.ndim != 2 or len(values) != rows or not values.shape[1] or values.dtype.kind not in "fiu":
        raise ValueError(f"numbers has shape {values.shape} of {values.dtype}, must be ({rows}, r), real numbers.")
    if not np.isfinite(values).all():
        raise ValueError(f"numbers has NaN or infinity in row {np.flatnonzero(~np.isfinite(values).all(axis=1))[0]}.")
    return values.astype(np.float64)


def _one_hot(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the classes of all columns side by side: (n, k) -> (n, sum of classes)."""
    parts = []
    for column in range(labels.shape[1]):
        classes, place = np.unique(labels[:, column], return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"concepts column {column} has the one class {classes[0]}: nothing to erase. Leave the column out."
            )
        parts.append(np.eye(len(classes))[place])
    return np.concatenate(parts, axis=1)
