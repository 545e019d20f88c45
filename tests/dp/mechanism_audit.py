"""A test's audit of a mechanism: a lower bound on the mu, hence the epsilon, that its outputs show.

Three distinguishers for the rows u and -u, each with one fixed threshold; the best one counts:

* the row as it is released (sees too little noise, and a missing bound);
* the row minus a row of zeros released in the same call (sees noise shared by rows);
* the row minus a row of zeros at the same place in another call (sees noise that a fixed seed repeats).

Every trial has a row of zeros of its own: trials that share one would not be independent, and the bound not valid.

Both error rates are bounded above (Clopper-Pearson, the failure probability split over all of them), mu is bounded
from them and converted to epsilon once (Nasr et al., arXiv 2302.07956).
"""

import numpy as np
from scipy.stats import beta, norm

from ppreid_plugin.dp import gaussian_epsilon

FALSE_ALARM = 1e-3


def epsilon_lower(mechanism, *, trials=100_000, length=5.0):
    """Lower confidence bound on epsilon at the mechanism's delta; wrong with probability at most 1e-3.

    Args:
        mechanism: to be audited; every call draws fresh noise.
        trials: released rows a side.
        length: norm of u and -u. Longer than the bound, so that a mechanism that does not bound shows it.
    """
    above = np.zeros((2 * trials, 2), dtype=np.float32)
    above[::2, 0] = length  # every second row is the attacker's own: zeros
    other_call = mechanism.privatize(np.zeros_like(above))[:, 0]
    released, mirrored = mechanism.privatize(above)[:, 0], mechanism.privatize(-above)[:, 0]
    scores = [
        (released[::2], mirrored[::2]),
        (released[::2] - released[1::2], mirrored[::2] - mirrored[1::2]),
        (released[::2] - other_call[::2], mirrored[::2] - other_call[::2]),
    ]
    level = 1 - FALSE_ALARM / (2 * len(scores))
    mu = max(
        -sum(norm.ppf(upper_bound(errors, trials, level)) for errors in ((high <= 0).sum(), (low > 0).sum()))
        for high, low in scores
    )
    return gaussian_epsilon(1 / mu, mechanism.delta, 1.0) if mu > 0 else 0.0


def upper_bound(errors, trials, level):
    """Clopper-Pearson upper bound on an error rate."""
    return 1.0 if errors == trials else beta.ppf(level, errors + 1, trials - errors)
