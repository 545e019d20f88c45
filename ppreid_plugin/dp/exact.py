r"""*Release* noise: integers only, from operating-system entropy, safe in floating point by an argument that holds.

**Gaussian.** A row of norm at most C is rounded to the lattice :math:`g\mathbb{Z}^d`, then exact discrete Gaussian
noise of parameter s = σ/g (in lattice steps) is added. Why that is (ε, δ)-DP for one row under *replace*:

1. Rounding moves a row by at most √d g/2, so two rounded rows differ by at most :math:`\Delta = 2C + \sqrt d g` in L2.
   The step g is a power of two fixed by public numbers, so dividing by it is exact, and what follows is integers.
2. *Rounded continuous* noise is a post-processing of the continuous Gaussian mechanism: for a lattice point k,
   round(k + N(0, s²)) = round(N(k, s²)). So it is (ε', δ')-DP exactly where Balle and Wang's formula says so, with no
   rounding argument at all, and composes by μ = Δ/σ.
3. The *discrete* Gaussian p(k) = exp(-k²/2s²)/Z is all but the same law. With q(k) the rounded continuous one,

   .. math:: \frac{q(k)}{p(k)} = \frac{Z}{s\sqrt{2\pi}} \int_{-1/2}^{1/2} \cosh(kt/s^2)\, e^{-t^2/2s^2}\, dt.

   The integral lies in :math:`[e^{-1/8s^2}, e^{k^2/8s^4}]` (cosh x <= exp(x²/2)), and by Poisson summation
   :math:`1 \le Z / (s\sqrt{2\pi}) \le 1 + 3 e^{-2\pi^2 s^2}`. So on the set G where every coordinate of the output lies
   within Ks of *both* rows' lattice points, the two densities of d coordinates differ by a factor within
   :math:`e^{\pm\eta}`, :math:`\eta = d K^2/(8 s^2)` (+ :math:`3 d e^{-2\pi^2 s^2}`, which is 0 here).
4. The discrete Gaussian is sub-Gaussian with variance proxy s² (Canonne, Kamath, Steinke, arXiv 2004.00010), so one
   row's output leaves G with probability at most :math:`\tau = 2 d e^{-(K-\mu)^2/2}`, as the other row's lattice point
   is at most μs away. Together, for any event S,

   .. math:: P_x(S) \le \tau + e^{\eta} Q_x(S \cap G)
             \le \tau + e^{\eta}\big(e^{\varepsilon'} Q_{x'}(S \cap G) + \delta'\big)
             \le e^{\varepsilon' + 2\eta} P_{x'}(S) + e^{\eta}\delta' + \tau.

   The same step for k releases at once gives (ε' + 2kη, e^{kη} δ' + kτ) with the composed (ε', δ').

With K = μ + 16 and s >= 2^24, τ is at most 2e-52 for d = 2048 and η about 1e-9: σ is calibrated with both taken off
(:data:`LOG_RATIO`, :data:`TAIL`), and a step so coarse that they do not hold is refused. opendp's own proof of the same
sampler (zCDP, converted) would ask for a σ a few percent larger.

**Finite mechanisms.** One integer, uniform below Z = K a + (M - K) b, decides the symbol; a/b <= e^ε is a rational
rounded *down*. Every symbol has probability a/Z or b/Z exactly, so the release is exactly ε-DP, delta 0.

Not covered: the time a draw takes, and who can read this process's memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp.arrays import bounded, require_clip_norm, to_rows
from ppreid_plugin.dp.calibration import gaussian_sigma
from ppreid_plugin.dp.entropy import Entropy
from ppreid_plugin.dp.numerics import require_delta
from ppreid_plugin.number_checks import require_positive, require_whole

STEPS_PER_SIGMA = 2**24  # s is at least this; eta falls with its square
LOG_RATIO = 1e-7  # eta of one row, at most
TAIL = 1e-40  # tau of one row, at most
_TAIL_SIGMAS = 16.0  # K - mu
_LARGEST_INTEGER = 2.0**52  # lattice points and their noise are exact as float64 below this
_RATIO_BITS = 64  # denominator of the rational below e^epsilon: 2^64
_ROWS_PER_CALL = 64


@dataclass(frozen=True)
class LatticeGaussian:
    r"""The Gaussian release mechanism for rows of ``dim`` numbers: parameters, and :meth:`release`.

    Args:
        epsilon: budget of one row under *replace* adjacency, > 0.
        delta: in (0, 1), above 1e-30.
        dim: numbers a row, d.
        clip_norm: bound C on a row's L2 norm, feature units.

    Attributes:
        step: g, a power of two, feature units.
        sensitivity: 2C + √d g, rounded up.
        sigma: parameter of the discrete Gaussian, feature units; the sampler gets σ/g, which is exact.
        mu: sensitivity over sigma.

    Raises:
        ValueError: an argument out of range, or a budget at which the proof's slack does not hold.

    Example:
        >>> from ppreid_plugin.dp.calibration import gaussian_sigma
        >>> mechanism = LatticeGaussian(epsilon=16.0, delta=1e-5, dim=512)
        >>> round(mechanism.sigma / gaussian_sigma(16.0, 1e-5, 2.0), 5)
        1.0
    """

    epsilon: float
    delta: float
    dim: int
    clip_norm: float = 1.0
    step: float = field(init=False)
    sensitivity: float = field(init=False)
    sigma: float = field(init=False)
    mu: float = field(init=False)

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_delta(self.delta)
        require_clip_norm(self.clip_norm)
        require_whole("dim", self.dim, hint="the number of columns")
        if self.delta < 1e-30 or self.epsilon <= 4 * LOG_RATIO:
            raise ValueError(
                f"epsilon is {self.epsilon!r} and delta {self.delta!r}; a Gaussian release needs delta >= 1e-30 and "
                f"epsilon > {4 * LOG_RATIO:g}. Smaller promises need another mechanism."
            )
        smallest = self._sigma(2 * self.clip_norm)  # a coarser step than this sigma allows would break the proof
        step = 2.0 ** (math.floor(math.log2(smallest)) - int(math.log2(STEPS_PER_SIGMA)))
        sensitivity = (2 * self.clip_norm + math.sqrt(self.dim) * step) * (1 + 1e-14)
        sigma = self._sigma(sensitivity)
        for name, value in (
            ("step", step),
            ("sensitivity", sensitivity),
            ("sigma", sigma),
            ("mu", sensitivity / sigma),
        ):
            object.__setattr__(self, name, value)
        steps = sigma / step
        log_ratio = self.dim * (self.mu + _TAIL_SIGMAS) ** 2 / (8 * steps**2)
        tail = 2 * self.dim * math.exp(-(_TAIL_SIGMAS**2) / 2)
        reach = self.clip_norm / step + (self.mu + _TAIL_SIGMAS) * steps
        if steps < STEPS_PER_SIGMA or log_ratio > LOG_RATIO or tail > TAIL or reach > _LARGEST_INTEGER:
            raise ValueError(
                f"epsilon is {self.epsilon!r} with {self.dim} columns: the proof of the release noise does not hold "
                "there. Ask for a smaller epsilon; one this large protects nothing."
            )

    def release(self, features: np.ndarray | torch.Tensor) -> npt.NDArray[np.float64]:
        """Return the rows with noise that no seed controls, on the lattice; not renormalized.

        Rows longer than C are scaled down in float64 first; zero rows stay zero before the noise.

        Shape:
            features: (n, dim). Output: (n, dim), float64, multiples of ``step``.

        Raises:
            ValueError: wrong shape or type, NaN or infinity (rows are named).
        """
        lattice = self.lattice(features)
        draw = _discrete_gaussian(self.sigma / self.step)
        noised = np.empty(lattice.shape, dtype=np.float64)
        for start in range(0, len(lattice), _ROWS_PER_CALL):
            chunk = lattice[start : start + _ROWS_PER_CALL]
            noised[start : start + _ROWS_PER_CALL] = np.reshape(draw(chunk.ravel().tolist()), chunk.shape)
        return noised * self.step  # both exact

    def lattice(self, features: np.ndarray | torch.Tensor) -> npt.NDArray[np.int64]:
        """Return the bounded rows as whole numbers of ``step``, before any noise."""
        rows, _ = to_rows(features)
        if rows.shape[1] != self.dim:
            raise ValueError(f"features has {rows.shape[1]} columns, the mechanism was made for {self.dim}.")
        exact = bounded(rows.double().cpu(), self.clip_norm).numpy() / self.step
        return np.rint(exact).astype(np.int64)

    def describe(self) -> dict[str, Any]:
        """Return the public parameters, ready for JSON."""
        return {
            "sampler": "discrete Gaussian (opendp), exact",
            "step": self.step,
            "sensitivity": self.sensitivity,
            "sigma": self.sigma,
            "mu": self.mu,
        }

    def _sigma(self, sensitivity: float) -> float:
        epsilon, delta = self.epsilon - 2 * LOG_RATIO, (self.delta - TAIL) * math.exp(-LOG_RATIO)
        return gaussian_sigma(epsilon, delta, sensitivity) * (1 + 1e-13)


def rational_below_exp(epsilon: float) -> tuple[int, int]:
    """Return whole numbers (a, b) with a/b <= e^epsilon, equal to about 19 digits; b is 2^64.

    Example:
        >>> a, b = rational_below_exp(1.0)
        >>> a / b
        2.718281828459045
    """
    exponent = Decimal(require_positive("epsilon", epsilon))  # exactly the float's value
    digits = 40 + int(epsilon / math.log(10))
    context = Context(prec=digits, Emax=10**9)
    power = exponent.exp(context).next_minus(context)  # exp rounds to nearest: one step down is below the true value
    numerator, denominator = power.as_integer_ratio()
    # below 1e-19 a step down may lie below 1, which no e^epsilon does
    return max((numerator << _RATIO_BITS) // denominator, 1 << _RATIO_BITS), 1 << _RATIO_BITS


def sample_subset(
    sets: npt.NDArray[np.int64], num_symbols: int, epsilon: float, entropy: Entropy
) -> npt.NDArray[np.int64]:
    r"""Return one symbol a row: any symbol of the row's set e^ε times as likely as any other, exactly.

    .. math:: P(s) = a/Z \text{ in the set, } b/Z \text{ outside}, \qquad Z = Ka + (M-K)b, \quad a/b \le e^\varepsilon

    Z is the same for all sets, so a change of the row changes no probability by more than a/b.

    Args:
        sets: the K symbols of each row's set, distinct, in [0, M).
        num_symbols: M.
        epsilon: budget of one row, > 0.
        entropy: where the integers come from: ``Entropy()``.

    Shape:
        sets: (n, K), 1 <= K < M. Output: (n,), int64.

    Raises:
        ValueError: sets of another shape or type, out of range or with repeats; epsilon not > 0.

    Source:
        Ye and Barg, arXiv 1702.00610 (subset selection); sampling with integers is our definition.
    """
    members = _checked_sets(sets, num_symbols)
    size = members.shape[1]
    inside, outside = rational_below_exp(epsilon)
    total = size * inside + (num_symbols - size) * outside
    symbols = np.empty(len(members), dtype=np.int64)
    for row, drawn in enumerate(entropy.below(total, len(members))):
        if drawn < size * inside:
            symbols[row] = members[row, drawn // inside]
        else:
            rank = (drawn - size * inside) // outside  # the rank-th symbol that is not in the set
            symbols[row] = rank + int(np.count_nonzero(members[row] - np.arange(size) <= rank))
    return symbols


def _checked_sets(sets: npt.NDArray[np.int64], num_symbols: int) -> npt.NDArray[np.int64]:
    members = np.asarray(sets)
    if members.ndim != 2 or members.dtype.kind not in "iu" or not 1 <= members.shape[1] < num_symbols:
        raise ValueError(
            f"sets has shape {members.shape} and type {members.dtype}, must be whole numbers (n, K), "
            f"1 <= K < {num_symbols} symbols."
        )
    members = np.sort(members.astype(np.int64), axis=1)
    if members.size and (members.min() < 0 or members.max() >= num_symbols or (np.diff(members, axis=1) == 0).any()):
        raise ValueError(f"sets must hold distinct symbols in [0, {num_symbols}) a row. Check the codebook's size.")
    return members


def _discrete_gaussian(steps: float) -> Any:
    """Return opendp's exact sampler: a list of integers in, the same with noise of ``steps`` out."""
    import opendp.prelude as opendp

    opendp.enable_features("contrib")
    space = opendp.vector_domain(opendp.atom_domain(T="i64")), opendp.l2_distance(T="f64")
    return opendp.m.make_gaussian(*space, scale=steps)
