r"""What no attacker, and no honest match, can exceed at a budget: each bound for its own game only.

* *Row to person*: one released row; which of N known people is it of? Uniform prior, success averaged over people.
* *Query to row*: N people with one row each, every row through the mechanism for itself, person unit; which row is the
  query's? This is rank-1. Two rows change when the answer does, so the first bound does *not* hold for it.
* *Distinguishing* two known values of one row: AUC, and true positive rate at a false positive rate.

Image-level epsilon says nothing about people with several rows: for them use the person-level epsilon, or print none.
The Gaussian bounds take :math:`\mu = \Delta / \sigma`; they are the whole privacy curve, not one (epsilon, delta).

Sources: Kairouz, Oh and Viswanath, ICML 2015, arXiv 1311.0776 (the region of error rates); Dong, Roth and Su, arXiv
1905.02383 (Gaussian trade-off). The two matching games are derived here.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri

from ppreid_plugin.dp.numerics import log_delta
from ppreid_plugin.number_checks import is_number, require_not_negative, require_positive, require_whole


def bound_row_to_person(epsilon: float, n: int, *, delta: float = 0.0) -> float:
    r"""Return :math:`\frac{e^\varepsilon + (N-1)\delta}{e^\varepsilon + N - 1}`, the success of row to person.

    Let the attacker answer i on the event :math:`A_i`. Then :math:`P_i(A_i) \le e^\varepsilon P_j(A_i) + \delta` for
    each j; summed over all i and j other than i, with :math:`\sum_i P_j(A_i) = 1`, it is the bound.

    Args:
        epsilon: budget of the row, >= 0.
        n: number N of people, >= 1.
        delta: failure probability of the row, in [0, 1].

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> round(bound_row_to_person(8.0, 750), 3)
        0.799
    """
    epsilon, others = _checked_epsilon(epsilon), _checked_people(n) - 1
    if not (is_number(delta) and 0 <= delta <= 1):
        raise ValueError(f"delta is {delta!r}, must be in [0, 1].")
    rest = others * math.exp(-epsilon)
    return min(1.0, (1 + rest * delta) / (1 + rest))


def bound_row_to_person_gaussian(mu: float, n: int) -> float:
    """Return :func:`bound_row_to_person` for Gaussian noise: the least over the whole curve delta(epsilon).

    Args:
        mu: sensitivity over sigma, > 0.
        n: number N of people, >= 1.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> round(bound_row_to_person_gaussian(1.67, 750), 3)
        0.087
    """
    mu = require_positive("mu", mu)
    _checked_people(n)

    def at(epsilon: float) -> float:
        return bound_row_to_person(epsilon, n, delta=math.exp(log_delta(mu, epsilon)))

    grid = np.linspace(0.0, mu * mu / 2 + 8 * mu + math.log(n), 400).tolist()
    best = min(range(len(grid)), key=lambda index: at(grid[index]))
    around = (grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)])
    return min(at(grid[best]), at(float(minimize_scalar(at, bounds=around, method="bounded").x)))


def bound_query_to_row(epsilon: float, n: int) -> float:
    r"""Return the success of query to row, hence rank-1, for pure mechanisms.

    With :math:`p = e^\varepsilon / (1 + e^\varepsilon)` it is

    .. math:: \frac{e^\varepsilon}{N} (1 - p^N) + \frac{(1 - p) p^{N-1}}{N}.

    An epsilon-DP row tells at most what one bit of randomized response tells: 1 with probability p if it is the
    query's, else with 1 - p. The best answer is any row that says 1 (if none does, any): success
    :math:`p\,E[1 / (1 + B)] + (1 - p) p^{N-1} / N` with B binomial of N - 1 and 1 - p. Proof: each place holds the
    query's row or the row o_j that would stand there otherwise, and those two laws are one randomization of that bit
    (Kairouz, Oh and Viswanath), which the attacker may know. This covers other people drawn at random and any fixed
    o_j; for a fixed list of other people in random order we have no proof, and no counterexample in enumerated games.

    Args:
        epsilon: budget of a person, whose only row is in the gallery, >= 0.
        n: number N of rows, one a person, >= 1.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> [float(f"{bound_query_to_row(epsilon, 748):.3g}") for epsilon in (2.0, 4.0, 8.0)]
        [0.00988, 0.073, 0.884]
    """
    epsilon, n = _checked_epsilon(epsilon), _checked_people(n)
    small = math.exp(-epsilon)  # (1 - p) / p
    log_p = -math.log1p(small)
    some = -math.expm1(n * log_p) / (n * small) if small > 1e-300 else 1.0
    none = small * math.exp(n * log_p) / n
    return min(1.0, some + none)


def bound_auc_gaussian(mu: float) -> float:
    r"""Return :math:`\Phi(\mu / \sqrt 2)`, the AUC of the best distinguisher of two values of one row.

    Raises:
        ValueError: ``mu`` is no finite number > 0.

    Example:
        >>> round(bound_auc_gaussian(1.67), 3)
        0.881
    """
    return float(ndtr(require_positive("mu", mu) / math.sqrt(2)))


def bound_auc_pure(epsilon: float) -> float:
    r"""Return :math:`e^\varepsilon / (1 + e^\varepsilon)`, the area under the region that pure DP allows.

    Raises:
        ValueError: ``epsilon`` is no finite number >= 0.

    Example:
        >>> round(bound_auc_pure(2.0), 3)
        0.881
    """
    return 1 / (1 + math.exp(-_checked_epsilon(epsilon)))


def bound_tpr_gaussian(fpr: float, mu: float) -> float:
    r"""Return :math:`\Phi(\Phi^{-1}(\alpha) + \mu)`, the largest true positive rate at the false positive rate ``fpr``.

    Raises:
        ValueError: ``fpr`` outside [0, 1], or ``mu`` no finite number > 0.

    Example:
        >>> round(bound_tpr_gaussian(0.01, 1.67), 3)
        0.256
    """
    return float(ndtr(ndtri(_checked_rate(fpr)) + require_positive("mu", mu)))


def bound_tpr_pure(fpr: float, epsilon: float) -> float:
    r"""Return :math:`\min(e^\varepsilon \alpha, 1 - e^{-\varepsilon} (1 - \alpha))`.

    Raises:
        ValueError: ``fpr`` outside [0, 1], or ``epsilon`` no finite number >= 0.

    Example:
        >>> round(bound_tpr_pure(0.01, 2.0), 3)
        0.074
    """
    rate, shrink = _checked_rate(fpr), math.exp(-_checked_epsilon(epsilon))
    upper = 1 - shrink * (1 - rate)
    return min(rate / shrink, upper) if shrink > 0 and rate > 0 else (upper if rate > 0 else 0.0)


def _checked_epsilon(epsilon: object) -> float:
    return require_not_negative("epsilon", epsilon)


def _checked_people(n: object) -> int:
    return require_whole("n", n, hint="the number of people in the game")


def _checked_rate(fpr: object) -> float:
    if not (is_number(fpr) and 0 <= fpr <= 1):
        raise ValueError(f"fpr is {fpr!r}, must be in [0, 1]. Pass for example fpr=0.01.")
    return float(fpr)
