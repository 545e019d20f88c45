r"""Spherical caps: how probable they are, and which cap makes PrivUnit and PrivUnitG best at a budget.

Both mechanisms split the space by <v, x> >= gamma into a cap of probability q and the rest, and take the cap with
probability p. Their privacy loss is the log of :math:`\frac{p}{q} \big/ \frac{1-p}{1-q}`; it is epsilon for

.. math:: p = \frac{q e^\varepsilon}{1 + q (e^\varepsilon - 1)}, \qquad
          \frac{p}{q} - \frac{1-p}{1-q} = \frac{e^\varepsilon - 1}{1 + q (e^\varepsilon - 1)},

so that one number, gamma, is left to choose. All of it is computed in log space: caps of probability e^-10000 are fine.

Sources: Bhowmick et al., arXiv 1812.00984, section 4.1 (PrivUnit); Asi, Feldman and Talwar, ICML 2022,
arXiv 2205.02466 (PrivUnitG, and that choosing p and gamma numerically is optimal in its class).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from scipy.optimize import minimize_scalar
from scipy.special import betaln, expit, log_expit, log_ndtr

LEAST_EPSILON = 1e-100  # the error of one row grows as 1 / epsilon^2, which leaves float64 below 1e-153

_LOG_2 = math.log(2)
_LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class CapParameters:
    """The cap that a sphere mechanism uses at one budget and one number of columns.

    Attributes:
        threshold: gamma: the smallest <v, x> in the cap. PrivUnitG: in standard deviations of the noise.
        log_cap: log of q, the probability of the cap without a row in it.
        outside: 1 - p, the probability that a release lies outside its row's cap.
        mean: E<v, x> before the output is divided by it.
        effective_sigma: root of (E|output - x|^2 / d): what sigma is to Gaussian noise, for the score of a clean query.
    """

    threshold: float
    log_cap: float
    outside: float
    mean: float
    effective_sigma: float


def cap_log_probability(dimension: int, cosine: float) -> float:
    """Return log P(<v, x> >= cosine) for v uniform on the unit sphere in ``dimension`` >= 2 columns.

    Right to about 1e-11 of the probability itself, however small that is.

    Raises:
        ValueError: fewer than 2 columns, or a cosine outside [-1, 1].

    Example:
        >>> cap_log_probability(2, 0.0) == -math.log(2), round(cap_log_probability(512, 0.9), 3)
        (True, -428.25)
    """
    require_sphere(dimension)
    if not -1 <= cosine <= 1:
        raise ValueError(f"cosine is {cosine!r}, must be in [-1, 1].")
    sin2, cos2 = (1 - abs(cosine)) * (1 + abs(cosine)), cosine * cosine
    if sin2 == 0:
        return -math.inf if cosine > 0 else 0.0
    log_sin2 = math.log1p(-cos2) if cos2 < 0.5 else math.log(sin2)
    log_cap = _log_half_cap(dimension, log_sin2, sin2, cos2)
    return log_cap if cosine >= 0 else math.log1p(-math.exp(log_cap))


def require_sphere(dimension: int) -> None:
    """Refuse rows without a direction to choose."""
    if dimension < 2:
        raise ValueError(f"features have {dimension} columns, PrivUnit needs at least 2. Use privunit_g or gaussian.")


@lru_cache(maxsize=256)
def privunit_parameters(epsilon: float, dimension: int) -> CapParameters:
    r"""Return PrivUnit's best cap: the largest :math:`m = E\langle v, x\rangle`, hence the least error 1/m^2 - 1.

    Example:
        >>> round(privunit_parameters(8.0, 512).effective_sigma, 3)
        0.363
    """
    require_sphere(dimension)
    power = (dimension - 1) / 2
    log_density = -float(betaln(power, 0.5)) - math.log(dimension - 1)  # of <v, x> at 0, over d - 1

    def log_mean(odds: float) -> float:  # odds: log(sin^2 / cos^2) of the cap's angle, which keeps both ends' digits
        log_cap = _log_half_cap(dimension, _log_expit(odds), _expit(odds), _expit(-odds))
        return log_density + power * _log_expit(odds) + _log_gain(epsilon, log_cap)

    odds = _largest(log_mean, -2 * epsilon - 20, 20.0, 0.25)
    log_cap = _log_half_cap(dimension, _log_expit(odds), _expit(odds), _expit(-odds))
    mean = math.exp(log_mean(odds))
    error = math.expm1(-2 * math.log(mean)) if mean < 1 else 0.0
    return CapParameters(
        threshold=math.sqrt(_expit(-odds)),
        log_cap=log_cap,
        outside=_outside(epsilon, log_cap),
        mean=mean,
        effective_sigma=math.sqrt(error / dimension),
    )


@lru_cache(maxsize=256)
def privunit_g_parameters(epsilon: float, dimension: int) -> CapParameters:
    r"""Return PrivUnitG's best cap, the one with the least :math:`(d - 1 + E z^2) / (E z)^2` for z = <v, x>.

    Example:
        >>> [round(privunit_g_parameters(epsilon, 2048).effective_sigma, 3) for epsilon in (4.0, 8.0, 16.0, 32.0, 64.0)]
        [0.66, 0.365, 0.219, 0.141, 0.095]
    """

    def log_mean(threshold: float) -> float:
        log_density = -0.5 * threshold * threshold - _LOG_ROOT_2_PI
        return log_density + _log_gain(epsilon, float(log_ndtr(-threshold)))

    def score(threshold: float) -> float:  # E z^2 = 1 + gamma E z
        return 2 * log_mean(threshold) - math.log(dimension + threshold * math.exp(log_mean(threshold)))

    top = math.sqrt(2 * epsilon) + 2
    threshold = _largest(score, 0.0, top, top / 200)
    log_cap, mean = float(log_ndtr(-threshold)), math.exp(log_mean(threshold))
    error = (dimension + threshold * mean) / mean**2 - 1
    return CapParameters(threshold, log_cap, _outside(epsilon, log_cap), mean, math.sqrt(error / dimension))


def _expit(odds: float) -> float:
    return float(expit(odds))


def _log_expit(odds: float) -> float:
    return float(log_expit(odds))


def _log_gain(epsilon: float, log_cap: float) -> float:
    """Log of p/q - (1-p)/(1-q)."""
    log_excess = epsilon + math.log(-math.expm1(-epsilon))
    return log_excess + _log_expit(-(log_cap + log_excess))


def _outside(epsilon: float, log_cap: float) -> float:
    """1 - p = (1 - q) / (1 + q (e^epsilon - 1))."""
    return math.exp(_log_gain(epsilon, log_cap) - epsilon - math.log(-math.expm1(-epsilon))) * -math.expm1(log_cap)


def _log_half_cap(dimension: int, log_sin2: float, sin2: float, cos2: float) -> float:
    """Log of half the regularized incomplete beta function I_sin2((d - 1)/2, 1/2): caps of at most half the sphere."""
    power = (dimension - 1) / 2
    log_front = power * log_sin2 - float(betaln(power, 0.5))
    if cos2 == 0:
        return -_LOG_2
    log_front += 0.5 * (math.log(cos2) if cos2 < 0.5 else math.log1p(-sin2))
    if sin2 < (power + 1) / (power + 2.5):
        return log_front + math.log(_fraction(power, 0.5, sin2) / power) - _LOG_2
    return math.log1p(-math.exp(log_front) * _fraction(0.5, power, cos2) * 2) - _LOG_2


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function, DLMF 8.17.22, from the far end; x < (a + 1) / (a + b + 2)."""
    value = 1.0
    for m in range(60 + int(6 * math.sqrt(max(a, b))), 0, -1):
        value = 1 + m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)) / value
        value = 1 - (a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1)) / value
    return 1 / value


def _largest(score: Callable[[float], float], low: float, high: float, step: float) -> float:
    """Where ``score``, which has one maximum wider than ``step``, is largest: a grid, then a bounded search."""
    points = [low + step * i for i in range(int((high - low) / step) + 1)]
    best = max(points, key=score)
    bounds = (max(low, best - step), min(high, best + step))
    return float(minimize_scalar(lambda at: -score(at), bounds=bounds, method="bounded", options={"xatol": 1e-9}).x)
