r"""PrivUnit and PrivUnitG: pure epsilon-DP for a direction, hence for a Re-ID feature that is matched by cosine.

A row x of length 1 is released as a random vector v that lies in the cap <v, x> >= gamma with probability p, and
outside it otherwise; within either part v follows a law that does not depend on x. The caps of all rows have the same
probability q under that law, so the density of v is p/q or (1-p)/(1-q) times it, whatever x is, and the ratio for any
two rows is at most :math:`\frac{p}{q} / \frac{1-p}{1-q} = e^\varepsilon`. :mod:`.caps` chooses gamma and computes p.

The output is divided by :math:`m = E\langle v, x \rangle`, which makes it unbiased: its mean is x. Nothing is drawn by
rejection: <v, x> comes from its inverse distribution function, the rest is orthogonal to x.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betaincinv, ndtri, ndtri_exp

from ppreid_plugin.dp.arrays import unit_rows
from ppreid_plugin.dp.caps import LEAST_EPSILON, CapParameters, privunit_g_parameters, privunit_parameters
from ppreid_plugin.dp.mechanisms import Mechanism, register_mechanism
from ppreid_plugin.dp.noise import ResearchNoise

Floats = npt.NDArray[np.float64]


class SphereMechanism(Mechanism):
    """What PrivUnit and PrivUnitG share: rows of length 1, pure DP, parameters that depend on the number of columns.

    Args:
        epsilon: budget of one row under *replace* adjacency, 1e-100 or more.
        delta: None or 0.
        clip_norm: checked and not used, so that a config can switch mechanisms by name alone: every row is normalized.
        dimension: number of columns, if :meth:`describe` shall tell the parameters before the first rows are seen.

    Attributes:
        dimension: number of columns of the rows seen last; None before.
        clip_norm, sensitivity: 1 and 2: rows lie on the unit sphere.
    """

    pure = True
    most_epsilon: ClassVar[float] = math.inf

    def __init__(
        self, epsilon: float, delta: float | None = None, clip_norm: float = 1.0, dimension: int | None = None
    ) -> None:
        super().__init__(epsilon, delta, clip_norm)
        if self.epsilon < LEAST_EPSILON:
            raise ValueError(
                f"epsilon is {epsilon!r}, {self.name} is computed from {LEAST_EPSILON:g} on. Take that or more; so "
                "small a budget is nothing but noise."
            )
        if self.epsilon > self.most_epsilon:
            raise ValueError(
                f"epsilon is {epsilon!r}, {self.name} is computed up to {self.most_epsilon:g}. Use privunit_g, or none."
            )
        self.clip_norm, self.sensitivity = 1.0, 2.0
        self.dimension = dimension
        if dimension is not None:
            self.parameters(dimension)

    @abstractmethod
    def parameters(self, dimension: int) -> CapParameters:
        """Return the cap used for rows of that many columns."""

    @property
    def effective_sigma(self) -> float | None:
        """What sigma is to Gaussian noise, for the score of a clean query; None while ``dimension`` is."""
        return None if self.dimension is None else self.parameters(self.dimension).effective_sigma

    def prepare(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalize; a zero row becomes the fixed public unit vector e_1."""
        return unit_rows(rows)

    def describe(self) -> dict[str, Any]:
        """Return what was done, with the cap once the number of columns is known."""
        described = {**super().describe(), "columns": self.dimension, "effective_sigma": self.effective_sigma}
        if self.dimension is not None:
            cap = self.parameters(self.dimension)
            described |= {"gamma": cap.threshold, "p": 1 - cap.outside, "log_q": cap.log_cap, "scale": 1 / cap.mean}
        return described

    def _cap(self, rows: torch.Tensor) -> CapParameters:
        self.dimension = rows.shape[1]
        return self.parameters(self.dimension)


@register_mechanism("privunit_g")
class PrivUnitG(SphereMechanism):
    r"""Tilts a Gaussian towards the row: :math:`v = g + (z - \langle g, x\rangle) x` with g standard normal.

    z is standard normal above gamma with probability p, below it otherwise (see the module for p and the proof). Three
    to four times less score noise than the Gaussian mechanism, and delta is 0.

    Args:
        epsilon: budget of one row under *replace* adjacency, 1e-100 or more.
        delta: None or 0.
        clip_norm: not used: every row is normalized, a zero row becomes e_1.
        dimension: number of columns, optional.

    Raises:
        ValueError: epsilon or delta out of range.

    Guarantee:
        epsilon-DP for one row (delta 0), in real arithmetic; k rows of one person compose to k epsilon, or see
        :func:`.composition.compose`. Float research noise: not a release mechanism. Says nothing of a row's norm, which
        it drops; does not hide n, pids, camids or row order.

    Source:
        Asi, Feldman and Talwar, ICML 2022, arXiv 2205.02466, section 4.

    Example:
        >>> round(PrivUnitG(epsilon=8.0, dimension=512).effective_sigma, 3)
        0.365
    """

    name = "privunit_g"

    def parameters(self, dimension: int) -> CapParameters:
        """Return the best cap for that many columns."""
        return privunit_g_parameters(self.epsilon, dimension)

    def randomize(self, rows: torch.Tensor, noise: ResearchNoise) -> torch.Tensor:
        """Draw v for every row, divided by its mean length along the row."""
        cap = self._cap(rows)
        along = torch.from_numpy(_normal_split(cap, noise.uniform(len(rows)), noise.uniform(len(rows))))
        drawn = noise.normal(tuple(rows.shape), rows.dtype)
        shift = along.to(rows) - torch.linalg.vecdot(drawn, rows)
        return drawn.addcmul_(rows, shift[:, None]).div_(cap.mean)


