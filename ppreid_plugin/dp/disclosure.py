"""What a release has to tell beside its epsilon: the same budget for a person with many rows, and what it bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppreid_plugin.dp.bounds import (
    bound_auc_gaussian,
    bound_auc_pure,
    bound_query_to_row,
    bound_row_to_person,
    bound_row_to_person_gaussian,
)
from ppreid_plugin.dp.charges import Charge, compose
from ppreid_plugin.dp.mechanisms import DEFAULT_DELTA


def person_level(rows: Sequence[int], charge: Charge) -> dict[str, Any]:
    """Return the person-level epsilon at the median (the upper one) and the largest of sorted ``rows`` a person."""
    if not rows:
        return {"people": 0, "rows_a_person": None, "person_level": None}
    median, largest, delta = rows[len(rows) // 2], rows[-1], charge.delta or DEFAULT_DELTA
    return {
        "people": len(rows),
        "rows_a_person": {"median": median, "largest": largest},
        "person_level": {
            "delta": delta,
            "epsilon_at_median": compose([charge.times(median)], delta),
            "epsilon_at_largest": compose([charge.times(largest)], delta),
        },
    }


def bounds(people: int, charge: Charge, unit: str) -> dict[str, float] | None:
    """Return what no attacker exceeds on one released row of one unit; None without people.

    ``row_to_person``: which of ``people`` known people the row is of. ``query_to_row``: rank-1, for pure mechanisms in
    the person unit only. ``auc``: telling two known values apart. See :mod:`.bounds`.
    """
    if not people:
        return None
    if charge.mu is not None:  # the lattice sampler's slack moves a success by less than 1e-6
        told = {"row_to_person": bound_row_to_person_gaussian(charge.mu, people), "auc": bound_auc_gaussian(charge.mu)}
        return {name: min(1.0, value + 1e-6) for name, value in told.items()}
    told = {"row_to_person": bound_row_to_person(charge.epsilon, people), "auc": bound_auc_pure(charge.epsilon)}
    return told if unit == "image" else {**told, "query_to_row": bound_query_to_row(charge.epsilon, people)}
