"""A test's audit of a mechanism: what its outputs show about its epsilon, and what its neighbors' outputs show.

Gaussian: three distinguishers for the rows u and -u, each with one threshold, 0, fixed beforehand; the best counts:

* the row as it is released (sees too little noise, and a missing bound);
* the row minus a row of zeros released in the same call (sees noise shared by rows);
* the row minus a row of zeros at the same place in another call (sees noise that a fixed seed repeats).

Every trial has a row of zeros of its own: trials that share one would not be independent, and the bound not valid.
Both error rates are bounded above (Clopper-Pearson, the failure probability split over all of them), mu is bounded
from them and converted to epsilon once (Nasr et al., arXiv 2302.07956).

Pure: one event fixed beforehand, likely for u and unlikely for -u; epsilon is at least the log of the ratio of its
probabilities, each bounded by Clopper-Pearson. And without any sampling: the worst ratio of exact probabilities.

Any: with the noise held fixed, no row's output may change when another row does (`rows_that_change`).
"""

import mpmath
import numpy as np
from scipy.stats import beta, norm

from ppreid_plugin.dp import gaussian_epsilon


def gaussian_audit(mechanism, *, trials=100_000, length=5.0):
    """Return a function of the failure probability: the lower confidence bound on epsilon at the mechanism's delta.

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
    errors = [((high <= 0).sum(), (low > 0).sum()) for high, low in scores]

    def epsilon_lower(failure):
        level = failure / (2 * len(errors))
        mu = max(-sum(norm.ppf(at_most(count, trials, level)) for count in pair) for pair in errors)
        return gaussian_epsilon(1 / mu, mechanism.delta, 1.0) if mu > 0 else 0.0

    return epsilon_lower


def pure_audit(event, likely, unlikely, *, trials=100_000):
    """Return a function of the failure probability: the lower confidence bound on epsilon that one event shows.

    Args:
        event: function of released rows or symbols, true where it happened.
        likely, unlikely: functions of a number of trials that release one row, u or -u, that often.
        trials: draws a side.
    """
    often, seldom = int(event(likely(trials)).sum()), int(event(unlikely(trials)).sum())

    def epsilon_lower(failure):
        low = beta.ppf(failure / 2, often, trials - often + 1) if often else 0.0
        return np.log(low) - np.log(at_most(seldom, trials, failure / 2)) if low else 0.0

    return epsilon_lower


def cap_audit(mechanism, *, dimension=4, trials=100_000):
    """`pure_audit` of PrivUnit and PrivUnitG by the event that the release lies in the cap around u."""
    cap, row = mechanism.parameters(dimension), np.eye(dimension)[:1]
    return pure_audit(
        lambda released: released[:, 0] >= cap.threshold / cap.mean,
        lambda count: mechanism.privatize(np.repeat(row, count, axis=0)),
        lambda count: mechanism.privatize(np.repeat(-row, count, axis=0)),
        trials=trials,
    )


def symbol_audit(mechanism, *, trials=100_000):
    """`pure_audit` of a finite mechanism over unit vectors and their opposites, by the symbols in the set of u only."""
    row = np.eye(mechanism.codebook.shape[1])[:1]
    yes, no = mechanism.symbol_probabilities(np.concatenate([row, -row]))
    return pure_audit(
        lambda symbols: (yes > no)[symbols],
        lambda count: mechanism.symbols(np.repeat(row, count, axis=0)),
        lambda count: mechanism.symbols(np.repeat(-row, count, axis=0)),
        trials=trials,
    )


def exact_cap_epsilon(mechanism, dimension):
    """Log of p/q over (1-p)/(1-q), with q from the threshold alone, in many digits."""
    cap = mechanism.parameters(dimension)
    with mpmath.workdps(40):
        threshold, outside = mpmath.mpf(cap.threshold), mpmath.mpf(cap.outside)
        if mechanism.name == "privunit_g":
            q = mpmath.erfc(threshold / mpmath.sqrt(2)) / 2
        else:
            half = mpmath.mpf(1) / 2
            q = mpmath.betainc((dimension - 1) * half, half, 0, 1 - threshold**2, regularized=True) / 2
        return float(mpmath.log((1 - outside) / q) - mpmath.log(outside / (1 - q)))


def exact_symbol_epsilon(mechanism, rows):
    """Largest log ratio of the probabilities of one symbol for two of the rows."""
    logs = np.log(mechanism.symbol_probabilities(rows))
    return float((logs.max(axis=0) - logs.min(axis=0)).max())


def rows_that_change(protect, gallery, *, canary=0):
    """Return the rows other than the canary whose output changes when the canary does, the noise held fixed.

    Args:
        protect: function of a gallery and a generator.
        gallery: (n, d).
    """
    swapped = gallery.copy()
    swapped[canary] = -7 * swapped[canary][::-1]
    first, second = (protect(rows, np.random.default_rng(0)) for rows in (gallery, swapped))
    return [row for row in range(len(gallery)) if row != canary and not np.array_equal(first[row], second[row])]


def at_most(count, trials, failure):
    """Clopper-Pearson upper bound on a rate, too low with probability ``failure``."""
    return 1.0 if count == trials else beta.ppf(1 - failure, count + 1, trials - count)
