"""Saved features: a gallery or a training split as ``.npz`` or ``.safetensors``, as the extraction writes them."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from ppreid_plugin.dp.journal import write_file
from ppreid_plugin.dp.units import GalleryRows
from ppreid_plugin.number_checks import whole_from


def load_arrays(path: str | Path, only: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a file; nothing in it is executed.

    Args:
        path: of the file.
        only: those of its arrays that are read; None: all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or one that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise FileNotFoundError(f"'{path}' {what}. Name a .npz or .safetensors file of features.")
    try:
        if path.suffix == ".npz":
            if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle, and advise to load it as one
                raise ValueError("it is no archive of arrays, or was cut off")
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files if only is None or name in only}
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys() if only is None or name in only}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"'{path}' cannot be read as {path.suffix}: {' '.join(str(error).split())}") from None
    raise ValueError(f"'{path}' ends in {path.suffix!r}; features are read from .npz and .safetensors files.")


def require_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], names: Collection[str]) -> None:
    """Raise ValueError if one of these arrays is not among those of a file."""
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"'{path}' lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}.")


def save_features(path: str | Path, arrays: Mapping[str, np.ndarray], *, model: str = "") -> Path:
    """Write clean features as ``.npz``: readable by the owner alone, complete or not at all, marked ``clean``.

    Args:
        path: file to write; an existing one is replaced.
        arrays: ``features``, ``pids``, ``camids``, ``row_ids`` and what else belongs to the rows.
        model: fingerprint of the weights that made them.
    """
    path = Path(path)
    stream = io.BytesIO()
    np.savez(stream, **dict(arrays), privacy=np.array("clean"), model=np.array(model))  # type: ignore[arg-type]
    write_file(path, stream.getvalue(), mode=0o600)
    return path


def row_names(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return ``row_ids`` of a file's arrays as text; empty if there are none."""
    row_ids = arrays.get("row_ids", np.empty(0, dtype=np.int64))
    if row_ids.ndim == 2 and row_ids.dtype == np.uint8:  # safetensors holds no text
        return [bytes(row).rstrip(b"\0").decode("utf-8") for row in row_ids]
    return [str(row_id) for row_id in row_ids.tolist()]


def require_disjoint(train: str | Path, row_ids: Collection[str], flag: str, other: str) -> None:
    """Raise ValueError if the training file holds a row of the gallery: nothing may be fitted on what is released."""
    require_other_rows(row_names(load_arrays(train, ["row_ids"])), row_ids, f"{flag} '{train}'", other)


def require_disjoint_files(learned: str | Path, flag: str, other: str | Path, other_flag: str) -> None:
    """Raise ValueError if two files of features share rows, by their names: `require_disjoint` of the other's."""
    require_disjoint(learned, row_names(load_arrays(other, ["row_ids"])), flag, other_flag)


def require_other_rows(train: Iterable[str], gallery: Iterable[str], what: str, other: str) -> None:
    """Raise ValueError if training rows are rows of the gallery, by their names.

    Args:
        train: names of the training rows.
        gallery: of the gallery's.
        what: how the error calls the former.
        other: and the latter.
    """
    if shared := sorted(set(train) & set(gallery)):
        numbered = " If these are other images, name the rows: row_ids as text, unlike any other image's."
        raise ValueError(
            f"{what} holds {len(shared)} rows of {other}, such as {shared[0]}: what is fitted on the gallery "
            f"voids the guarantee. Name features of other people.{numbered if shared[0].isdecimal() else ''}"
        )


def load_gallery(path: str | Path) -> GalleryRows:
    """Return the gallery in a file with ``features``, ``pids``, ``camids`` and ``row_ids``.

    ``row_ids`` is (n,) text or whole numbers, or (n, L) bytes of UTF-8 padded with zeros (safetensors holds no text).

    Raises:
        FileNotFoundError, ValueError: as :func:`load_arrays`; an array is missing; values as :class:`GalleryRows` says.
    """
    arrays = load_arrays(path)
    require_arrays(path, arrays, ("features", "pids", "camids", "row_ids"))
    row_ids = arrays["row_ids"]
    if row_ids.ndim == 2 and row_ids.dtype == np.uint8:
        row_ids = np.array(row_names(arrays))
    if row_ids.ndim != 1 or row_ids.dtype.kind not in "iuUS":
        raise ValueError(f"'{path}': row_ids has shape {row_ids.shape} and type {row_ids.dtype}, must be (n,) names.")
    return GalleryRows(arrays["features"], row_ids.tolist(), arrays["pids"], arrays["camids"])


def load_budgets(path: str | Path) -> dict[int, float]:
    """Return budgets by pid from a CSV file with columns ``pid, epsilon``.

    Raises:
        FileNotFoundError, ValueError: no such file, a missing column, a line that is no pid and number, a pid twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is not there. Name a CSV file with columns pid, epsilon.")
    budgets: dict[int, float] = {}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        lines = csv.DictReader(stream, skipinitialspace=True)
        if lines.fieldnames is None or not {"pid", "epsilon"} <= set(lines.fieldnames):
            raise ValueError(
                f"'{path}' has the columns {', '.join(lines.fieldnames or []) or 'none'}; needs pid, epsilon."
            )
        for line in lines:
            try:
                pid, epsilon = whole_from(line["pid"]), float(line["epsilon"])
            except (TypeError, ValueError):
                raise ValueError(
                    f"'{path}' line {lines.line_num}: pid {line['pid']!r}, epsilon {line['epsilon']!r}; must be a "
                    "whole number and a number, such as 12,2.0."
                ) from None
            if pid in budgets:
                raise ValueError(f"'{path}' line {lines.line_num}: pid {pid} stands twice.")
            budgets[pid] = epsilon
    return budgets


def load_training(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return features and, if the file holds them, pids of a training split."""
    arrays = load_arrays(path)
    require_arrays(path, arrays, ("features",))
    return arrays["features"], arrays.get("pids")


def model_fingerprint(model: str) -> str:
    """Return the SHA-256 of the checkpoint file ``model``, or ``model`` itself if there is no such file."""
    path = Path(model)
    if not path.is_file():
        return model
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return "sha256:" + digest.hexdigest()
