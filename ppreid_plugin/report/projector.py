"""Rows for TensorBoard's projector: those of a release, and clean ones only where they are asked for.

The projector's files hold every row as text, so clean ones are the unprotected gallery: they are readable by the owner
alone, named ``clean``, and never stand beside released ones.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from ..dp.stored import load_release
from ..leakage.inputs import load_set
from .record import require_output_folder

_log = logging.getLogger(__name__)


def require_empty_folder(flag: str, folder: str | Path) -> Path:
    """Return a folder that is empty or not there and can be written.

    Raises:
        ValueError: it holds something.
        OSError: as `require_output_folder`.
    """
    folder = require_output_folder(flag, folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{flag} is '{folder}', which holds something: rows would mix. Name a new folder.")
    return folder


def write_projector(folder: str | Path, *, release: str = "", clean: str = "") -> Path:
    """Write the rows of a release, or clean features, for ``tensorboard --logdir folder``; return the folder.

    Labels are those that the release carries: pids and camera labels in the enrolled protocol, none in the other one.

    Args:
        folder: folder to write; must be empty or not there.
        release: folder of the release.
        clean: file of clean features, instead.

    Raises:
        ValueError: both or none of them is given, or the folder holds something.
        FileNotFoundError: no such release or file.
    """
    from torch.utils.tensorboard import SummaryWriter

    if bool(release) == bool(clean):
        raise ValueError(
            "the projector shows either a release (--release DIR) or, with --clean-embeddings, the clean features of "
            "--gallery FILE: give one of them."
        )
    folder = require_empty_folder("--projector", folder)
    if release:
        stored = load_release(release)
        name, rows = f"release {stored.manifest['release']}", stored.features
        labels = {"pid": stored.pids, "camera": stored.camids}
    else:
        features = load_set(clean, ())
        name, rows = "clean", features.features
        labels = {"pid": features.pids, "camera": features.camids}
        _log.warning(
            "--clean-embeddings: '%s' will hold the unprotected gallery. Delete it when it was looked at.", folder
        )
    known = {title: column for title, column in labels.items() if column is not None}
    header = list(known)
    metadata = [[str(value) for value in line] for line in zip(*(c.tolist() for c in known.values()), strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    if clean:
        folder.chmod(0o700)
    with SummaryWriter(str(folder)) as writer:
        if len(header) > 1:
            writer.add_embedding(np.asarray(rows), metadata=metadata, metadata_header=header, tag=name)
        else:
            single = [line[0] for line in metadata] or [str(number) for number in range(len(rows))]
            writer.add_embedding(np.asarray(rows), metadata=single, tag=name)
    if clean:
        for path in folder.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
    return folder
