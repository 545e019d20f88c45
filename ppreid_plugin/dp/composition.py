r"""What several releases of the same unit are worth together: exact, or rounded to the private side.

An :math:`\varepsilon`-DP release is, at worst, randomized response on one bit: its privacy loss is
:math:`+\varepsilon` with probability :math:`e^\varepsilon / (1 + e^\varepsilon)`, else :math:`-\varepsilon`. The losses
of releases add up, so a group of k equal releases has k + 1 atoms :math:`L_l = (k - 2l)\varepsilon` with binomial
probabilities :math:`P_l`, and together with Gaussian releases of total :math:`\mu`

.. math:: \delta(\varepsilon') = \sum_l P_l \, \delta_\mu(\varepsilon' - L_l), \qquad
          \delta_0(e) = \max(0, 1 - e^e)\ \text{without Gaussian releases},

which is no approximation: no grid, no Fourier transform. Only if unequal budgets give too many atoms are their losses
rounded *up* to a grid, which can only raise delta. The bounds hold for adaptively chosen releases too.

Sources: Kairouz, Oh and Viswanath, ICML 2015, arXiv 1311.0776, Theorems 3.3 and 3.5 (optimal composition);
Zhu, Dong and Wang, AISTATS 2022, arXiv 2106.08567 (dominating pairs compose).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from ppreid_plugin.dp.numerics import log_delta, log_deltas, require_delta, smallest
from ppreid_plugin.number_checks import is_number, require_not_negative

Floats = npt.NDArray[np.float64]

_MAX_ATOMS = 2**16


def compose(
    *,
    mus: Iterable[float] = (),
    epsilons: Iterable[float] = (),
    pairs: Iterable[tuple[float, float]] = (),
    delta: float = 0.0,
) -> float:
    r"""Return the smallest epsilon at ``delta`` that all releases of one unit guarantee together; it may be 0.

    Never larger than basic composition: the sum of the pure epsilons plus the Gaussian part at ``delta``.

    Args:
        mus: sensitivity over sigma of each Gaussian release, >= 0; they count together as :math:`\sqrt{\sum \mu_i^2}`.
        epsilons: epsilon of each pure release, >= 0.
        pairs: (epsilon, delta) of each release of which only that is known; at worst it fails with its delta and is
            pure otherwise.
        delta: failure probability of the whole, in (0, 1); 0 only if every release is pure.

    Raises:
        ValueError: a number out of range; ``delta`` not above what the pairs' own deltas come to.

    Example:
        >>> compose(epsilons=[0.1] * 100)
        10.0
        >>> round(compose(epsilons=[0.1] * 100, delta=1e-5), 2)
        4.31
    """
    pure = [_checked("epsilon", epsilon) for epsilon in epsilons]
    mu = math.hypot(*(_checked("mu", mu) for mu in mus))
    survives = 0.0  # log of the probability that no pair fails
    for epsilon, failure in pairs:
        pure.append(_checked("epsilon", epsilon))
        survives += math.log1p(-(require_delta(failure, who="an approximate release") if failure else 0.0))
    if is_number(delta) and delta == 0 and mu == 0 and survives == 0:
        return _sum_up(pure)
    target = (require_delta(delta, who="a release that is not pure") + math.expm1(survives)) / math.exp(survives)
    if target <= 0:
        raise ValueError(
            f"delta is {delta!r}, but the releases' own deltas come to {-math.expm1(survives):.3g}. "
            "Ask for a larger delta."
        )
    losses, log_probabilities, margin = _atoms(pure)
    target *= 1 - margin

    def holds(epsilon: float) -> bool:
        return _delta(epsilon, losses, log_probabilities, mu) <= target

    composed = 0.0 if holds(0.0) else smallest(holds)
    return min(composed, _sum_up(pure)) if mu == 0 else composed


def composed_delta(epsilon: float, *, mus: Iterable[float] = (), epsilons: Iterable[float] = ()) -> float:
    """Return the smallest delta of the releases together at ``epsilon`` >= 0: the curve that :func:`compose` inverts.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> composed_delta(1.0, epsilons=[1.0])
        0.0
    """
    losses, log_probabilities, _ = _atoms([_checked("epsilon", one) for one in epsilons])
    mu = math.hypot(*(_checked("mu", one) for one in mus))
    return _delta(_checked("epsilon", epsilon), losses, log_probabilities, mu)


def _delta(epsilon: float, losses: Floats, log_probabilities: Floats, mu: float) -> float:
    gaps = epsilon - losses
    if mu == 0:
        above = gaps < 0
        parts = np.log(-np.expm1(gaps[above])) + log_probabilities[above]
    elif len(gaps) == 1 and gaps[0] >= 0:
        return math.exp(log_delta(mu, float(gaps[0])))
    else:
        parts = log_deltas(mu, gaps) + log_probabilities
    return min(1.0, math.fsum(np.exp(parts).tolist()))


def _atoms(epsilons: list[float]) -> tuple[Floats, Floats, float]:
    """Return losses and log probabilities of the pure releases together, and the relative error to allow for."""
    losses, log_probabilities = np.zeros(1), np.zeros(1)
    groups = sorted(Counter(epsilon for epsilon in epsilons if epsilon > 0).items(), key=lambda item: -item[1])
    for epsilon, count in groups:
        tail = np.arange(count + 1.0)
        chosen = gammaln(count + 1) - gammaln(tail + 1) - gammaln(count - tail + 1)
        weights = chosen - tail * epsilon - count * math.log1p(math.exp(-epsilon))
        losses = np.add.outer(losses, (count - 2 * tail) * epsilon).ravel()
        log_probabilities = np.add.outer(log_probabilities, weights).ravel()
        if len(losses) > _MAX_ATOMS and len(groups) > 1:
            losses, log_probabilities = _rounded_up(losses, log_probabilities)
    return losses, log_probabilities, 1e-10 + 1e-14 * len(epsilons)


def _rounded_up(losses: Floats, log_probabilities: Floats) -> tuple[Floats, Floats]:
    """Merge atoms into at most 2^16 places, each loss moved up: delta can only grow."""
    low, high = losses.min(), losses.max()
    step = (high - low) / (_MAX_ATOMS - 2)
    place = np.ceil((losses - low) / step * (1 + 1e-12)).astype(np.int64)
    mass = np.bincount(place, weights=np.exp(log_probabilities))
    kept = np.flatnonzero(mass)
    return low + kept * (step * (1 + 1e-15)), np.log(mass[kept])


def _sum_up(epsilons: list[float]) -> float:
    return float(math.fsum(epsilons))


def _checked(name: str, value: object) -> float:
    return require_not_negative(name, value, hint="leave a release of infinite budget out")
