"""Saved features: a gallery or a training split as ``.npz`` or ``.safetensors``, as the extraction writes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ppreid_plugin.dp.units import GalleryRows


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or one that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is not there. Name a .npz or .safetensors file of features.")
    try:
        if path.suffix == ".npz":
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        if path.suffix == ".safetensors":
            return dict(load_file(path))
    except Exception as error:
        raise ValueError(f"'{path}' cannot be read as {path.suffix}: {' '.join(str(error).split())}") from None
    raise ValueError(f"'{path}' ends in {path.suffix!r}; features are read from .npz and .safetensors files.")


def load_gallery(path: str | Path) -> GalleryRows:
    """Return the gallery in a file with ``features``, ``pids``, ``camids`` and ``row_ids``.

    ``row_ids`` is (n,) text or whole numbers, or (n, L) bytes of UTF-8 padded with zeros (safetensors holds no text).

    Raises:
        FileNotFoundError, ValueError: as :func:`load_arrays`; an array is missing; values as :class:`GalleryRows` says.
    """
    arrays = load_arrays(path)
    missing = [name for name in ("features", "pids", "camids", "row_ids") if name not in arrays]
    if missing:
        raise ValueError(f"'{path}' lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    row_ids = arrays["row_ids"]
    if row_ids.ndim == 2 and row_ids.dtype == np.uint8:
        row_ids = np.array([bytes(row).rstrip(b"\0").decode("utf-8") for row in row_ids])
    if row_ids.ndim != 1 or row_ids.dtype.kind not in "iuUS":
        raise ValueError(f"'{path}': row_ids has shape {row_ids.shape} and type {row_ids.dtype}, must be (n,) names.")
    return GalleryRows(arrays["features"], row_ids.tolist(), arrays["pids"], arrays["camids"])


def load_training(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return features and, if the file holds them, pids of a training split."""
    arrays = load_arrays(path)
    if "features" not in arrays:
        raise ValueError(f"'{path}' lacks features; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
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
