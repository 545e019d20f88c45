"""A stored release: reading it, and checking that it is whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_safetensors

from ppreid_plugin.dp.codebooks import codebook_from_arrays
from ppreid_plugin.dp.journal import LedgerError
from ppreid_plugin.dp.manifest import check_arrays, check_manifest, sha256
from ppreid_plugin.dp.reservations import Part
from ppreid_plugin.dp.transforms import PublicTransform, transform_from_state

ARRAYS, MANIFEST = "gallery.safetensors", "manifest.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Release:
    """A stored release.

    Attributes:
        folder: where it lies.
        manifest: what it says about itself.
        arrays: by name: ``features`` (n, d) or ``symbols`` (n,) and ``codebook`` (M, d) or two
            levels of it; ``row_id`` (n, L) bytes;
            ``pids``, ``camids`` (n,) in the enrolled protocol; ``transform.<name>`` of the public transform.
    """

    folder: Path
    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def features(self) -> np.ndarray:
        """Released rows (n, d), float32: as stored, or the codebook's rows of the symbols."""
        if "features" in self.arrays:
            return self.arrays["features"]
        if "codebook" in self.arrays:
            return self.arrays["codebook"][self.arrays["symbols"]]
        return codebook_from_arrays(self.arrays).rows(self.arrays["symbols"]).astype(np.float32)

    @property
    def row_ids(self) -> list[str]:
        """Names of the rows; in the anonymous protocol running numbers that say nothing."""
        return [bytes(row).rstrip(b"\0").decode("utf-8") for row in self.arrays["row_id"]]

    @property
    def pids(self) -> np.ndarray | None:
        """Pids (n,), or None in the anonymous protocol."""
        return self.arrays.get("pids")

    @property
    def camids(self) -> np.ndarray | None:
        """Camids (n,), or None in the anonymous protocol and for prototypes."""
        return self.arrays.get("camids")

    def transform(self) -> PublicTransform:
        """Return the public transform that queries go through too, as it was fitted."""
        state = {name.removeprefix("transform."): a for name, a in self.arrays.items() if name.startswith("transform.")}
        return transform_from_state(self.manifest["transform"]["transform"], state)


def load_release(path: str | Path) -> Release:
    """Return the release in the folder ``path``, after checking that it is whole and agrees with its manifest.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        ValueError: a file that is cut off, changed or of another format, or a manifest that does not fit the arrays.
    """
    folder = Path(path)
    for file in (folder / MANIFEST, folder / ARRAYS):
        if not file.is_file():
            raise FileNotFoundError(f"'{folder}' holds no {file.name}: it is not a release, or not a whole one.")
    where, data = MANIFEST, (folder / ARRAYS).read_bytes()
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{where} in '{folder}' is not JSON: cut off or edited. Restore the release.") from None
    manifest = check_manifest(manifest, data, where)
    try:
        arrays = load_safetensors(data)
    except Exception as error:
        raise ValueError(f"{ARRAYS} in '{folder}' cannot be read ({error}). Restore the release.") from None
    try:
        check_arrays(manifest, arrays, where)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} in '{folder}' is malformed ({error!r}). Restore the release.") from None
    release = Release(folder, manifest, arrays)
    if len(set(release.row_ids)) < len(release.row_ids):
        raise ValueError(f"{ARRAYS} in '{folder}' holds a row id twice. Restore the release.")
    if isinstance(expires := manifest.get("expires"), str) and _is_over(expires):
        _log.warning("release %s expired on %s: delete it (tools/ledger.py purge).", manifest["release"], expires)
    return release


def _is_over(day: str) -> bool:
    try:
        return date.fromisoformat(day) < date.today()
    except ValueError:
        return True  # no date: nobody can say that it is not


def load_stored(parts: Sequence[Part], out: Path) -> Release:
    """Return the stored release of these committed parts, at ``out`` or where the ledger saw it last.

    Raises:
        FileNotFoundError: it is at neither place.
        LedgerError: its manifest is not the one that was committed.
    """
    for folder in dict.fromkeys([out, Path(parts[-1].folder)]):
        if (folder / MANIFEST).is_file():
            release = load_release(folder)
            last = release.manifest["parts"][-1] if release.manifest["parts"] else {}
            if last.get("ledger_head") in {part.mac for part in parts}:  # else another scope's, or another ledger's
                written = sha256((folder / MANIFEST).read_bytes())
                if written in {part.manifest for part in parts[:-1]}:
                    continue  # the shorter release, which an append left where it was
                if written != parts[-1].manifest:
                    raise LedgerError(f"'{folder}' is not as it was committed: its manifest differs. Restore it.")
                return release
    raise FileNotFoundError(
        f"release {parts[0].release!r} is in the ledger, but neither in '{out}' nor in '{parts[-1].folder}'. "
        "Put it back; or say new_release (--new-release), which spends again."
    )
