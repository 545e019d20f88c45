r"""The release's noise with a gradient: the real mechanism's own draw, shifted with the row that it was made for.

A draw y for a row x0 is carried to a row x as v(x) = y + x - x0: the mechanism's draw in value, with the gradient of
the clean row. For the Gaussian mechanism this is the pathwise derivative, for y - x0 does not depend on the row. For
PrivUnitG, :math:`y = x + g/m + \frac{z - m - \langle g, x\rangle}{m} x` with g normal: beside the shift only the number
along x depends on the row, one of d, and PrivUnit is nearly the same. Its exact pathwise derivative, a rotation that
turns the draw with the row, has the same mean but for that number and, at d = 512 and epsilon 8 to 16, 170 to 200 times
the variance: it takes the part of the draw at right angles to the row, some eight times as long as the row, with it.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ..dp.mechanisms import Mechanism, build_mechanism
from ..dp.sphere import SphereMechanism

ADDITIVE = ("gaussian", "privunit", "privunit_g")  # noise around the row, whatever the row is


class ReleaseNoise:
    """Releases rows with a gradient to the rows, under a mechanism whose noise does not depend on the row (see above).

    Args:
        mechanism: ``gaussian``, ``privunit`` or ``privunit_g``.
        delta: failure probability; None lets the mechanism choose.

    Raises:
        ValueError: another mechanism.
    """

    def __init__(self, mechanism: str, *, delta: float | None = None) -> None:
        if mechanism not in ADDITIVE:
            raise ValueError(f"mechanism is {mechanism!r}; noise with a gradient is there for {', '.join(ADDITIVE)}.")
        self.name = mechanism
        self.delta = delta

    def at(self, epsilon: float) -> Mechanism:
        """Return the mechanism at a budget of one row.

        Raises:
            ValueError: epsilon or delta out of range.
        """
        return build_mechanism(self.name, epsilon=epsilon, delta=self.delta)

    def release(self, rows: Tensor, epsilon: float, generator: np.random.Generator) -> Tensor:
        r"""Return protected rows in the unit of the clean score: v / |v| times :math:`\sqrt{1 + d \sigma^2}`.

        Sigma is the mechanism's (PrivUnit: its effective sigma), so the factor is the root of E|v|^2, the same for all
        rows: a clean query ranks them as after the release's normalization, and reads a cosine and noise of sigma.

        Shape:
            rows: (n, d), of length 1, d >= 2. Output: (n, d), with the gradient of shift and normalization.
        """
        mechanism = self.at(epsilon)
        start = rows.detach()
        drawn = mechanism.privatize(start, generator=generator)
        sigma = mechanism.effective_sigma if isinstance(mechanism, SphereMechanism) else mechanism.sigma
        length = math.sqrt(1 + rows.shape[1] * float(sigma or 0.0) ** 2)
        return F.normalize(drawn + (rows - start), dim=1) * length


def check_range(epsilon_min: float, epsilon_max: float) -> None:
    """Refuse a range of budgets that holds none.

    Raises:
        ValueError: not 0 < epsilon_min <= epsilon_max < infinity.
    """
    if not 0 < epsilon_min <= epsilon_max < math.inf:
        raise ValueError(
            f"epsilon_min is {epsilon_min} and epsilon_max {epsilon_max}; must be 0 < epsilon_min <= epsilon_max, such "
            "as 4 and 16."
        )


def draw_epsilon(epsilon_min: float, epsilon_max: float, generator: np.random.Generator) -> float:
    """Return a budget of the range, uniform in its logarithm."""
    share = float(generator.uniform())
    return min(max(epsilon_min * (epsilon_max / epsilon_min) ** share, epsilon_min), epsilon_max)
