"""Public transforms of the rows before the mechanism, fitted on *other* people: the training split.

What stands before the noise may look at one row and at public data only. A transform fitted on the gallery that is
released breaks the proof; so fitting is a step of its own, and :meth:`PublicTransform.transform` is strictly row-wise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from ppreid_plugin.dp.arrays import Features, directions, row_chunks, saturated, to_rows
from ppreid_plugin.registry import Registry

_ZERO = 1e-12  # a difference of unit rows this short is rounding error of float64, not a direction


class PublicTransform(ABC):
    """A map of one row whose parameters come from training features only.

    An entry sets ``name`` (and ``needs_fit = False`` if it learns nothing), and implements :meth:`fit_rows` and
    :meth:`transform_rows`.
    """

    name: ClassVar[str]
    needs_fit: ClassVar[bool] = True
    fitted = False

    def fit(self, features: np.ndarray | torch.Tensor) -> Self:
        """Learn the parameters from ``features`` (n, d) of the *training* split; a new fit replaces the old one.

        Raises:
            ValueError: wrong shape or type, no rows, NaN or infinity (rows are named).
        """
        rows, _ = to_rows(features)
        if not rows.numel():
            raise ValueError(f"features has shape {tuple(rows.shape)}, must hold at least one training row to fit on.")
        self.fit_rows(rows)
        self.fitted = True
        return self

    def transform(self, features: Features) -> Features:
        """Return every row transformed, (n, d) -> (n, any); same kind, type and device.

        Raises:
            RuntimeError: not fitted.
            ValueError: wrong shape or type, NaN or infinity (rows are named).
        """
        if self.needs_fit and not self.fitted:
            raise RuntimeError(
                f"transform {self.name!r} is not fitted; call fit(features of the training split) first."
            )
        rows, restore = to_rows(features)
        parts = [saturated(self.transform_rows(rows[span].double()), rows.dtype) for span in row_chunks(rows)]
        return cast(Features, restore(torch.cat(parts) if parts else rows.clone()))

    @abstractmethod
    def fit_rows(self, rows: torch.Tensor) -> None:
        """Learn from checked rows, (n, d), any float type."""

    @abstractmethod
    def transform_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows transformed, float64 (n, d) -> float64 (n, any), each for itself."""

    def describe(self) -> dict[str, Any]:
        """Return what is done, ready for JSON: public parameters only."""
        return {"transform": self.name}


TRANSFORMS: Registry[type[PublicTransform]] = Registry("public transform", contract=PublicTransform)
register_transform = TRANSFORMS.register


@register_transform("none")
class NoTransform(PublicTransform):
    """Leaves the rows as they are; needs no fit."""

    name = "none"
    needs_fit = False

    def fit_rows(self, rows: torch.Tensor) -> None:
        """Learn nothing."""

    def transform_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows."""
        return rows


@register_transform("center")
class Center(PublicTransform):
    r"""Subtracts the training mean from the normalized row, and normalizes again.

    .. math:: y = \frac{u - m}{|u - m|}, \qquad u = \frac{x}{|x|}, \qquad m = \frac1n \sum_{\text{training rows}} u

    Re-ID features lie in a narrow cone; without the cone's axis the same noise costs fewer ranks. A row without a
    direction (\|u - m\| <= 1e-12) becomes the fixed public unit vector e_1. A zero row has u = 0.

    Attributes:
        mean: (d,), float64, read-only; None before :meth:`fit`. It tells about the training people.

    Example:
        >>> center = Center().fit(np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> center.transform(np.array([[2.0, 0.0]])).round(3)
        array([[ 0.707, -0.707]])
    """

    name = "center"

    def __init__(self) -> None:
        self.mean: npt.NDArray[np.float64] | None = None
        self._rows_fitted = 0

    def fit_rows(self, rows: torch.Tensor) -> None:
        """Take the mean of the unit rows, in float64."""
        total = sum(directions(rows[span].double())[0].sum(dim=0) for span in row_chunks(rows))
        self.mean = (cast(torch.Tensor, total) / len(rows)).cpu().numpy()
        self.mean.flags.writeable = False
        self._rows_fitted = len(rows)

    def transform_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalize, subtract, normalize."""
        mean = torch.tensor(self.mean, dtype=torch.float64, device=rows.device)
        if rows.shape[1] != len(mean):
            raise ValueError(
                f"features have {rows.shape[1]} columns, the transform was fitted on {len(mean)}. "
                "Fit it on training features of the same model."
            )
        centered, norms = directions(directions(rows)[0] - mean)
        first = torch.zeros_like(mean)
        first[0] = 1.0
        return torch.where(norms > _ZERO, centered, first)

    def describe(self) -> dict[str, Any]:
        """Return the name and what it was fitted on, in numbers of rows and columns."""
        return {
            "transform": self.name,
            "fitted_rows": self._rows_fitted,
            "columns": None if self.mean is None else len(self.mean),
        }


def build_transform(name: str, **kwargs: Any) -> PublicTransform:
    """Return the registered transform ``name``, made with ``kwargs``, not fitted yet.

    Raises:
        ValueError: unknown name.
    """
    return TRANSFORMS.get(name)(**kwargs)
