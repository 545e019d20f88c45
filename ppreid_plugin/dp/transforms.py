"""Public transforms of the rows before the mechanism, fitted on *other* people: the training split.

What stands before the noise may look at one row and at public data only. A transform fitted on the gallery that is
released breaks the proof; so fitting is a step of its own, and :meth:`PublicTransform.transform` is strictly row-wise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from ppreid_plugin.dp.arrays import Features, directions, row_chunks, saturated, to_rows
from ppreid_plugin.registry import Registry, check_arguments, parse_options

_ZERO = 1e-12  # a difference of unit rows this short is rounding error of float64, not a direction


class PublicTransform(ABC):
    """A map of one row whose parameters come from training features only.

    An entry sets ``name`` (and ``needs_fit = False`` if it learns nothing, ``needs_pids = True`` if it learns from
    labels), names the arrays it learns in ``learned``, and implements :meth:`fit_rows` and :meth:`transform_rows`.

    Attributes:
        fitted: whether parameters are there.
        fitted_rows: number of training rows they come from.
    """

    name: ClassVar[str]
    needs_fit: ClassVar[bool] = True
    needs_pids: ClassVar[bool] = False
    learned: ClassVar[tuple[str, ...]] = ()
    fitted = False
    fitted_rows = 0

    def fit(self, features: np.ndarray | torch.Tensor, pids: npt.ArrayLike | torch.Tensor | None = None) -> Self:
        """Learn the parameters from ``features`` (n, d) of the *training* split; a new fit replaces the old one.

        Args:
            features: training rows.
            pids: their person labels, (n,), whole numbers; needed by ``lda`` only.

        Raises:
            ValueError: wrong shape or type, no rows, NaN or infinity (rows are named), pids missing or not one a row.
        """
        rows, _ = to_rows(features)
        if not rows.numel():
            raise ValueError(f"features has shape {tuple(rows.shape)}, must hold at least one training row to fit on.")
        self.fit_rows(rows, checked_pids(pids, len(rows)) if self.needs_pids else None)
        self.fitted, self.fitted_rows = True, len(rows)
        return self

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return what was fitted, as arrays: with the name it is all that :func:`transform_from_state` needs.

        Raises:
            RuntimeError: not fitted.
        """
        self._require_fitted()
        return {
            **{name: np.array(getattr(self, name)) for name in self.learned},
            "fitted_rows": np.array(self.fitted_rows, dtype=np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, npt.ArrayLike]) -> Self:
        """Return the fitted transform that :meth:`state` was taken from.

        Raises:
            ValueError: an array is missing, is not one of this transform, or is not finite.
        """
        expected = {*cls.learned, "fitted_rows"}
        if set(state) != expected:
            raise ValueError(
                f"state of transform {cls.name!r} holds {sorted(state)}, must hold {sorted(expected)}. "
                "Take it from state() of the same transform."
            )
        transform = cls()
        for name in cls.learned:
            setattr(transform, name, frozen(np.array(state[name], dtype=np.float64)))
            if not np.isfinite(getattr(transform, name)).all():
                raise ValueError(f"state of transform {cls.name!r}: {name} holds NaN or infinity.")
        transform.fitted, transform.fitted_rows = True, int(np.asarray(state["fitted_rows"]))
        return transform

    def transform(self, features: Features) -> Features:
        """Return every row transformed, (n, d) -> (n, any); same kind, type and device.

        Raises:
            RuntimeError: not fitted.
            ValueError: wrong shape or type, NaN or infinity (rows are named).
        """
        self._require_fitted()
        rows, restore = to_rows(features)
        parts = [saturated(self.transform_rows(rows[span].double()), rows.dtype) for span in row_chunks(rows)]
        return cast(Features, restore(torch.cat(parts) if parts else rows.clone()))

    @abstractmethod
    def fit_rows(self, rows: torch.Tensor, pids: npt.NDArray[np.int64] | None = None) -> None:
        """Learn from checked rows, (n, d), any float type; ``pids`` (n,) only if ``needs_pids``."""

    @abstractmethod
    def transform_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows transformed, float64 (n, d) -> float64 (n, any), each for itself."""

    def describe(self) -> dict[str, Any]:
        """Return what is done, ready for JSON: names and sizes, no feature values."""
        return {"transform": self.name}

    def _require_fitted(self) -> None:
        if self.needs_fit and not self.fitted:
            raise RuntimeError(
                f"transform {self.name!r} is not fitted; call fit(features of the training split) first."
            )


TRANSFORMS: Registry[type[PublicTransform]] = Registry("public transform", contract=PublicTransform)
register_transform = TRANSFORMS.register


@register_transform("none")
class NoTransform(PublicTransform):
    """Leaves the rows as they are; needs no fit."""

    name = "none"
    needs_fit = False

    def fit_rows(self, rows: torch.Tensor, pids: npt.NDArray[np.int64] | None = None) -> None:
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
    learned = ("mean",)

    def __init__(self) -> None:
        self.mean: npt.NDArray[np.float64] | None = None

    def fit_rows(self, rows: torch.Tensor, pids: npt.NDArray[np.int64] | None = None) -> None:
        """Take the mean of the unit rows, in float64."""
        self.mean = frozen(unit_mean(rows).cpu().numpy())

    def transform_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalize, subtract, normalize."""
        return normalized(directions(rows)[0] - column_values(self.mean, rows))

    def describe(self) -> dict[str, Any]:
        """Return the name and what it was fitted on, in numbers of rows and columns."""
        return {
            "transform": self.name,
            "fitted_rows": self.fitted_rows,
            "columns": None if self.mean is None else len(self.mean),
        }


