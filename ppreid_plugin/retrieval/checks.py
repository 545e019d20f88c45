"""What the ranking functions accept: conversion and checks of features, labels and options.

Everything is checked before the first product, so a wrong call fails in milliseconds and names what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.number_checks import require_positive, require_whole
from ppreid_plugin.registry import closest

Features: TypeAlias = "np.ndarray | torch.Tensor"
Labels: TypeAlias = "np.ndarray | torch.Tensor | Sequence[int]"
IntArray: TypeAlias = npt.NDArray[np.int64]

_LARGEST = 2**63 - 1
_LONGEST = 10**7
_AT_ONCE, _AT_ONCE_ON_DEVICE = 2**20, 2**24  # numbers; a GPU is filled by fewer calls
_ROWS_NAMED = 5


def choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``allowed``.

    Raises:
        ValueError: it is not; the message lists all and the nearest one.
    """
    if isinstance(value, str) and value in allowed:
        return value
    raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}.{closest(str(value), list(allowed))}")


def curve_length(name: str, value: object) -> int:
    """Return ``value`` if a CMC curve can be so long.

    Raises:
        ValueError: no whole number from 1 to ten million.
    """
    if (length := require_whole(name, value)) > _LONGEST:
        raise ValueError(f"{name} is {length}, must be at most {_LONGEST}. A CMC curve has for example {name}=50.")
    return length


def positive_mebibytes(name: str, value: object) -> float:
    """Return ``value`` if it is a finite number > 0.

    Raises:
        ValueError: anything else (NaN, infinity and a bool too).
    """
    return require_positive(name, value, hint="MiB, such as 64")


def as_matrix(name: str, values: Any) -> torch.Tensor:
    """Return ``values``, (rows, columns), as a detached floating-point tensor on its own device, shared where possible.

    float64 stays float64; float16, bfloat16 and float32 become float32. Rows lie one after the other in it, so that no
    digit of a product depends on how they lay before.

    Raises:
        ValueError: not two-dimensional, empty, not floating point, or no dense array (rows of different length, masked
            numbers, a sparse tensor).
    """
    if isinstance(values, torch.Tensor):
        if values.is_nested or values.layout != torch.strided or values.device.type == "meta":
            raise ValueError(
                f"{name} is no dense tensor of numbers in memory. Pass {name}.to_dense() or a numpy array."
            )
        tensor, kind = values.detach(), str(values.dtype)
        floating = values.is_floating_point()
    else:
        array = _array(name, values)
        floating, kind = array.dtype.kind == "f", str(array.dtype)
        if not floating:
            tensor = torch.empty(array.shape)
        else:
            wide = np.dtype(np.float32 if array.dtype.itemsize <= 4 else np.float64)
            tensor = torch.from_numpy(np.require(array, dtype=wide, requirements=["C", "W"]))
    if not floating:
        raise ValueError(f"{name} is of type {kind}, must be floating point. Convert it to float32.")
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, must be (rows, columns) with at least one of each. "
            "Stack one row an image (one feature: features[None])."
        )
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).contiguous()


def _array(name: str, values: Any) -> np.ndarray:
    """Return ``values`` as an array; ValueError if they are none, or some are masked."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name} cannot be made an array ({' '.join(str(error).split())}). Pass one numpy array or torch tensor."
        ) from None
    if np.ma.is_masked(values):
        raise ValueError(f"{name} has masked entries, which would count as numbers. Fill them in, or drop these rows.")
    return array


def as_feature_pair(
    query_features: Features, gallery_features: Features, *, finite: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both feature matrices in one dtype (float64 if either is) on the queries' device, all finite.

    Without ``finite`` that is still to be checked.

    Raises:
        ValueError: as :func:`as_matrix`; lengths of the rows that differ; NaN or infinity (rows are named).
    """
    query = as_matrix("query_features", query_features)
    gallery = as_matrix("gallery_features", gallery_features)
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query_features have {query.shape[1]} columns and gallery_features {gallery.shape[1]}, must be equal. "
            "Extract both with one model and put both through the same transform."
        )
    if finite:
        require_finite_pair(query, gallery)
    dtype = torch.promote_types(query.dtype, gallery.dtype)
    return query.to(dtype), gallery.to(device=query.device, dtype=dtype)


