"""Numbers that several DP modules share: the Gaussian privacy curve in log space, root finding, the check of delta.

The formula of the curve and its source are in :mod:`.calibration`. Pure functions, no arrays of features.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import erfcx

from ppreid_plugin.number_checks import is_number

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_MILLS_0 = math.sqrt(math.pi / 2)  # the Mills ratio at 0


def require_delta(delta: object, *, who: str = "the Gaussian mechanism") -> float:
    """Return ``delta`` as a float if it lies in (0, 1); ValueError otherwise, in the name of ``who``."""
    if not (is_number(delta) and 0 < delta < 1):
        raise ValueError(
            f"delta is {delta!r}, {who} needs 0 < delta < 1. Pass for example delta=1e-5, "
            "or choose a pure mechanism, whose delta is 0."
        )
    return float(delta)


def log_delta(mu: float, epsilon: float) -> float:
    """Return log(delta) of the Gaussian mechanism with ``mu`` > 0 at ``epsilon`` >= 0."""
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


def log_deltas(mu: float, epsilons: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """:func:`log_delta` for epsilons of either sign: below 0 the curve is 1 - e^epsilon + e^epsilon delta(-epsilon)."""
    away = np.abs(epsilons)
    low, high = away / mu - mu / 2, away / mu + mu / 2
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if mu < 0.1:
            points = ((low + high) / 2)[:, None] + mu / 2 * _NODES
            gap = mu / 2 * ((1 - points * _MILLS_0 * erfcx(points / math.sqrt(2))) @ _WEIGHTS)
        else:
            gap = _MILLS_0 * (erfcx(low / math.sqrt(2)) - erfcx(high / math.sqrt(2)))
        logs = -0.5 * low * low - 0.5 * math.log(2 * math.pi) + np.log(np.maximum(gap, 0))
        curve = np.where(gap == np.inf, 0.0, np.minimum(logs, 0.0))
        mirrored = np.log(-np.expm1(-away) + np.exp(curve - away))
    return np.where(epsilons < 0, np.minimum(mirrored, 0.0), curve)


def smallest(holds: Callable[[float], bool]) -> float:
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


def _mills(t: float) -> float:
    return _MILLS_0 * float(erfcx(t / math.sqrt(2)))