@register_mechanism("privunit")
class PrivUnit(SphereMechanism):
    r"""Draws from the sphere: uniformly from the cap around the row with probability p, else uniformly from the rest.

    Output :math:`v / m`, of length 1/m for every row. Nearly the same as PrivUnitG from some hundred columns on, a
    little better below.

    Args:
        epsilon: budget of one row under *replace* adjacency, 1e-100 to 500.
        delta: None or 0.
        clip_norm: not used: every row is normalized, a zero row becomes e_1.
        dimension: number of columns, optional; at least 2.

    Raises:
        ValueError: epsilon or delta out of range, or rows of one column.

    Guarantee:
        epsilon-DP for one row (delta 0), in real arithmetic; see PrivUnitG for the rest.

    Source:
        Bhowmick, Duchi, Freudiger, Kapoor and Rogers, arXiv 1812.00984, Algorithm 1 and Theorem 1; p and gamma chosen
        as Asi, Feldman and Talwar do.

    Example:
        >>> round(PrivUnit(epsilon=8.0, dimension=512).effective_sigma, 3)
        0.363
    """

    name = "privunit"
    most_epsilon = 500.0

    def parameters(self, dimension: int) -> CapParameters:
        """Return the best cap for that many columns."""
        return privunit_parameters(self.epsilon, dimension)

    def randomize(self, rows: torch.Tensor, noise: ResearchNoise) -> torch.Tensor:
        """Draw v for every row in float64, divided by its mean length along the row."""
        cap = self._cap(rows)
        cosine, sine = _sphere_split(cap, rows.shape[1], noise.uniform(len(rows)), noise.uniform(len(rows)))
        unit = unit_rows(rows.double())
        drawn = noise.normal(tuple(rows.shape), torch.float64)
        for _ in range(2):  # once leaves rounding error along the row where the rest is short: two columns
            drawn.addcmul_(unit, torch.linalg.vecdot(drawn, unit)[:, None], value=-1)
            drawn = torch.nn.functional.normalize(drawn, dim=1, eps=1e-300)
        cosines, sines = (torch.from_numpy(part).to(unit)[:, None] for part in (cosine, sine))
        return (unit * cosines + drawn * sines).div_(cap.mean).to(rows.dtype)


def _normal_split(cap: CapParameters, which: Floats, where: Floats) -> Floats:
    """Standard normal numbers, above the threshold with probability p, from uniform ones in (0, 1]."""
    above = -ndtri_exp(cap.log_cap + np.log(where))
    below = ndtri(where * -np.expm1(cap.log_cap))
    return np.where(which <= cap.outside, np.minimum(below, cap.threshold), np.maximum(above, cap.threshold))


def _sphere_split(cap: CapParameters, dimension: int, which: Floats, where: Floats) -> tuple[Floats, Floats]:
    """<v, x> and the length of the rest of v: in the cap with probability p; v uniform on either part of the sphere."""
    power = (dimension - 1) / 2
    inside = which > cap.outside
    # the probability of a larger <v, x>: up to q in the cap, from q to 1 outside
    larger = np.exp(cap.log_cap) * where
    larger = np.where(inside, larger, np.minimum(1.0, np.exp(cap.log_cap) - np.expm1(cap.log_cap) * where))
    smaller_side = np.minimum(larger, 1 - larger)  # distances to x and to -x have the same law
    near_pole = smaller_side < 0.25
    sin2 = betaincinv(power, 0.5, 2 * np.where(near_pole, smaller_side, 0.0))
    cos2 = betaincinv(0.5, power, np.where(near_pole, 0.0, 1 - 2 * smaller_side))
    sine = np.sqrt(np.where(near_pole, sin2, 1 - cos2))
    cosine = np.sqrt(np.where(near_pole, 1 - sin2, cos2)) * np.where(larger <= 0.5, 1.0, -1.0)
    return np.where(inside, np.maximum(cosine, cap.threshold), np.minimum(cosine, cap.threshold)), sine
