"""Runs of the battery that are finished, kept in a file: an interrupted battery goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..report.record import write_json
from .data import LeakageSet

RESUME_FORMAT = "ppreid_plugin leakage, finished attacks"


class FinishedRuns:
    """Finished runs in a JSON file, written after each; several processes may share one."""

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._runs = self._stored()

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the run, if it is finished."""
        return self._runs.get(key)

    def put(self, key: str, run: dict[str, Any]) -> None:
        """Keep a run."""
        self._keep({key: run})

    def put_all(self, others: FinishedRuns) -> None:
        """Keep all runs of another file, in the place of those of the same name."""
        self._keep(others._runs)

    def _keep(self, runs: dict[str, Any]) -> None:
        self._runs |= runs
        if self._path is not None:
            with FileLock(f"{self._path}.lock"):
                self._runs = {**self._stored(), **self._runs}  # another process may have put its own
                write_json({"format": RESUME_FORMAT, "runs": self._runs}, self._path)

    def _stored(self) -> dict[str, Any]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            if stored["format"] != RESUME_FORMAT:
                raise KeyError("format")
            return dict(stored["runs"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"'{self._path}' does not hold finished attacks. Delete it, or name another file."
            ) from None


def fingerprint(*sets: LeakageSet) -> str:
    """Return a digest of features, labels and images, so that a resumed run is one of the same data."""
    digest = hashlib.sha256()
    for rows in sets:
        arrays: dict[str, Any] = {
            "features": rows.features,
            "pids": rows.pids,
            "camids": rows.camids,
            **{f"attr_{name}": labels for name, labels in rows.attributes.items()},
        }
        if rows.clean is not None:
            arrays["clean"] = rows.clean
        if rows.queries is not None and rows.queries is not rows.features:
            arrays["queries"] = rows.queries
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
        if rows.images is not None:
            digest.update(rows.images.fingerprint().encode())
        digest.update(repr((rows.background_pids, rows.protection is None)).encode())
    return digest.hexdigest()[:32]
