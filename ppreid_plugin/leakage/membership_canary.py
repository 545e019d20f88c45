r"""The membership game that has a bound: one row is known to be u or -u, and its release tells which.

No other figure of the channel is bounded by it: a gallery holds many rows, non-members are other people, and training
membership has no mechanism at all. Worst-case rows and a score that knows the mechanism, so an honest one comes near.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..dp.audit_bounds import rate_at_least, rate_at_most
from ..dp.audit_games import game_for
from ..dp.bounds import bound_auc_gaussian, bound_auc_pure, bound_tpr_gaussian, bound_tpr_pure
from ..dp.mechanisms import Mechanism
from ..number_checks import require_whole
from .attack import Figure
from .linkage_figures import auc, tpr_at

Floats = npt.NDArray[np.float64]

FALSE_POSITIVE_RATES = (0.01, 0.001)
FALSE_ALARM = 1e-6  # that ``exceeds`` is 1 for an honest mechanism
MIN_TRIALS = 1000
_NUMBERS_A_CALL = 2**22


def canary_membership(mechanism: Mechanism, trials: int = 100_000, seed: int = 0, *, dimension: int = 4) -> Figure:
    r"""Release u and -u ``trials`` times each and tell them apart; the bounds of both figures stand beside them.

    The score of a release is its likelihood ratio for finite mechanisms, and its product with u for all others (the
    likelihood ratio in order, for Gaussian noise). Others: ``tpr_at_fpr_0.01``, ``tpr_at_fpr_0.001``, each figure's
    ``bound_...`` (``bound_auc``, ``bound_tpr_at_fpr_0.01``, ...), and ``exceeds``: 1 where a bound is broken beyond
    chance. ``exceeds`` is 1 for an honest mechanism with probability at most 1e-6: Clopper-Pearson bounds, the failure
    split over all rates; the AUC from pairs of one release each, the rates at thresholds that other releases set.

    Args:
        mechanism: Gaussian noise or pure; what it claims (epsilon, or sensitivity over sigma) sets the bounds.
        trials: releases of each of the two rows, at least 1000.
        seed: of the noise.
        dimension: columns of the rows; a codebook brings its own.

    Raises:
        ValueError: too few trials, or a mechanism of which no bound is known.

    Example:
        >>> from ppreid_plugin.dp.mechanisms import build_mechanism
        >>> figure = canary_membership(build_mechanism("gaussian", epsilon=4.0), trials=20_000)
        >>> abs(figure.score - figure.others["bound_auc"]) < 0.01, figure.others["exceeds"]
        (True, 0.0)
    """
    trials = require_whole("trials", trials, least=MIN_TRIALS, hint="100000 is usual")
    bounds = _Bounds(mechanism)
    member, other = _scores(mechanism, trials, seed, dimension)
    scores, positive = np.concatenate([member, other]), np.arange(2 * trials) < trials
    score = auc(scores, positive)
    others = {f"tpr_at_fpr_{rate}": tpr_at(scores, positive, rate) for rate in FALSE_POSITIVE_RATES}
    others |= {"bound_auc": bounds(None)}
    others |= {f"bound_tpr_at_fpr_{rate}": bounds(rate) for rate in FALSE_POSITIVE_RATES}
    others["exceeds"] = float(_exceeds(member, other, mechanism, np.random.default_rng([seed, 1])))
    return Figure(score, _auc_error(member, other), "canary", others)


class _Bounds:
    """The AUC (None) and the true positive rate at a false positive rate that the mechanism's claim allows."""

    def __init__(self, mechanism: Mechanism) -> None:
        if mechanism.sigma is None and not (mechanism.pure and np.isfinite(mechanism.epsilon)):
            raise ValueError(
                f"mechanism {mechanism.name!r} is neither pure nor Gaussian noise: no membership bound is known. Audit "
                "it with ppreid_plugin.dp.audit_mechanism."
            )
        self._mu = None if mechanism.sigma is None else mechanism.sensitivity / mechanism.sigma
        self._epsilon = mechanism.epsilon

    def __call__(self, fpr: float | None) -> float:
        if self._mu is not None:
            return bound_auc_gaussian(self._mu) if fpr is None else bound_tpr_gaussian(fpr, self._mu)
        return bound_auc_pure(self._epsilon) if fpr is None else bound_tpr_pure(fpr, self._epsilon)


def _scores(mechanism: Mechanism, trials: int, seed: int, dimension: int) -> tuple[Floats, Floats]:
    """Return the scores of the releases of u and of -u, (trials,) each."""
    game, generator = game_for(mechanism, dimension), np.random.default_rng(seed)
    unit = game.canary / np.linalg.norm(game.canary)
    finite = hasattr(mechanism, "symbols") and hasattr(mechanism, "symbol_probabilities")
    if finite:
        likely, unlikely = np.log(mechanism.symbol_probabilities(np.stack([game.canary, -game.canary])))  # type: ignore[attr-defined]
    step, sides = max(1, _NUMBERS_A_CALL // game.dimension), []
    for row in (game.canary, -game.canary):
        parts = []
        for start in range(0, trials, step):
            rows = np.tile(row, (min(step, trials - start), 1))
            if finite:
                symbols = mechanism.symbols(rows, generator=generator)  # type: ignore[attr-defined]
                parts.append((likely - unlikely)[symbols])
            else:
                parts.append(mechanism.privatize(rows, generator=generator) @ unit)
        sides.append(np.concatenate(parts))
    return sides[0], sides[1]


def _exceeds(member: Floats, other: Floats, mechanism: Mechanism, rng: np.random.Generator) -> bool:
    """Return whether the AUC or a true positive rate is above its bound, wrongly so at most FALSE_ALARM of the time."""
    bounds = _Bounds(mechanism)
    level = FALSE_ALARM / (1 + 2 * len(FALSE_POSITIVE_RATES))  # of the AUC, and of two rates at each threshold
    ties = rng.random(len(member)) < 0.5
    wins = int(((member > other) | ((member == other) & ties)).sum())
    if rate_at_least(wins, len(member), level) > bounds(None):
        return True
    half = len(other) // 2
    for rate in FALSE_POSITIVE_RATES:
        threshold = np.quantile(other[:half], 1 - rate, method="higher")
        passed = rate_at_most(int((other[half:] > threshold).sum()), len(other) - half, level)
        if rate_at_least(int((member > threshold).sum()), len(member), level) > bounds(passed):
            return True
    return False


def _auc_error(member: Floats, other: Floats) -> float:
    """Return the standard error of the AUC of independent scores.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988.
    """
    ordered = np.sort(member), np.sort(other)
    shares = [
        (np.searchsorted(theirs, own, "left") + np.searchsorted(theirs, own, "right")) / (2 * len(theirs))
        for own, theirs in ((member, ordered[1]), (other, ordered[0]))
    ]
    return float(np.sqrt(sum(np.var(share, ddof=1) / len(share) for share in shares)))
