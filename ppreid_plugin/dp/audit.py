"""The budget audit: what a mechanism's outputs show about its epsilon, against what it claims.

A proof is about the mechanism on paper. The audit attacks the one that runs: it bounds epsilon from below by what an
attacker who knows everything but one row can tell from releases (:mod:`.audit_games`, :mod:`.audit_bounds`), computes
it exactly where that is possible, and looks whether rows look at each other (:mod:`.audit_exact`). A bound above the
claim is a fault, at the stated confidence; one below it is no proof of anything.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppreid_plugin.dp.audit_exact import TOLERANCE, Floats, rows_that_change
from ppreid_plugin.dp.audit_games import game_for, play
from ppreid_plugin.dp.mechanisms import Mechanism
from ppreid_plugin.dp.sampling import release_sampler
from ppreid_plugin.number_checks import is_number, require_whole

NOISES = ("research", "release")
CONFIDENCE = 1 - 1e-6
MIN_TRIALS = 1000
_USUAL_FAILURE = 0.05
_ROWS_TO_COMPARE = 64


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        mechanism: its name.
        noise: ``research`` or ``release``: which sampler was drawn from.
        epsilon, delta: claimed for one row.
        epsilon_lower: epsilon is larger than this, at ``confidence``.
        epsilon_lower_95: the same at 95 %: how much of the claim the audit sees.
        epsilon_exact: computed without sampling; None where it is not known how.
        rows_changed: rows whose output changed when another row did, the noise held fixed; None for release noise,
            which nothing can hold fixed.
        trials: releases of each of the two rows.
        dimension: columns of the rows.
        confidence: of ``epsilon_lower``.
        method: what the bound is and what it assumes, in words.
    """

    mechanism: str
    noise: str
    epsilon: float
    delta: float
    epsilon_lower: float
    epsilon_lower_95: float
    epsilon_exact: float | None
    rows_changed: int | None
    trials: int
    dimension: int
    confidence: float
    method: str

    @property
    def tight(self) -> float:
        """Share of the claimed epsilon that shows at 95 %; little of it is no fault, but the audit saw little."""
        return self.epsilon_lower_95 / self.epsilon

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the claim."""
        exact = self.epsilon if self.epsilon_exact is None else self.epsilon_exact
        return self.epsilon_lower <= self.epsilon and exact <= self.epsilon * (1 + TOLERANCE) and not self.rows_changed

    def to_json(self) -> dict[str, Any]:
        """Return all fields, ``tight`` and ``passed``."""
        return {**dataclasses.asdict(self), "tight": self.tight, "passed": self.passed}


class Audit:
    """An audit that is planned and not begun: everything is checked here, and nothing is drawn before :meth:`run`.

    Args and Raises: as :func:`audit_mechanism`.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        *,
        trials: int = 100_000,
        confidence: float = CONFIDENCE,
        dimension: int = 4,
        noise: str = "research",
    ) -> None:
        if not math.isfinite(mechanism.epsilon):
            raise ValueError(f"mechanism {mechanism.name!r} claims no epsilon: there is nothing to audit.")
        require_whole("trials", trials, least=MIN_TRIALS, hint="100000 is usual")
        require_whole("dimension", dimension)
        if not (is_number(confidence) and 0 < confidence < 1):
            raise ValueError(f"confidence is {confidence!r}, must be in (0, 1). Pass for example 0.999999.")
        if noise not in NOISES:
            raise ValueError(f"noise is {noise!r}; allowed: {', '.join(NOISES)}.")
        self.mechanism, self.trials, self.confidence, self.noise = mechanism, trials, confidence, noise
        self._game = game_for(mechanism, dimension)
        self._sampler = release_sampler(mechanism, self._game.dimension) if noise == "release" else None

    def run(self) -> AuditResult:
        """Draw, count and return what was found."""
        counts = play(self._game, self._draw, self.trials)
        lower, lower_95 = (
            self._game.epsilon_lower(counts, self.trials, failure) for failure in (1 - self.confidence, _USUAL_FAILURE)
        )
        return AuditResult(
            mechanism=self.mechanism.name,
            noise=self.noise,
            epsilon=self.mechanism.epsilon,
            delta=self.mechanism.delta,
            epsilon_lower=lower,
            epsilon_lower_95=lower_95,
            epsilon_exact=self._game.epsilon_exact(),
            rows_changed=None if self._sampler else _count_rows_changed(self.mechanism, self._game.dimension),
            trials=self.trials,
            dimension=self._game.dimension,
            confidence=self.confidence,
            method=self._game.method,
        )

    def _draw(self, rows: Floats) -> np.ndarray:
        if self._sampler is None:
            return self.mechanism.privatize(rows)
        (released,) = self._sampler.draw(rows, self.mechanism.epsilon).values()
        return released


def audit_mechanism(
    mechanism: Mechanism,
    *,
    trials: int = 100_000,
    confidence: float = CONFIDENCE,
    dimension: int = 4,
    noise: str = "research",
) -> AuditResult:
    """Audit a mechanism by what it is: Gaussian, PrivUnit or PrivUnitG, finite, or any other one.

    Args:
        mechanism: as :func:`.mechanisms.build_mechanism` returns it. Fresh noise is drawn: no seed, no lucky one.
        trials: releases of each of the two rows, at least 1000; below 100,000 little shows.
        confidence: of ``epsilon_lower``, in (0, 1): an honest mechanism fails with probability 1 - confidence at most.
        dimension: columns of the rows; a mechanism with a codebook is audited at its columns.
        noise: ``research``: ``privatize``; ``release``: the exact sampler that releases are drawn with (slow: some
            20,000 Gaussian numbers a second; six rows a trial).

    Raises:
        ValueError: an argument out of range, a mechanism that claims no epsilon, or one that has research noise only.

    Example:
        >>> from ppreid_plugin.dp.mechanisms import build_mechanism
        >>> result = audit_mechanism(build_mechanism("gaussian", epsilon=8.0))
        >>> result.passed, result.tight > 0.9
        (True, True)
    """
    return Audit(mechanism, trials=trials, confidence=confidence, dimension=dimension, noise=noise).run()


def _count_rows_changed(mechanism: Mechanism, dimension: int) -> int:
    rows = np.random.default_rng(0).standard_normal((_ROWS_TO_COMPARE, dimension))

    def protect(rows: Floats, generator: np.random.Generator) -> Floats:
        return mechanism.privatize(rows, generator=generator)

    return len({row for canary in (0, len(rows) - 1) for row in rows_that_change(protect, rows, canary=canary)})
