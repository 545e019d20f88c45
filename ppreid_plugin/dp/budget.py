"""Whether a planned release fits into the budget of a scope, and what to say when it does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ppreid_plugin.dp.charges import Charge, compose, largest_epsilon

TOLERANCE = 1e-9  # relative, of the budget: sums of decimal epsilons are not exact in floating point

Charges = tuple[Charge, ...]


class BudgetExceeded(ValueError):  # noqa: N818 (the name that users read in the message)
    """A release would take units over the budget of their scope; nothing was drawn and nothing spent."""


def check_budget(
    scope: str,
    unit: str,
    budget: tuple[float, float],
    spent: Mapping[str, Charges],
    planned: Mapping[str, Charges],
    *,
    charge_at: Callable[[float], Charge],
    reusable: Sequence[str] = (),
) -> None:
    """Raise BudgetExceeded if an account would go over.

    Args:
        scope: its name, for the message.
        unit: what an account is: ``image`` or ``person``.
        budget: epsilon and delta of each account.
        spent: charges of each account so far.
        planned: charges that the release adds to each account.
        charge_at: the charge of one row of this release at another epsilon.
        reusable: names of stored releases.
    """
    epsilon, delta = budget
    limit = epsilon * (1 + TOLERANCE)
    over: dict[tuple[Charges, Charges], int] = {}  # equal histories are judged once
    for account, charges in planned.items():
        history = spent.get(account, ())
        if compose([*history, *charges], delta) > limit:
            over[history, charges] = over.get((history, charges), 0) + 1
    if not over:
        return
    history, charges = max(over, key=lambda pair: compose([*pair[0], *pair[1]], delta))
    left = min(_left(*pair, limit, delta, charge_at) for pair in over)
    advice = "Ask for that or less" if left >= 0.01 else "Nothing is left for them"
    if reusable:
        advice += f", or reuse release {reusable[-1]!r}, which is free"
    rows = sum(charge.rows for charge in charges)
    if delta == 0 and any(charge.delta > 0 for charge in charges):
        raise BudgetExceeded(
            f"scope {scope!r} was opened with delta 0, which admits pure mechanisms only; this one has delta "
            f"{max(charge.delta for charge in charges):g} a row. Take a pure one that can be released (codebook, "
            "prior_subset), or declare a scope with a delta for other images."
        )
    raise BudgetExceeded(
        f"scope {scope!r}, unit {unit}: {sum(over.values())} of {len(planned)} units have spent epsilon "
        f"{compose(history, delta):.2f} of {epsilon:.2f} (delta {delta:g}); releasing at "
        f"{max(charge.epsilon for charge in charges):.2f}{f' in {rows} rows' if rows > 1 else ''} would reach "
        f"{compose([*history, *charges], delta):.2f}.\n  Left: {math.floor(left * 100) / 100:.2f}. {advice}."
    )


def _left(
    history: Charges, charges: Charges, limit: float, delta: float, charge_at: Callable[[float], Charge]
) -> float:
    rows = sum(charge.rows for charge in charges)
    return largest_epsilon(history, limit, delta, lambda epsilon: charge_at(epsilon).times(rows))