def build_transform(name: str, **kwargs: Any) -> PublicTransform:
    """Return the registered transform ``name``, made with ``kwargs``, not fitted yet.

    Args:
        name: as in YAML. ``NAME:KEY=VALUE+KEY=VALUE`` gives arguments, such as ``lda:components=64+shrinkage=2``;
            ``NAME:FILE`` is one that is loaded from a file, such as ``head:head.safetensors``.
        kwargs: further arguments of that transform.

    Raises:
        FileNotFoundError, ValueError: unknown name or argument, a value out of range, a transform that is not loaded
            from files, a file that is none.

    Example:
        >>> build_transform("lda:components=64+shrinkage=2").components
        64
    """
    kind, _, path = str(name).partition(":")  # a written form may hold a number in its place
    entry = TRANSFORMS.get(kind)
    if "=" in path and Path(path).suffix != ".safetensors":
        given = parse_options(path.split("+"), what=f"transform '{name}'", example="components=64")
        check_arguments(given, [entry], key=f"transform '{name}'")
        return entry(**given, **kwargs)
    if not path:
        return entry(**kwargs)
    if (load := getattr(entry, "load", None)) is None:
        raise ValueError(f"transform {kind!r} is fitted, not loaded from a file; leave out ':{path}'.")
    return cast(PublicTransform, load(path))


def transform_from_state(name: str, state: Mapping[str, npt.ArrayLike]) -> PublicTransform:
    """Return the registered transform ``name`` as it was fitted, from what its ``state()`` returned.

    Raises:
        ValueError: unknown name, or a state of another transform.

    Example:
        >>> center = build_transform("center").fit(np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> transform_from_state("center", center.state()).mean
        array([0.5, 0.5])
    """
    return TRANSFORMS.get(name).from_state(state)


def unit_mean(rows: torch.Tensor) -> torch.Tensor:
    """Return the mean of the unit rows, (n, d) -> (d,), in float64."""
    total = sum(directions(rows[span].double())[0].sum(dim=0) for span in row_chunks(rows))
    return cast(torch.Tensor, total) / len(rows)


def normalized(rows: torch.Tensor) -> torch.Tensor:
    """Return float64 rows with length 1; one without a direction (no longer than 1e-12) becomes e_1."""
    unit, norms = directions(rows)
    first = torch.zeros_like(rows[:1])
    first[:, :1] = 1.0
    return torch.where(norms > _ZERO, unit, first)


def column_values(values: npt.NDArray[np.float64] | None, rows: torch.Tensor) -> torch.Tensor:
    """Return the fitted array (columns first) where the rows are; ValueError if the columns differ."""
    fitted = torch.tensor(values, dtype=torch.float64, device=rows.device)
    if rows.shape[1] != len(fitted):
        raise ValueError(
            f"features have {rows.shape[1]} columns, the transform was fitted on {len(fitted)}. "
            "Fit it on training features of the same model."
        )
    return fitted


def frozen(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Make the array read-only."""
    values.flags.writeable = False
    return values


def checked_pids(pids: npt.ArrayLike | torch.Tensor | None, rows: int) -> npt.NDArray[np.int64]:
    """Return labels of people (rows,) as int64; raise ValueError if they are none, or not one a row."""
    if pids is None:
        raise ValueError("pids is None, but this transform learns from labels. Pass fit(features, pids).")
    labels = pids.detach().cpu().numpy() if isinstance(pids, torch.Tensor) else np.asarray(pids)
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise ValueError(f"pids has shape {labels.shape} of {labels.dtype}, must be ({rows},), whole numbers.")
    return labels.astype(np.int64)
