"""What can be said about a mechanism without sampling: exact worst ratios, and whether rows look at each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from ppreid_plugin.dp.caps import cap_log_probability
from ppreid_plugin.dp.sphere import PrivUnit, PrivUnitG

Floats = npt.NDArray[np.float64]
Protect: TypeAlias = "Callable[[Floats, np.random.Generator], npt.ArrayLike]"

TOLERANCE = 1e-9  # relative: what rounding may add to an exact epsilon
_NUMBERS_A_CALL = 2**22  # 32 MiB of probabilities


def exact_cap_epsilon(mechanism: PrivUnit | PrivUnitG, dimension: int) -> float:
    r"""Return log of :math:`\frac{p}{q} / \frac{1-p}{1-q}`: the exact epsilon of PrivUnit or PrivUnitG.

    q is computed again from the threshold alone, p is what the mechanism draws with; epsilon itself is not looked at.

    Args:
        mechanism: to be audited.
        dimension: columns of the rows.

    Raises:
        ValueError: so few columns for so large an epsilon that the cap's threshold has lost the digits that q needs.

    Example:
        >>> round(exact_cap_epsilon(PrivUnit(epsilon=4.0), 16), 9)
        4.0
    """
    cap = mechanism.parameters(dimension)
    if isinstance(mechanism, PrivUnitG):
        log_q = float(log_ndtr(-cap.threshold))
    else:
        lost = (dimension - 1) * 2.0**-53  # relative error of q, times 1 - threshold
        if lost > 0.1 * TOLERANCE * mechanism.epsilon * (1 - cap.threshold):
            raise ValueError(
                f"dimension is {dimension}, too small to compute privunit's cap at epsilon {mechanism.epsilon:g} from "
                f"its threshold. Audit at {4 * dimension} columns or more, or at a smaller epsilon."
            )
        log_q = cap_log_probability(dimension, cap.threshold)
    log_not_q = math.log1p(-math.exp(log_q))
    return math.log1p(-cap.outside) - log_q - math.log(cap.outside) + log_not_q


def exact_symbol_epsilon(mechanism: Any, rows: Floats) -> float:
    """Return the largest log ratio of the probabilities of one symbol for two of the rows; it may be infinite.

    Args:
        mechanism: a finite one: it has a ``codebook`` and states ``symbol_probabilities(rows)``, (n, d) -> (n, M).
        rows: the more of them, the more sets are seen, (n, d).

    Example:
        >>> from ppreid_plugin.dp.subset import PriorSubset
        >>> round(exact_symbol_epsilon(PriorSubset(epsilon=2.0, codebook=np.eye(4)), np.eye(4)), 9)
        2.0
    """
    symbols = len(mechanism.codebook)
    least, most = np.full(symbols, np.inf), np.full(symbols, -np.inf)
    step = max(1, _NUMBERS_A_CALL // symbols)
    for start in range(0, len(rows), step):
        with np.errstate(divide="ignore"):
            logs = np.log(mechanism.symbol_probabilities(rows[start : start + step]))
        least, most = np.minimum(least, logs.min(axis=0)), np.maximum(most, logs.max(axis=0))
    seen = most > -np.inf  # a symbol that no row can give has no ratio
    return float((most[seen] - least[seen]).max())


def rows_that_change(protect: Protect, gallery: Floats, *, canary: int = 0) -> list[int]:
    """Return the rows other than the canary whose output changes when the canary does, the noise held fixed.

    None may: whatever is fitted on the gallery (a transform, a codebook) shows here. A sampler that draws more random
    numbers for some rows than for others shows here too, though it need not be wrong.

    Args:
        protect: function of a gallery and a numpy generator, such as a public transform and ``privatize``.
        gallery: rows, (n, d).
        canary: the row that is swapped for another one.

    Example:
        >>> rows = np.eye(3)
        >>> rows_that_change(lambda rows, generator: rows - rows.mean(axis=0), rows)
        [1, 2]
    """
    swapped = gallery.copy()
    swapped[canary] = -7 * swapped[canary][::-1]
    first, second = (np.asarray(protect(rows, np.random.default_rng(0))) for rows in (gallery, swapped))
    return [row for row in range(len(gallery)) if row != canary and not np.array_equal(first[row], second[row])]
