"""Public parameters that were fitted once more: those of the stored release count where only rounding tells them apart.

PCA, LDA and k-means have other last bits with another number of threads, another machine or another extraction of the
training features. A release is known by the bits of what it was made with, and an append needs the very same transform
and codebook; so a plan takes the stored ones where its own are the same but for rounding. Both are public: they were
fitted on other people, and stand in the release.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppreid_plugin.dp.codebooks import codebook_from_arrays
from ppreid_plugin.dp.plan import ReleasePlan, transform_state
from ppreid_plugin.dp.reservations import Part, differences, latest_release
from ppreid_plugin.dp.stored import Release, load_stored

ROUNDING = 1e-5  # of an array's largest magnitude; one other row among 10,000 moves their mean by 1e-4

_log = logging.getLogger(__name__)


def with_stored_fits(plan: ReleasePlan, parts: Sequence[Part], out: Path) -> ReleasePlan:
    """Return the plan with transform and codebook of the stored release of its name, if its own are refits of those.

    The plan as it is comes back where there is no such release, or where more than rounding differs; then
    :mod:`.reservations` says what.

    Args:
        plan: what is to be released.
        parts: all of the ledger.
        out: folder where the release may lie.

    Raises:
        LedgerError, ValueError: the stored release was changed or is not whole.
    """
    stored = [part for part in latest_release(parts, plan.terms.name) if part.state == "committed"]
    if not stored:
        return plan
    differing = differences(stored[0].public, plan.public())
    if not differing or not {"transform", "prior"}.issuperset(differing):
        return plan
    try:
        release = load_stored(stored, out)
    except FileNotFoundError:
        return plan  # nothing to compare with; the release is told to be another one
    if not _are_refits(plan, release):
        return plan
    finite: Any = plan.mechanism if plan.sampler.arrays else None
    if finite is not None:
        decoder = None if finite.decodes_to_codewords else release.arrays["codebook"]
        finite = finite.with_codebook(codebook_from_arrays(release.arrays), decoder)
    made = plan.with_fits(transform=release.transform(), mechanism=finite)
    if made.public() != stored[0].public:
        return plan
    _log.info(
        "%s, fitted anew, is as in release %s but for rounding; the release has the stored one.",
        " and ".join(sorted(differing)),
        stored[0].release,
    )
    return made


def _are_refits(plan: ReleasePlan, release: Release) -> bool:
    """Return whether the plan's transform and codebook are those of the release but for rounding."""
    if json.loads(json.dumps(plan.transform.describe())) != release.manifest["transform"]:
        return False
    asked = {f"transform.{name}": array for name, array in transform_state(plan.transform).items()}
    asked |= plan.sampler.arrays
    return all(name in release.arrays and _close(array, release.arrays[name]) for name, array in asked.items())


def _close(asked: np.ndarray, stored: np.ndarray) -> bool:
    if asked.shape != stored.shape or asked.dtype != stored.dtype:
        return False
    if asked.dtype.kind != "f":
        return bool(np.array_equal(asked, stored))
    scale = float(np.abs(stored).max(initial=0.0))
    return bool(np.abs(asked - stored).max(initial=0.0) <= ROUNDING * scale)