def require_finite_pair(query: torch.Tensor, gallery: torch.Tensor) -> None:
    """Raise ValueError as :func:`require_finite` of the features of queries and gallery."""
    require_finite("query_features", query)
    require_finite("gallery_features", gallery)


def rows_at_once(columns: int, *, on_device: bool = False) -> int:
    """Return how many rows of ``columns`` numbers a pass takes at a time whose copies must stay small."""
    return max(1, (_AT_ONCE_ON_DEVICE if on_device else _AT_ONCE) // max(1, columns))


def require_finite(name: str, matrix: torch.Tensor, *, infinity_allowed: bool = False) -> None:
    """Raise ValueError if a row of ``matrix`` holds NaN (or infinity), naming how many rows and the first few."""
    if matrix.is_cuda:
        if _within_bounds(matrix, infinity_allowed=infinity_allowed):
            return
    elif all(math.isfinite(_sum(part)) for part in matrix.split(rows_at_once(matrix.shape[1]))):
        return  # the fast way out; it fails on NaN, infinity or overflow
    bad = torch.isnan(matrix).any(dim=1) if infinity_allowed else ~torch.isfinite(matrix).all(dim=1)
    rows = torch.nonzero(bad).flatten().tolist()
    if rows:
        named = ", ".join(map(str, rows[:_ROWS_NAMED])) + (", ..." if len(rows) > _ROWS_NAMED else "")
        what = "NaN" if infinity_allowed else "NaN or infinity"
        raise ValueError(
            f"{name} rows {named} ({len(rows)} of {len(matrix)}) hold {what}; ranking needs finite rows. "
            "Look at the images of these rows and at the model's weights, or drop the rows."
        )


def _sum(part: torch.Tensor) -> float:
    return float(part.sum(dtype=torch.float64))  # by way of a copy


def _within_bounds(matrix: torch.Tensor, *, infinity_allowed: bool) -> bool:
    """Whether there is no NaN (and no infinity), in one pass that copies nothing and waits for the device once."""
    bounds = torch.stack(torch.aminmax(matrix))  # NaN if there is any
    return not bool((bounds.isnan() if infinity_allowed else ~bounds.isfinite()).any())


def as_labels(name: str, labels: Labels, rows: int) -> IntArray:
    """Return ``labels``, (rows,), as int64.

    Raises:
        ValueError: not whole numbers, not one-dimensional, or not one a row.
    """
    array = _array(name, labels)
    if array.shape != (rows,):
        side = name.split("_")[0]
        raise ValueError(
            f"{name} has shape {array.shape}, must be ({rows},): one label a {side} row. "
            f"Take labels and {side} rows from the same extraction, in the same order."
        )
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} is of type {array.dtype}, must be whole numbers. Number the labels from 0.")
    if array.dtype == np.uint64 and bool((array > _LARGEST).any()):
        raise ValueError(f"{name} has {array.max()}, must be below 2^63. Number the labels from 0.")
    return array.astype(np.int64)


def as_pids(name: str, pids: Labels | Collection[int]) -> IntArray:
    """Return ``pids``, any number of them, as int64.

    Raises:
        ValueError: not whole numbers below 2^63, or no sequence.
    """
    array = _array(name, sorted(pids) if isinstance(pids, (set, frozenset)) else pids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} is {pids!r}, must be whole numbers (below 2^63) in a sequence. Pass for example {name}=(0,)."
        )
    if array.dtype == np.uint64 and bool((array > _LARGEST).any()):
        raise ValueError(f"{name} has {array.max()}, must be below 2^63. Pass for example {name}=(0,).")
    return array.astype(np.int64)
