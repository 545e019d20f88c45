r"""How much Gaussian noise a budget needs, and what a given noise is worth: pure functions of numbers.

With :math:`\mu = \Delta / \sigma` the smallest :math:`\delta` of the Gaussian mechanism at :math:`\varepsilon` is

.. math:: \delta = \Phi(\mu/2 - \varepsilon/\mu) - e^\varepsilon \Phi(-\mu/2 - \varepsilon/\mu)
                 = \varphi(x)\,[M(x) - M(x + \mu)], \qquad x = \varepsilon/\mu - \mu/2,

with M(t) = (1 - Φ(t)) / φ(t), the Mills ratio. The right side is computed, in log space: nothing in it overflows, and
small deltas keep their digits. All results err on the private side: sigma and epsilon are never too small.

Sources: Balle and Wang, ICML 2018, arXiv 1805.06530, Theorem 8 (calibration); Dong, Roth and Su, "Gaussian
Differential Privacy", arXiv 1905.02383, Corollary 3.3 (composition).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from scipy.special import erfcx

# Distance to keep from log(delta): far above the rounding error of _log_delta (1e-13), far below what sigma shows.
_MARGIN = 1e-11
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


def gaussian_delta(sigma: float, epsilon: float, sensitivity: float) -> float:
    """Return the smallest delta at which noise of standard deviation ``sigma`` is (epsilon, delta)-DP.

    Args:
        sigma: standard deviation of the noise, feature units, > 0.
        epsilon: >= 0.
        sensitivity: largest L2 change by one unit, feature units, > 0.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> f"{gaussian_delta(0.688, 16.0, 2.0):.1e}"
        '1.0e-05'
    """
    if not (_is_number(epsilon) and 0 <= epsilon < math.inf):
        raise ValueError(f"epsilon is {epsilon!r}, must be a finite number >= 0. Pass for example epsilon=8.0.")
    mu = require_positive("sensitivity", sensitivity) / require_positive("sigma", sigma)
    return math.exp(_log_delta(mu, float(epsilon)))


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the smallest sigma (feature units) whose Gaussian noise is (epsilon, delta)-DP.

    Args:
        epsilon: > 0.
        delta: in (0, 1).
        sensitivity: largest L2 change by one unit, feature units, > 0. Sigma is proportional to it.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> round(gaussian_sigma(16.0, 1e-5, sensitivity=2.0), 3)
        0.688
    """
    epsilon, target = require_positive("epsilon", epsilon), _log_target(delta)
    sensitivity = require_positive("sensitivity", sensitivity)
    return sensitivity * _smallest(lambda sigma: _log_delta(1.0 / sigma, epsilon) <= target)


def gaussian_epsilon(sigma: float, delta: float, sensitivity: float) -> float:
    """Return the smallest epsilon at which noise of standard deviation ``sigma`` is (epsilon, delta)-DP; it may be 0.

    Args:
        sigma: standard deviation of the noise, feature units, > 0.
        delta: in (0, 1).
        sensitivity: largest L2 change by one unit, feature units, > 0.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> round(gaussian_epsilon(0.688, 1e-5, sensitivity=2.0), 1)
        16.0
    """
    mu = require_positive("sensitivity", sensitivity) / require_positive("sigma", sigma)
    target = _log_target(delta)
    if _log_delta(mu, 0.0) <= target:
        return 0.0
    return _smallest(lambda epsilon: _log_delta(mu, epsilon) <= target)


def compose_gaussian(mus: Iterable[float]) -> float:
    r"""Return :math:`\mu = \sqrt{\sum \mu_i^2}`, the mu of Gaussian releases of the same unit taken together.

    Args:
        mus: sensitivity over sigma of each release, >= 0.

    Raises:
        ValueError: a mu that is negative, NaN or infinite.

    Example:
        >>> compose_gaussian([3.0, 4.0])
        5.0
    """
    values = list(mus)
    for mu in values:
        if not (_is_number(mu) and 0 <= mu < math.inf):
            raise ValueError(f"mu is {mu!r}, must be a finite number >= 0. Pass sensitivity / sigma of each release.")
    return math.hypot(*values)


