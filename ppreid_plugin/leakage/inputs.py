"""What attackers are run on, read from files: features with labels, labels of people, labels of released rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..dp.feature_files import load_arrays
from ..dp.units import JUNK_PID
from ..registry import closest
from .data import LeakageSet
from .market_attributes import attributes_by_pid, load_market_attributes, with_attributes

_ATTRIBUTE = "attr_"


def load_set(path: str | Path, background_pids: Sequence[int]) -> LeakageSet:
    """Return the set in a file with ``features``, ``pids``, ``camids``, and maybe ``row_ids`` and ``attr_<name>``.

    Junk rows (pid -1) are left out.

    Raises:
        FileNotFoundError, ValueError: no such file, an array is missing, or values as :class:`LeakageSet` says.
    """
    arrays = load_arrays(path)
    missing = [name for name in ("features", "pids", "camids") if name not in arrays]
    if missing:
        raise ValueError(
            f"'{path}' lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}. Add the arrays: "
            "features (n, d), pids (n,), camids (n,)."
        )
    row_ids = arrays.get("row_ids", np.zeros(0, dtype=np.str_))
    if row_ids.ndim == 2 and row_ids.dtype == np.uint8:  # safetensors holds no text
        row_ids = np.array([bytes(row).rstrip(b"\0").decode("utf-8") for row in row_ids])
    attributes = {name.removeprefix(_ATTRIBUTE): arrays[name] for name in arrays if name.startswith(_ATTRIBUTE)}
    try:
        rows = LeakageSet(
            arrays["features"],
            arrays["pids"],
            arrays["camids"],
            attributes,
            tuple(row_ids.tolist()),
            tuple(background_pids),
        )
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    return rows.take(rows.pids != JUNK_PID)


class Labeler:
    """Adds attributes by pid, and keeps those that were asked for.

    Args:
        attributes: file of ``pids`` and ``attr_<name>``.
        market: ``market_attribute.mat``.
        only: names to keep; None: all.
    """

    def __init__(self, attributes: str | None, market: str | None, only: Sequence[str] | None) -> None:
        self._only = only
        self._market = load_market_attributes(market) if market else None
        self._given = attributes_by_pid(load_arrays(attributes), attributes) if attributes else None

    def __call__(self, rows: LeakageSet, what: str) -> LeakageSet:
        """Return the rows with their labels; ``what`` is the flag that named them."""
        if self._given is not None:
            rows = with_attributes(rows, self._given, what=what)
        if self._market is not None:
            if what in ("--train", "--clean-train") and not rows.row_ids:
                raise ValueError(
                    f"{what} has no row_ids, and torchreid numbers training people anew: the people of "
                    "--market-attributes cannot be told. Add row_ids, the file names."
                )
            rows = with_attributes(rows, self._market, named=True, what=what)
        if self._only is None:
            return rows
        names = sorted(rows.attributes)
        for name in self._only:
            if name not in names:
                raise ValueError(
                    f"--only has {name!r}; {what} has: {', '.join(names) or 'none'}.{closest(name, names)}"
                )
        return dataclasses.replace(rows, attributes={name: rows.attributes[name] for name in self._only})


def read_truth_table(path: str) -> tuple[dict[str, tuple[int, int]], dict[str, dict[str, int]]]:
    """Return pid and camid, and attributes, by row name from a file of ``row_ids, pids, camids, attr_<name>``."""
    arrays = load_arrays(path)
    missing = [name for name in ("row_ids", "pids", "camids") if name not in arrays]
    if missing:
        raise ValueError(f"'{path}' lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    blank = np.zeros((len(arrays["row_ids"]), 1), dtype=np.float32)
    attributes = {name.removeprefix(_ATTRIBUTE): arrays[name] for name in arrays if name.startswith(_ATTRIBUTE)}
    rows = LeakageSet(blank, arrays["pids"], arrays["camids"], attributes, tuple(map(str, arrays["row_ids"].tolist())))
    named = dict(zip(rows.row_ids, zip(rows.pids.tolist(), rows.camids.tolist(), strict=True), strict=True))
    labels = {
        row: {name: int(values[place]) for name, values in rows.attributes.items()}
        for place, row in enumerate(rows.row_ids)
    }
    return named, labels
