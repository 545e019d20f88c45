"""What releases cost a unit, and what several of them come to: the one place where budgets are composed.

The bound is :func:`.composition.compose`'s (Gaussian releases by mu, pure ones optimally), with the slack of the
lattice sampler's proof (:mod:`.exact`), or the plain sum where that is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ppreid_plugin.dp import composition
from ppreid_plugin.dp.exact import LOG_RATIO, TAIL


@dataclass(frozen=True)
class Charge:
    """What one release costs one unit.

    Args:
        epsilon: budget of one row (or prototype) of the unit.
        delta: its failure probability; 0 for pure mechanisms.
        mu: sensitivity over sigma for Gaussian noise; None for any other.
        rows: how many rows of the unit are released, each at this cost.
    """

    epsilon: float
    delta: float
    mu: float | None = None
    rows: int = 1

    def times(self, rows: int) -> Charge:
        """Return the charge of ``rows`` rows."""
        return replace(self, rows=self.rows * rows)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return {"epsilon": self.epsilon, "delta": self.delta, "mu": self.mu, "rows": self.rows}


def compose(charges: Iterable[Charge], delta: float) -> float:
    """Return the epsilon that all ``charges`` of one unit come to at ``delta``; infinity if no bound holds there.

    Args:
        charges: of one unit, in any order.
        delta: total failure probability, in [0, 1); at 0 only pure charges have a finite total.

    Example:
        >>> compose([Charge(4.0, 0.0), Charge(2.0, 0.0, rows=2)], delta=0.0)
        8.0
        >>> round(compose([Charge(4.0, 1e-5, mu=0.9249)] * 10, delta=1e-5), 1)
        16.1
    """
    return _compose(tuple(sorted(charges, key=lambda charge: (charge.epsilon, charge.delta, charge.rows))), delta)


@lru_cache(maxsize=4096)  # thousands of units share a handful of histories
def _compose(charges: tuple[Charge, ...], delta: float) -> float:
    totals = [math.inf]
    if math.fsum(charge.rows * charge.delta for charge in charges) <= delta:
        totals.append(math.fsum(charge.rows * charge.epsilon for charge in charges))
    gaussian = [charge for charge in charges if charge.mu is not None]
    rows = sum(charge.rows for charge in gaussian)
    kept = (delta - rows * TAIL) * math.exp(-rows * LOG_RATIO)  # what the lattice sampler's proof leaves of delta
    if kept > 0:
        other = [charge for charge in charges if charge.mu is None for _ in range(charge.rows)]
        try:
            composed = composition.compose(
                mus=[math.sqrt(charge.rows) * (charge.mu or 0.0) for charge in gaussian],
                epsilons=[charge.epsilon for charge in other if charge.delta == 0],
                pairs=[(charge.epsilon, charge.delta) for charge in other if charge.delta > 0],
                delta=kept,
            )
        except ValueError:  # the releases' own deltas come to more than the total
            composed = math.inf
        totals.append(composed + 2 * rows * LOG_RATIO)
    return min(totals)


def largest_epsilon(
    spent: Sequence[Charge], budget: float, delta: float, charge_at: Callable[[float], Charge]
) -> float:
    """Return the largest epsilon of a further release that keeps one unit within its budget; 0 if there is none.

    Args:
        spent: the unit's charges so far.
        budget: the total epsilon that the unit may reach, at ``delta``.
        delta: as for :func:`compose`.
        charge_at: the charge of the planned release at an epsilon.
    """

    def fits(epsilon: float) -> bool:
        try:
            return compose([*spent, charge_at(epsilon)], delta) <= budget
        except ValueError:  # an epsilon too small for the mechanism
            return False

    low, high = 0.0, budget
    if fits(high):
        return high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
