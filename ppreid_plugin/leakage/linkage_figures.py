r"""Scores that ought to tell two kinds of pairs apart: AUC, EER, D_sys and TPR, with errors over people.

Linkage: same-person against different-person pairs. Membership: members against the others. A figure's error comes
from a bootstrap that draws *people*: every pair and row of one person goes in together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BOOTSTRAPS = 200
ROC_FPRS = (0.0, *(round(float(rate), 6) for rate in np.geomspace(1e-3, 1.0, 31)))  # where ROC curves are kept
_MAX_BINS = 100


def auc(scores: Floats, positive: Flags, weights: Floats | None = None) -> float:
    """Return the probability that a positive scores above a negative, ties counted half.

    Args:
        scores: (n,).
        positive: (n,), which ones ought to score high; both kinds occur.
        weights: (n,), how often each counts; None: once.

    Example:
        >>> auc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False]))
        0.875
    """
    levels, level = np.unique(scores, return_inverse=True)
    return _auc(level, len(levels), positive, np.ones(len(scores)) if weights is None else weights)


def auc_error(scores: Floats, positive: Flags, first: Ints, second: Ints | None = None, *, seed: int = 0) -> float:
    """Return the standard error of :func:`auc` over people, by a bootstrap of people.

    A person drawn w times counts w times, a pair of two people a and b :math:`w_a w_b` times.

    Args:
        scores: as in :func:`auc`.
        positive: likewise.
        first: person of each score or, of a pair, of its first row.
        second: person of each pair's second row.
        seed: of the bootstrap.
    """
    second = first if second is None else second
    people, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    one, two = place[: len(first)], place[len(first) :]
    levels, level = np.unique(scores, return_inverse=True)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(BOOTSTRAPS):
        counts = np.bincount(rng.integers(0, len(people), len(people)), minlength=len(people)).astype(np.float64)
        weights = np.where(one == two, counts[one], counts[one] * counts[two])
        if weights[positive].any() and weights[~positive].any():
            drawn.append(_auc(level, len(levels), positive, weights))
    return float(np.std(drawn, ddof=1)) if len(drawn) > 1 else 0.0


def eer(scores: Floats, positive: Flags) -> float:
    """Return the equal error rate: where as many positives fall below the threshold as negatives above, in fractions.

    Between two thresholds both rates are taken as linear.

    Example:
        >>> eer(np.array([0.9, 0.2, 0.4, 0.1]), np.array([True, True, False, False]))
        0.5
    """
    missed, passed = _rates(scores, positive)
    gap = missed - passed  # from -1 (everything passes) to 1 (nothing does), never falling
    after = int(np.argmax(gap >= 0))
    if after == 0 or gap[after] == 0:
        return float(missed[after])
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(missed[after - 1] + share * (missed[after] - missed[after - 1]))


def d_sys(scores: Floats, positive: Flags) -> float:
    r"""Return the linkability D_sys, 0 (unlinkable) to 1, at equal priors of both kinds of pairs.

    .. math:: D_{sys} = \int p(s \mid \text{mated})\, D(s)\, ds, \qquad D(s) = \max(0, 2\tfrac{LR(s)}{1 + LR(s)} - 1)

    The densities are taken from bins that hold equally many of the balanced scores (our choice), as many as the cube
    root of the smaller kind's count, at most 100. For unlinkable scores it is a little above 0: about
    :math:`0.2 \sqrt{b (1/n + 1/n')}` for b bins.

    Source:
        Gomez-Barrero, Galbally, Rathgeb and Busch, IEEE TIFS 2018.

    Example:
        >>> round(d_sys(np.arange(2000.0), np.arange(2000) >= 1000), 2)
        1.0
    """
    mated, others = np.sort(scores[positive]), np.sort(scores[~positive])
    size = min(len(mated), len(others))
    bins = max(2, min(_MAX_BINS, round(np.cbrt(size))))
    spread = (np.arange(size) + 0.5) / size  # as many of each kind, so that the edges split both alike
    balanced = np.sort(np.concatenate([side[(spread * len(side)).astype(np.int64)] for side in (mated, others)]))
    edges = np.unique(balanced[np.arange(1, bins) * 2 * size // bins])
    shares = [
        np.bincount(np.searchsorted(edges, side), minlength=len(edges) + 1) / len(side) for side in (mated, others)
    ]
    total = shares[0] + shares[1]
    linked = np.maximum(0.0, (shares[0] - shares[1]) / np.where(total > 0, total, 1.0))
    return float((shares[0] * linked).sum())


def tpr_at(scores: Floats, positive: Flags, fpr: float) -> float:
    """Return the largest share of positives above a threshold that at most ``fpr`` of the negatives are above.

    Example:
        >>> tpr_at(np.array([0.9, 0.2, 0.4, 0.1]), np.array([True, True, False, False]), 0.01)
        0.5
    """
    missed, passed = _rates(scores, positive)
    return float(1 - missed[np.argmax(passed <= fpr)])


def roc(scores: Floats, positive: Flags) -> tuple[float, ...]:
    """Return the ROC curve: :func:`tpr_at` at each of :data:`ROC_FPRS`.

    Example:
        >>> roc(np.array([0.9, 0.2, 0.4, 0.1]), np.array([True, True, False, False]))[-1]
        1.0
    """
    missed, passed = _rates(scores, positive)
    # passed never rises with the threshold, so its negative is sorted: the first threshold that passes few enough
    first = np.searchsorted(-passed, -np.asarray(ROC_FPRS), side="left")
    return tuple((1 - missed[first]).tolist())


def _auc(level: Ints, levels: int, positive: Flags, weights: Floats) -> float:
    above = np.bincount(level[positive], weights[positive], levels)
    below = np.bincount(level[~positive], weights[~positive], levels)
    lower = np.cumsum(below) - below / 2
    return float((above * lower).sum() / (above.sum() * below.sum()))


def _rates(scores: Floats, positive: Flags) -> tuple[Floats, Floats]:
    """Return the shares of positives below, and of negatives at or above, each threshold: the scores, then infinity."""
    thresholds = np.append(np.unique(scores), np.inf)
    mated, others = np.sort(scores[positive]), np.sort(scores[~positive])
    missed = np.searchsorted(mated, thresholds) / len(mated)
    passed = 1 - np.searchsorted(others, thresholds) / len(others)
    return missed, passed
