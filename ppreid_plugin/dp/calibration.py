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
from collections.abc import Iterable
from typing import Protocol

from ppreid_plugin.dp.composition import compose
from ppreid_plugin.dp.numerics import log_delta, require_delta, smallest
from ppreid_plugin.number_checks import require_not_negative, require_positive, require_whole

# Distance to keep from log(delta): far above the rounding error of log_delta (1e-13), far below what sigma shows.
_MARGIN = 1e-11


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
    epsilon = require_not_negative("epsilon", epsilon)
    mu = require_positive("sensitivity", sensitivity) / require_positive("sigma", sigma)
    return math.exp(log_delta(mu, epsilon))


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
    return sensitivity * smallest(lambda sigma: log_delta(1.0 / sigma, epsilon) <= target)


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
    if log_delta(mu, 0.0) <= target:
        return 0.0
    return smallest(lambda epsilon: log_delta(mu, epsilon) <= target)


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
    return math.hypot(*(require_not_negative("mu", mu, hint="sensitivity / sigma of each release") for mu in mus))


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


def person_level_epsilon(mechanism: _Budget, rows: int, *, delta: float | None = None) -> float:
    r"""Return the epsilon of a *person* whose ``rows`` rows all went through ``mechanism``.

    Gaussian: the rows together have :math:`\sqrt{k}\,\mu`, converted once. Pure: basic composition,
    :math:`k\varepsilon`, which no bound at delta 0 improves; at a ``delta`` above 0 the optimal composition
    (:func:`.composition.compose`), never more than :math:`k\varepsilon`. ``none`` (epsilon infinite) stays infinite.

    Args:
        mechanism: an object with ``name, pure, epsilon, delta, sensitivity, sigma``.
        rows: number of rows of the person, >= 1.
        delta: failure probability of the *person*; None takes the mechanism's own (0 if it is pure).

    Raises:
        ValueError: ``rows`` is no whole number >= 1, ``delta`` is out of range, or the mechanism is neither pure nor
            Gaussian.

    Example:
        >>> from types import SimpleNamespace
        >>> pure = SimpleNamespace(name="pure", pure=True, epsilon=0.1, delta=0.0, sensitivity=2.0, sigma=None)
        >>> person_level_epsilon(pure, 100), round(person_level_epsilon(pure, 100, delta=1e-5), 2)
        (10.0, 4.31)
    """
    rows = require_whole("rows", rows, hint="the number of the person's rows")
    if math.isinf(mechanism.epsilon):
        return math.inf
    whole = mechanism.delta if delta is None else delta
    if mechanism.pure:
        return compose(epsilons=[mechanism.epsilon] * rows, delta=whole)
    if mechanism.sigma is not None:
        if rows == 1 and whole == mechanism.delta:
            return float(mechanism.epsilon)
        return gaussian_epsilon(mechanism.sigma, whole, math.sqrt(rows) * mechanism.sensitivity)
    if rows == 1 and whole >= mechanism.delta:
        return float(mechanism.epsilon)
    raise ValueError(
        f"mechanism is {mechanism.name!r}, which is neither pure nor Gaussian: no person-level epsilon at the same "
        "delta is known for it. Use the person unit (one row a person) instead."
    )


def _log_target(delta: float) -> float:
    return math.log(require_delta(delta)) - _MARGIN
