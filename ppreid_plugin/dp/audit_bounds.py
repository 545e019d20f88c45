r"""Lower confidence bounds on epsilon from counts: what events that were fixed beforehand show about a mechanism.

An event is fixed for a pair of rows and counted over many releases of each: likely for u, unlikely for -u. Its two
rates are bounded by Clopper-Pearson, the failure probability split over all rates of all events.

*Any mechanism*: :math:`P(E \mid u) \le e^\varepsilon P(E \mid -u) + \delta`, for E and for its complement, so the
largest log ratio is a lower bound. With n draws a rate below 1/n cannot be told from 0: above epsilon 4 little shows.

*Gaussian noise*: the two error rates bound :math:`\mu = -\Phi^{-1}(\text{false positives}) -
\Phi^{-1}(\text{false negatives})`, which is converted to epsilon once. Far sharper, since rates of 1 % show what
happens at 1e-9, but it **assumes the Gaussian family**: for other noise it is no bound.

Source: Nasr et al., USENIX Security 2023, arXiv 2302.07956 (auditing mu and converting once).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from scipy.stats import beta, norm

from ppreid_plugin.dp.calibration import gaussian_epsilon

Counts: TypeAlias = "Sequence[tuple[int, int]]"


def event_epsilon_lower(counts: Counts, trials: int, *, failure: float, delta: float = 0.0) -> float:
    """Return a lower bound on epsilon that no noise family is assumed for; it is too high with probability ``failure``.

    Args:
        counts: for each event how often it happened for u and for -u.
        trials: releases of each of the two rows.
        failure: 1 - confidence.
        delta: at which epsilon is meant.

    Example:
        >>> round(event_epsilon_lower([(73_106, 26_894)], 100_000, failure=0.05), 3)
        0.986
    """
    level = failure / (2 * len(counts))
    largest = 0.0
    for often, seldom in counts:
        low, high = rate_at_least(often, trials, level), rate_at_most(seldom, trials, level)
        for rate, other in ((low, high), (1 - high, 1 - low)):
            if rate > delta:
                largest = max(largest, math.log(rate - delta) - math.log(other))
    return largest


def gaussian_epsilon_lower(counts: Counts, trials: int, *, failure: float, delta: float) -> float:
    """Return a lower bound on the epsilon of *Gaussian* noise; it is too high with probability ``failure``.

    Args:
        counts: for each event how often it happened for u and for -u.
        trials: releases of each of the two rows.
        failure: 1 - confidence.
        delta: at which epsilon is meant, in (0, 1).

    Example:
        >>> round(gaussian_epsilon_lower([(92_700, 7_300)], 100_000, failure=0.05, delta=1e-5), 1)
        15.8
    """
    level = failure / (2 * len(counts))
    mu = max(
        -float(norm.ppf(rate_at_most(trials - often, trials, level)) + norm.ppf(rate_at_most(seldom, trials, level)))
        for often, seldom in counts
    )
    return gaussian_epsilon(1 / mu, delta, 1.0) if mu > 0 else 0.0


def rate_at_most(count: int, trials: int, failure: float) -> float:
    """Return the Clopper-Pearson upper bound on a rate; it is too low with probability at most ``failure``."""
    return 1.0 if count == trials else float(beta.isf(failure, count + 1, trials - count))


def rate_at_least(count: int, trials: int, failure: float) -> float:
    """Return the Clopper-Pearson lower bound on a rate; it is too high with probability at most ``failure``."""
    return 0.0 if count == 0 else float(beta.ppf(failure, count, trials - count + 1))
