"""What a release says about itself: ``manifest.json``, and the check that it and the arrays belong together.

No hash and no statistic of clean features stands in it: a bare hash can be confirmed by guessing. Every field is in
``docs/release-format.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import safetensors
import torch

from ppreid_plugin.dp.codebooks import codebook_from_arrays
from ppreid_plugin.dp.journal import utc_now
from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.plan import ReleasePlan
from ppreid_plugin.dp.reservations import Part, pids_of
from ppreid_plugin.number_checks import is_number

FORMAT = "ppreid_plugin release"
VERSION = 1
NOT_COVERED = (
    "Protected rows are still personal data: pseudonymized, not anonymous.",
    "Number of rows, row ids, pids, camids, camera and time labels are public.",
    "Membership in the encoder's training set.",
    "Query images and their features.",
    "People or rows that the pids do not tie together: the promise is for one unit as named here.",
    "The training people behind the public transform, the codebook and the encoder.",
    "The time that sampling takes, and the memory of the machine that drew the noise.",
)
_NUMBERS = {"epsilon": False, "delta": True}  # name: whether 0 is allowed


def build_manifest(
    plan: ReleasePlan,
    ledger: Ledger,
    part: Part,
    arrays: Mapping[str, np.ndarray],
    data: bytes,
    *,
    base: Sequence[Part] = (),
    earlier: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the manifest of a release whose array file is ``data``.

    Args:
        plan: what is released.
        ledger: its accounts.
        part: the reservation.
        arrays: all arrays, those of the parts before included.
        data: the array file.
        base: the parts that this one is appended to.
        earlier: what the manifest says about them.
    """
    terms = plan.terms
    count = len(arrays["row_id"])
    parts = [
        *earlier,
        {
            "reservation": part.reservation,
            "created": utc_now(),
            "rows": count - sum(one["rows"] for one in earlier),
            "ledger_seq": part.seq,
            "ledger_head": part.mac,
        },
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "release": part.release,
        **plan.summary(list(pids_of([*base, part]).values())),
        "noise": "release: operating-system entropy, exact sampler",
        "model": terms.model,
        "transform": plan.transform.describe(),
        "prior": dict(terms.prior) or None,
        "background_pids": sorted(terms.background_pids),
        "scope": {"name": ledger.scope, "unit": ledger.unit, "epsilon": ledger.epsilon, "delta": ledger.delta},
        "parts": parts,
        "file": {"name": "gallery.safetensors", "bytes": len(data), "sha256": sha256(data)},
        "arrays": {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in sorted(arrays.items())},
        "controller": terms.controller,
        "purpose": terms.purpose,
        "expires": terms.expires or None,
        "not_covered": list(NOT_COVERED),
        "versions": versions(),
    }


def check_manifest(manifest: Any, data: bytes, where: str) -> dict[str, Any]:
    """Return the manifest if it is one of ours and names exactly the array file ``data``.

    Raises:
        ValueError: another format, a field that is missing or out of range, or another array file.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{where} is not the manifest of a release (format {FORMAT!r}).")
    if manifest.get("version") != VERSION:
        raise ValueError(f"{where} has version {manifest.get('version')!r}; this program reads {VERSION}. Update it.")
    missing = [key for key in ("release", "epsilon", "delta", "unit", "protocol", "rows", "parts", "file", "arrays",
                               "scope", "mechanism", "transform", "model") if key not in manifest]  # fmt: skip
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}. Restore the release from a copy.")
    for name, zero in _NUMBERS.items():
        value = manifest[name]
        finite = is_number(value) and math.isfinite(value)
        if not finite or value < 0 or (value == 0 and not zero) or (name == "delta" and value >= 1):
            what = "in [0, 1)" if name == "delta" else "> 0"
            raise ValueError(f"{where}: {name} is {value!r}, must be a finite number {what}. Restore the release.")
    for name, kind in (("scope", dict), ("parts", list), ("release", str), ("mechanism", dict), ("transform", dict)):
        if not isinstance(manifest[name], kind):
            raise ValueError(f"{where} is malformed: {name} is {manifest[name]!r}. Restore the release.")
    if not isinstance(manifest.get("expires"), (str, type(None))):
        raise ValueError(f"{where} is malformed: expires is {manifest['expires']!r}. Restore the release.")
    file = manifest["file"]
    if not isinstance(file, dict) or file.get("bytes") != len(data):
        told = file.get("bytes") if isinstance(file, dict) else file
        raise ValueError(f"gallery.safetensors holds {len(data)} bytes, {where} says {told}: cut off or exchanged.")
    if file.get("sha256") != sha256(data):
        raise ValueError(f"gallery.safetensors is not the file that {where} names (SHA-256 differs). Restore both.")
    return manifest


def check_arrays(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raise ValueError unless the arrays are the ones that the manifest names, and fit together."""
    told = {name: (one["dtype"], tuple(one["shape"])) for name, one in manifest["arrays"].items()}
    found = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    if told != found:
        odd = ", ".join(sorted(name for name in {*told, *found} if told.get(name) != found.get(name)))
        raise ValueError(f"{where}: arrays differ from gallery.safetensors in {odd}.")
    rows = manifest["rows"]
    if ("features" in arrays) == ("symbols" in arrays) or "row_id" not in arrays:
        raise ValueError(f"{where}: a release holds row_id and either features or symbols; found {', '.join(arrays)}.")
    labels = [name for name in ("pids", "camids", "epsilon") if name in arrays]
    if manifest["protocol"] == "anonymous" and labels:
        raise ValueError(f"{where}: protocol is anonymous, yet the release holds {', '.join(labels)}. Delete it.")
    if manifest["protocol"] == "enrolled" and "pids" not in arrays:
        raise ValueError(f"{where}: protocol is enrolled, yet the release holds no pids.")
    for name in ("features", "symbols", "row_id", *labels):
        if name in arrays and len(arrays[name]) != rows:
            raise ValueError(f"{where}: rows is {rows}, {name} holds {len(arrays[name])}.")
    if sum(part["rows"] for part in manifest["parts"]) != rows:
        raise ValueError(f"{where}: rows is {rows}, its parts hold {[part['rows'] for part in manifest['parts']]}.")
    if "features" in arrays and not np.isfinite(arrays["features"]).all():
        raise ValueError(f"{where}: features hold NaN or infinity; a release never does.")
    if "symbols" in arrays:
        symbols, size = arrays["symbols"], len(codebook_from_arrays(arrays))
        if len(symbols) and not (symbols.min() >= 0 and symbols.max() < size):
            raise ValueError(f"{where}: symbols must be in [0, {size}), the size of the codebook.")


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Return the manifest as the file's text."""
    return (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode("utf-8")


def sha256(data: bytes) -> str:
    """Return the SHA-256 of *released* bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of what made the release."""
    from ppreid_plugin import __version__  # the package imports this module while it is initialized

    return {
        "ppreid_plugin": __version__,
        "opendp": metadata.version("opendp"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    }
