r"""What DP-SGD costs: Poisson sampling at rate q, T steps, noise of ``noise_multiplier`` times the clip norm a step.

Opacus prices it under *add/remove* adjacency: two training sets differ by one unit that is there or not. The rest of
this package speaks of *replace* adjacency, one unit exchanged for another, which is one removal and one addition. So
:math:`(\varepsilon, \delta)` here is :math:`(2\varepsilon, (1 + e^\varepsilon)\,\delta)` there (group privacy), and
:meth:`HeadBudget.replace_epsilon` states it at the same delta.

The number of units behind the sampling rate is treated as public, as in Opacus.

Sources: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (DP-SGD); Gopi, Lee and Wutschitz, arXiv
2106.02848 (``prv``); Mironov, Talwar and Zhang, arXiv 1908.10530 (``rdp``, proved for removal and addition alike).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ppreid_plugin.dp.calibration import gaussian_epsilon, gaussian_sigma
from ppreid_plugin.dp.numerics import require_delta, smallest
from ppreid_plugin.number_checks import is_number, require_positive

ACCOUNTANTS = ("prv", "rdp")
_ORDERS = [1.25, 1.5, 1.75, *range(2, 64)]  # any will do for a bound; whole ones are fast
_LARGEST_LOG = 690.0  # exp of its negative is still an ordinary float


@dataclass(frozen=True)
class HeadBudget:
    """The noise of a DP-SGD run and what it guarantees; made by :func:`plan_budget`, before anything is trained.

    Attributes:
        delta: failure probability of a unit, in (0, 1).
        sample_rate: probability of each unit to be in a step, in (0, 1].
        steps: number of steps.
        accountant: ``prv`` or ``rdp``; at rate 1, where nothing is sampled, the Gaussian curve is used, which is exact.
        noise_multiplier: standard deviation of the noise over the clip norm; 0: no noise, nothing is guaranteed.
    """

    delta: float
    sample_rate: float
    steps: int
    accountant: str
    noise_multiplier: float

    def epsilon(self) -> float:
        """Return epsilon at this delta, add/remove adjacency; infinity without noise."""
        if self.noise_multiplier == 0:
            return math.inf
        if self.sample_rate == 1:
            return gaussian_epsilon(self.noise_multiplier, self.delta, math.sqrt(self.steps))
        from opacus.accountants import create_accountant

        priced = create_accountant(mechanism=self.accountant)
        priced.history = [(self.noise_multiplier, self.sample_rate, self.steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on alphas at the end of their range
            return float(priced.get_epsilon(delta=self.delta))

    def replace_epsilon(self) -> float:
        r"""Return an epsilon at this delta for the *exchange* of one unit for another; infinity without noise.

        At rate 1 the sum of clipped gradients changes by at most twice the clip norm, and the Gaussian curve is exact.
        Otherwise it is :math:`2\varepsilon'` for the smallest :math:`\varepsilon'` on the ``rdp`` curve with
        :math:`(1 + e^{\varepsilon'})\,\delta' \le \delta` (``prv`` loses its digits at such small deltas).
        """
        if self.noise_multiplier == 0:
            return math.inf
        if self.sample_rate == 1:
            return gaussian_epsilon(self.noise_multiplier, self.delta, 2 * math.sqrt(self.steps))
        from opacus.accountants.analysis import rdp as analysis

        curve = analysis.compute_rdp(
            q=self.sample_rate, noise_multiplier=self.noise_multiplier, steps=self.steps, orders=_ORDERS
        )

        def epsilon_at(log: float) -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return float(analysis.get_privacy_spent(orders=_ORDERS, rdp=curve, delta=math.exp(-log))[0])

        def holds(log: float) -> bool:  # epsilon_at is concave in the log, so this fails below one point only
            return log >= _LARGEST_LOG or math.log1p(math.exp(min(epsilon_at(log), _LARGEST_LOG))) - log <= target

        target = math.log(self.delta) - 1e-12
        log = smallest(holds)
        return 2 * epsilon_at(log) if log < _LARGEST_LOG else math.inf

    def describe(self) -> dict[str, Any]:
        """Return noise and guarantee under both adjacencies, ready for JSON; an epsilon is None where there is none."""
        epsilon, at_delta = self.epsilon(), self.replace_epsilon()
        return {
            "epsilon": _finite(epsilon),
            "delta": self.delta,
            "adjacency": "add/remove",
            "replace": {
                "epsilon": _finite(2 * epsilon),
                "delta": min(1.0, (1 + math.exp(min(epsilon, _LARGEST_LOG))) * self.delta),
                "epsilon_at_delta": _finite(at_delta),
            },
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.sample_rate,
            "steps": self.steps,
            "accountant": "gaussian" if self.sample_rate == 1 else self.accountant,
        }


def plan_budget(epsilon: float, delta: float, *, sample_rate: float, steps: int, accountant: str = "prv") -> HeadBudget:
    """Return the budget of the least noise, to 0.01 in epsilon, that keeps ``epsilon`` over all steps.

    Args:
        epsilon: > 0, add/remove adjacency; infinity asks for no noise.
        delta: in (0, 1).
        sample_rate: in (0, 1].
        steps: >= 1.
        accountant: ``prv`` is tight and an upper bound of what it prices, the *removal* of a unit; that addition costs
            no more is not proved, but agrees with an accountant that prices both on every case of the tests. ``rdp``
            is proved for both, and charged 8 to 25 percent more in the tests.

    Raises:
        ValueError: a value out of range, or a budget that the accountant cannot price.

    Example:
        >>> budget = plan_budget(8.0, 1e-5, sample_rate=0.2, steps=100)
        >>> round(budget.noise_multiplier, 1), budget.epsilon() <= 8.0
        (1.4, True)
    """
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant is {accountant!r}; allowed: {', '.join(ACCOUNTANTS)}.")
    delta = require_delta(delta, who="DP-SGD")
    if not (is_number(sample_rate) and 0 < sample_rate <= 1):
        raise ValueError(f"sample_rate is {sample_rate!r}, must be in (0, 1]. It is batch over the number of units.")
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise ValueError(f"steps is {steps!r}, must be a whole number >= 1. Train for more epochs.")
    if epsilon == math.inf:
        return HeadBudget(delta, float(sample_rate), int(steps), accountant, 0.0)
    noise = _noise_multiplier(require_positive("epsilon", epsilon), delta, float(sample_rate), int(steps), accountant)
    budget = HeadBudget(delta, float(sample_rate), int(steps), accountant, noise)
    if not (spent := budget.epsilon()) <= epsilon:
        raise ValueError(f"epsilon is {epsilon!r}, the {accountant} accountant comes to {spent!r}. Ask for another.")
    return budget


@lru_cache(maxsize=64)  # seconds for a large rate: not again for the next seed
def _noise_multiplier(epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str) -> float:
    if sample_rate == 1:
        return gaussian_sigma(epsilon, delta, math.sqrt(steps)) * (1 + 1e-12)  # the way back rounds, too
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            noise = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant=accountant,
                epsilon_tolerance=min(0.01, epsilon / 100),
            )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"epsilon is {epsilon!r} at delta {delta:g}: Opacus's {accountant} accountant cannot price it ({error}). "
            "Ask for another epsilon or another number of steps."
        ) from None
    return float(noise)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
