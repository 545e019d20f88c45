"""The audit of a stored release: its mechanism is built again from the manifest, and its sampler attacked afresh.

The released rows themselves cannot be audited: that would need the rows before the noise. What is audited is the
program that draws as the manifest says, and the noise that the manifest states.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from ppreid_plugin.dp.audit import Audit, AuditResult
from ppreid_plugin.dp.calibration import gaussian_epsilon
from ppreid_plugin.dp.codebooks import codebook_from_arrays
from ppreid_plugin.dp.mechanisms import MECHANISMS, Mechanism, build_mechanism
from ppreid_plugin.dp.stored import Release


def release_mechanisms(release: Release) -> list[Mechanism]:
    """Return the mechanism of a stored release, built again: one for each budget that its rows have.

    Raises:
        ValueError: a mechanism that is not registered here, or a manifest that lacks a parameter of it.
    """
    manifest = release.manifest
    stated = manifest["mechanism"]
    try:
        name, delta = stated["mechanism"], None if manifest["delta"] == 0 else manifest["delta"]
        options: dict[str, Any] = {}
        if "symbols" in release.arrays:
            options = {"codebook": codebook_from_arrays(release.arrays), "decoder": release.arrays.get("codebook")}
            options["set_size"] = stated["set_size"]
        elif stated["clip_norm"] is not None:
            options["clip_norm"] = stated["clip_norm"]
        levels = [level["epsilon"] for level in manifest.get("individual_budgets") or [manifest]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the manifest in '{release.folder}' is malformed ({error!r}). Restore the release.") from None
    taken = inspect.signature(MECHANISMS.get(name)).parameters
    options = {key: value for key, value in options.items() if key in taken}
    return [build_mechanism(name, epsilon=epsilon, delta=delta, **options) for epsilon in levels]


class ReleaseAudit(Audit):
    """The audit of one budget level of a stored release: release noise, and the sigma that the manifest states.

    For Gaussian noise ``epsilon_exact`` of the result is that of the stated sigma, at the sensitivity that the bound
    on the rows implies; only the level that the manifest states a sigma for has one.

    Args:
        mechanism: one of :func:`release_mechanisms`.
        release: the stored release.
        trials, dimension: as :func:`.audit.audit_mechanism`; Gaussian noise is drawn in fewer columns than the release
            has, for it is slow, and the same in every column.

    Raises:
        ValueError: as :func:`.audit.audit_mechanism`; a stated sigma that is no number > 0.
    """

    def __init__(self, mechanism: Mechanism, release: Release, *, trials: int = 100_000, dimension: int = 4) -> None:
        super().__init__(mechanism, trials=trials, dimension=dimension, noise="release")
        stated = release.manifest["mechanism"].get("sigma")
        self._stated_epsilon: float | None = None
        if mechanism.sigma is not None and mechanism.epsilon == release.manifest["epsilon"]:
            self._stated_epsilon = gaussian_epsilon(stated, mechanism.delta, mechanism.sensitivity)

    def run(self) -> AuditResult:
        """Draw, count and return what was found."""
        found = super().run()
        if self._stated_epsilon is None:
            return found
        return dataclasses.replace(
            found,
            epsilon_exact=self._stated_epsilon,
            method=f"{found.method}; exact epsilon of the sigma that the manifest states",
        )
