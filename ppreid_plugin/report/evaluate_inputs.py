"""Rows of saved features with their labels, as any extractor writes them, and rows of nobody."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..dp.feature_files import load_arrays, require_arrays
from ..dp.units import JUNK_PID
from ..number_checks import whole_from
from ..retrieval.checks import as_labels


@dataclass(frozen=True, eq=False)
class Rows:
    """Features (n, d) with pids (n,) and camids (n,)."""

    features: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    models: tuple[str, ...] = ()

    def take(self, chosen: np.ndarray) -> Rows:
        """Return the rows that ``chosen`` (n,), bool, marks; without a copy where these are all."""
        return (
            self if chosen.all() else Rows(self.features[chosen], self.pids[chosen], self.camids[chosen], self.models)
        )


def read_rows(path: str, labels: str | None, flag: str) -> Rows:
    """Return the rows of a file; junk (pid -1), which no protocol counts, is left out.

    Args:
        path: ``.npz`` or ``.safetensors`` with arrays ``features``, ``pids`` and ``camids``, or ``.npy`` of features.
        labels: CSV file with columns ``pid``, ``camid``, one line a row; needed for ``.npy``, else not allowed.
        flag: that named the file, for messages.

    Raises:
        FileNotFoundError, ValueError: no such file, another kind of file, an array is missing, lengths differ, or no
            row is left.
    """
    if path.endswith(".npy"):
        if labels is None:
            raise ValueError(
                f"{flag} '{path}' has no labels in it. Add {flag}-labels FILE.csv with columns pid, camid."
            )
        features = _load_npy(path)
        pids, camids = _load_labels(labels)
        source, model = labels, ""
    else:
        if labels is not None:
            raise ValueError(f"{flag}-labels is '{labels}', but '{path}' brings its labels. Leave {flag}-labels out.")
        arrays = load_arrays(path)
        require_arrays(path, arrays, ("features", "pids", "camids"))
        features, pids, camids = arrays["features"], arrays["pids"], arrays["camids"]
        source, model = path, str(arrays.get("model", ""))
    _check_features(path, features)
    name = flag.removeprefix("--")
    pids, camids = (
        as_labels(f"{name}_{what} of '{source}'", values, len(features))
        for what, values in (("pids", pids), ("camids", camids))
    )
    kept = pids != JUNK_PID
    if not kept.any():
        raise ValueError(f"'{path}' has no row of a person: all {len(pids)} have pid {JUNK_PID}, which is junk.")
    return Rows(features, pids, camids, (model,) if model else ()).take(kept)


def with_distractors(gallery: Rows, paths: Sequence[str], *, pid: int) -> Rows:
    """Return the gallery with the features of ``paths`` after its own rows, all with the pid ``pid`` and camid -1.

    Labels in the files are not read.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_rows`; another number of columns.
    """
    parts, models = [gallery.features], list(gallery.models)
    for path in paths:
        arrays = {"features": _load_npy(path)} if path.endswith(".npy") else load_arrays(path)
        if "features" not in arrays:
            raise ValueError(f"'{path}' lacks features; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
        _check_features(path, arrays["features"])
        if arrays["features"].shape[1] != gallery.features.shape[1]:
            raise ValueError(
                f"--distractors '{path}' has {arrays['features'].shape[1]} columns and the gallery "
                f"{gallery.features.shape[1]}, must be equal. Extract both with one model."
            )
        parts.append(arrays["features"])
        if model := str(arrays.get("model", "")):
            models.append(model)
    added = sum(map(len, parts[1:]))
    return Rows(
        np.concatenate(parts),
        np.concatenate([gallery.pids, np.full(added, pid)]),
        np.concatenate([gallery.camids, np.full(added, -1)]),
        tuple(dict.fromkeys(models)),
    )


def unused_pid(*pids: np.ndarray) -> int:
    """Return the least pid >= 0 that no row has.

    Example:
        >>> unused_pid(np.array([0, 1, 5]), np.array([2, -1]))
        3
    """
    taken = np.unique(np.concatenate(pids))
    taken = taken[taken >= 0]
    gaps = np.flatnonzero(taken != np.arange(len(taken)))
    return int(gaps[0]) if len(gaps) else len(taken)


def _load_npy(path: str) -> np.ndarray:
    if not Path(path).is_file():
        raise FileNotFoundError(f"'{path}' is not there. Name a .npy, .npz or .safetensors file of features.")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"'{path}' cannot be read as .npy: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise ValueError(f"'{path}' holds several arrays, as .npz files do. Name it .npz.")
    return loaded


def _load_labels(path: str) -> tuple[np.ndarray, np.ndarray]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"'{path}' is not there. Name a CSV file with columns pid, camid.")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is no text in UTF-8. Save it as CSV with columns pid, camid.") from None
    with io.StringIO(text, newline="") as stream:
        lines = csv.DictReader(stream, skipinitialspace=True)
        if lines.fieldnames is None or not {"pid", "camid"} <= set(lines.fieldnames):
            raise ValueError(
                f"'{path}' has the columns {', '.join(lines.fieldnames or []) or 'none'}; needs pid, camid."
            )
        labels = []
        for line in lines:
            try:
                labels.append(np.array([whole_from(line["pid"]), whole_from(line["camid"])], dtype=np.int64))
            except (TypeError, ValueError, OverflowError):
                raise ValueError(
                    f"'{path}' line {lines.line_num}: pid {line['pid']!r}, camid {line['camid']!r}; must be whole "
                    "numbers, such as 12,3."
                ) from None
    pids, camids = np.array(labels, dtype=np.int64).reshape(-1, 2).T
    return pids, camids


def _check_features(path: str, features: np.ndarray) -> None:
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind != "f":
        raise ValueError(
            f"'{path}': features have shape {features.shape} and type {features.dtype}, must be (n, d) floating point "
            "with at least one row."
        )