class _Budget(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def pure(self) -> bool: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def delta(self) -> float: ...
    @property
    def sensitivity(self) -> float: ...
    @property
    def sigma(self) -> float | None: ...


def person_level_epsilon(mechanism: _Budget, rows: int) -> float:
    r"""Return the epsilon of a *person* whose ``rows`` rows all went through ``mechanism``, at the same delta.

    Gaussian: the rows together have :math:`\sqrt{k}\,\mu`, converted once. Pure: basic composition,
    :math:`k\varepsilon`, which no bound at delta 0 improves. ``none`` (epsilon infinite) stays infinite.

    Args:
        mechanism: an object with ``name, pure, epsilon, delta, sensitivity, sigma``.
        rows: number of rows of the person, >= 1.

    Raises:
        ValueError: ``rows`` is no whole number >= 1, or the mechanism is neither pure nor Gaussian.
    """
    if isinstance(rows, bool) or not isinstance(rows, (int, np.integer)) or rows < 1:
        raise ValueError(f"rows is {rows!r}, must be a whole number >= 1. Pass the number of the person's rows.")
    if math.isinf(mechanism.epsilon) or mechanism.pure or rows == 1:
        return float(rows * mechanism.epsilon)
    if mechanism.sigma is None:
        raise ValueError(
            f"mechanism is {mechanism.name!r}, which is neither pure nor Gaussian: no person-level epsilon at the same "
            "delta is known for it. Use the person unit (one row a person) instead."
        )
    return gaussian_epsilon(mechanism.sigma, mechanism.delta, math.sqrt(rows) * mechanism.sensitivity)


def require_positive(name: str, value: object) -> float:
    """Return ``value`` as a float if it is a finite number > 0; ValueError otherwise (a bool too)."""
    if not (_is_number(value) and 0 < value < math.inf):  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}, must be a finite number > 0. Pass for example {name}=8.0.")
    return float(value)  # type: ignore[arg-type]


def require_delta(delta: object, *, who: str = "the Gaussian mechanism") -> float:
    """Return ``delta`` as a float if it lies in (0, 1); ValueError otherwise, in the name of ``who``."""
    if not (_is_number(delta) and 0 < delta < 1):  # type: ignore[operator]
        raise ValueError(
            f"delta is {delta!r}, {who} needs 0 < delta < 1. Pass for example delta=1e-5, "
            "or choose a pure mechanism, whose delta is 0."
        )
    return float(delta)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _log_target(delta: float) -> float:
    return math.log(require_delta(delta)) - _MARGIN


def _mills(t: float) -> float:
    return math.sqrt(math.pi / 2) * float(erfcx(t / math.sqrt(2)))


def _log_delta(mu: float, epsilon: float) -> float:
    low, high = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    if mu < 0.1:  # the difference of two near-equal values: integrate -M'(t) = 1 - t M(t) over [low, high] instead
        slopes = [1 - t * _mills(t) for t in ((low + high) / 2 + mu / 2 * _NODES).tolist()]
        gap = mu / 2 * float(np.dot(_WEIGHTS, slopes))
    else:
        gap = _mills(low) - _mills(high)
    if gap == math.inf:  # M overflows below t = -37, where delta is 1 to the last digit
        return 0.0
    log_density = -0.5 * low * low - 0.5 * math.log(2 * math.pi)
    return min(0.0, log_density + math.log(gap)) if gap > 0 else -math.inf


def _smallest(holds: Callable[[float], bool]) -> float:
    """Return the smallest float for which ``holds``, a test that fails below some point and holds from there on."""
    high = 1.0
    while not holds(high):
        high *= 2
    low = high / 2
    while low > 0 and holds(low):
        high, low = low, low / 2
    while low < (middle := low + (high - low) / 2) < high:
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
