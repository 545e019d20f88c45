"""Rows of features for the DP stage: numpy or torch in and the same out, checked, bounded and handled row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeVar, cast

import numpy as np
import torch

from ppreid_plugin.number_checks import require_positive

Features = TypeVar("Features", np.ndarray, torch.Tensor)
Restore: TypeAlias = Callable[[torch.Tensor], "np.ndarray | torch.Tensor"]

CHUNK_ELEMENTS = 2**17  # numbers a chunk: a few copies of it (1 MiB in float64) stay in the processor's cache
_ROWS_NAMED = 5
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_ROOM = {torch.float32: 2.0**-22, torch.float64: 2.0**-51}
_ORDINARY = (1e-15, 1e15)  # what a float32 factor, and a sum of float64 squares, can take
_CLIP_NORM_RANGE = (1e-30, 1e30)  # normal float32 numbers, whose squares are normal float64 numbers


def clip_rows(features: Features, clip_norm: float) -> Features:
    """Return the rows, each scaled by min(1, clip_norm / norm): none is longer than ``clip_norm``, also after rounding.

    Norms are taken in float64 on rows divided by their largest entry, so nothing over- or underflows; a scaled row is
    rounded down. The bound is kept with a relative slack of about 1e-12, so a row that long already (to that
    precision) is scaled too. A row's result depends on that row only. Zero rows stay zero.

    Args:
        features: float16, float32 or float64.
        clip_norm: bound C on the L2 norm, feature units, 1e-30 to 1e30.

    Shape:
        features: (n, d). Output: same shape, type and device; a new array.

    Raises:
        ValueError: wrong shape or type, ``clip_norm`` out of range, NaN or infinity (rows are named).

    Example:
        >>> clip_rows(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0).round(6)
        array([[0.6, 0.8],
               [0.3, 0.4]])
    """
    clip_norm = require_clip_norm(clip_norm)
    rows, restore = to_rows(features)
    clipped = torch.empty_like(rows)
    for span in row_chunks(rows):
        clipped[span] = bounded(rows[span], clip_norm)
    return cast(Features, restore(clipped))


def require_clip_norm(clip_norm: object) -> float:
    """Return ``clip_norm`` as a float if it is a number in [1e-30, 1e30]; ValueError otherwise."""
    value = require_positive("clip_norm", clip_norm)
    low, high = _CLIP_NORM_RANGE
    if not low <= value <= high:
        raise ValueError(f"clip_norm is {value!r}, must be in [{low:g}, {high:g}]. Rescale the features; 1.0 is usual.")
    return value


def to_rows(features: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, Restore]:
    """Return ``features`` as a detached tensor on its own device, and the function that gives a result its own form.

    Raises:
        ValueError: not (n, d), not float16, float32 or float64, NaN or infinity (rows are named).
    """
    if isinstance(features, torch.Tensor):
        rows, kind = features.detach(), str(features.dtype).removeprefix("torch.")
        known = features.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    else:
        array = np.asarray(features)
        kind, known = str(array.dtype), array.dtype.kind == "f" and array.dtype.itemsize <= 8
        native = array.dtype.newbyteorder("=") if known else np.dtype(np.float32)
        rows = torch.from_numpy(np.require(array, native, ["C", "W"]) if known else np.zeros((1, 1), native))
    if not known:
        raise ValueError(f"features is of type {kind}, must be float16, float32 or float64. Convert it to float32.")
    if rows.ndim != 2:
        raise ValueError(f"features has shape {tuple(rows.shape)}, must be (n, d). One row: features[None].")
    _require_finite(rows)
    if isinstance(features, torch.Tensor):
        return rows, lambda result: result
    return rows, lambda result: result.numpy().astype(array.dtype, copy=False)


def row_chunks(rows: torch.Tensor) -> Iterator[slice]:
    """Yield slices that cover the rows, of about :data:`CHUNK_ELEMENTS` numbers each."""
    step = max(1, CHUNK_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def bounded(rows: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """:func:`clip_rows` for one chunk of checked rows; same type and device."""
    if not rows.numel():
        return rows.clone()
    slack = 1e-12 + rows.shape[1] * 2.0**-52  # covers the rounding of any float64 norm of d numbers
    if rows.dtype not in _ROOM or not _ORDINARY[0] <= clip_norm <= _ORDINARY[1]:
        return _bounded_carefully(rows, clip_norm, slack)
    norms = torch.linalg.vector_norm(rows.double(), dim=1, keepdim=True)
    room = max(2 * slack, _ROOM[rows.dtype])  # two roundings to the rows' own type
    factors = torch.where(norms > clip_norm * (1 - slack), clip_norm * (1 - room) / norms, 1.0)
    result = rows * factors.to(rows.dtype)
    extreme = torch.nonzero(~(norms[:, 0] <= clip_norm * _ORDINARY[1])).flatten()
    if len(extreme):
        result[extreme] = _bounded_carefully(rows[extreme], clip_norm, slack)
    return result


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return a chunk of checked rows with length 1, up to rounding; a zero row becomes the unit vector e_1."""
    norms = torch.linalg.vector_norm(rows.double(), dim=1, keepdim=True)
    result = rows / norms.to(rows.dtype)
    extreme = torch.nonzero(~((norms > _ORDINARY[0]) & (norms < _ORDINARY[1]))[:, 0]).flatten()
    if len(extreme) and rows.shape[1]:
        unit = directions(rows[extreme].double())[0]
        unit[:, 0] += (unit == 0).all(dim=1)
        result[extreme] = unit.to(rows.dtype)
    return result


def directions(exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the unit rows (zero rows stay zero) and the norms (n, 1) of float64 rows; a norm may be infinite."""
    largest = exact.abs().amax(dim=1, keepdim=True)
    scaled = exact / torch.where(largest > 0, largest, 1.0)
    norms = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(norms > 0, norms, 1.0), largest * norms


def saturated(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``values`` as ``dtype``; what is too large becomes the largest finite number of that type."""
    limit = torch.finfo(dtype).max
    return values.clamp(-limit, limit).to(dtype)


def _bounded_carefully(rows: torch.Tensor, clip_norm: float, slack: float) -> torch.Tensor:
    """:func:`bounded` for rows and bounds of any size, slower."""
    direction, length = directions(rows.double())
    scaled = direction * (clip_norm * (1 - 2 * slack))
    return torch.where(length > clip_norm * (1 - slack), _towards_zero(scaled, rows.dtype), rows)


def _towards_zero(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rounded = exact.to(dtype)
    too_large = rounded.double().abs() > exact.abs()
    lower = (rounded.view(_BITS[rounded.element_size()]) - 1).view(dtype)  # one step less in magnitude, either sign
    return torch.where(too_large, lower, rounded)


def _require_finite(rows: torch.Tensor) -> None:
    # a sum with NaN or infinity in it is never finite; one that overflows is looked at again
    suspects = torch.nonzero(~torch.isfinite(rows.sum(dim=1))).flatten()
    bad = suspects[~torch.isfinite(rows[suspects]).all(dim=1)].tolist()
    if bad:
        named = ", ".join(map(str, bad[:_ROWS_NAMED])) + (", ..." if len(bad) > _ROWS_NAMED else "")
        raise ValueError(
            f"features rows {named} ({len(bad)} of {len(rows)}) hold NaN or infinity; the mechanism needs finite rows. "
            "Look at the images of these rows and at the model's weights, or drop the rows."
        )
