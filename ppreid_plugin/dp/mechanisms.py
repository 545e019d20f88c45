"""DP mechanisms: what is done to each row of the gallery, and what it guarantees for that row.

In the data flow: after the encoder and the public transform, before the release. Every mechanism bounds the rows
itself and trusts no caller. All draw *research* noise (:mod:`.noise`): right for evaluation, not for a release.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import torch

from ppreid_plugin.dp.arrays import Features, bounded, require_clip_norm, row_chunks, saturated, to_rows
from ppreid_plugin.dp.calibration import gaussian_sigma
from ppreid_plugin.dp.noise import Generator, ResearchNoise
from ppreid_plugin.dp.numerics import require_delta
from ppreid_plugin.number_checks import require_positive
from ppreid_plugin.registry import Registry

DEFAULT_DELTA = 1e-5


class Mechanism(ABC):
    """A randomized map of one row, differentially private for that row under *replace* adjacency.

    An entry sets ``name`` (and ``pure = True`` if its delta is exactly 0), takes its arguments by these names and any
    of its own with a default, and implements :meth:`randomize`, which sees bounded rows and must treat each alone.
    :meth:`prepare`, ``sensitivity``, ``sigma`` and :meth:`describe` are overridden where they differ.

    Args:
        epsilon: budget of one row, > 0.
        delta: failure probability of one row, in (0, 1); None means 1e-5, or 0 for a pure mechanism, which takes no
            other.
        clip_norm: bound C on a row's L2 norm, feature units.

    Attributes:
        sensitivity: largest L2 distance of two bounded rows, 2C.
        sigma: standard deviation of the noise, feature units; None where the noise is not Gaussian.

    Raises:
        ValueError: epsilon, delta or clip_norm out of range.
    """

    name: ClassVar[str]
    pure: ClassVar[bool] = False
    sigma: float | None = None

    def __init__(self, epsilon: float, delta: float | None = None, clip_norm: float = 1.0) -> None:
        self.epsilon = require_positive("epsilon", epsilon)
        self.delta = self._checked_delta(delta)
        self.clip_norm = require_clip_norm(clip_norm)
        self.sensitivity = 2 * self.clip_norm

    @abstractmethod
    def randomize(self, rows: torch.Tensor, noise: ResearchNoise) -> torch.Tensor:
        """Return the randomized rows: (n, d) float32 or float64 with norms of at most C -> (n, any), same type."""

    def prepare(self, rows: torch.Tensor) -> torch.Tensor:
        """Return a chunk of checked rows, bounded as the proof needs, each for itself: here to a norm of at most C."""
        return bounded(rows, self.clip_norm)

    def privatize(self, features: Features, *, generator: Generator = None) -> Features:
        """Return the rows, bounded and randomized, in memory bounded beside the output.

        Rows longer than C are scaled down; zero rows stay zero before the noise (a mechanism that differs says so). The
        bound is enforced in float64 and holds after rounding. The output is not renormalized. float16 rows get their
        noise in float32; a result too large for the type becomes its largest finite number, never infinity
        (post-processing: the guarantee stays).

        Args:
            features: float16, float32 or float64, numpy or torch.
            generator: None draws fresh noise that no seed controls; a numpy or torch generator makes it reproducible.

        Shape:
            features: (n, d). Output: same kind, type and device, without gradient.

        Raises:
            ValueError: wrong shape or type; NaN or infinity (rows are named).
            TypeError: ``generator`` is not a generator.
        """
        rows, restore = to_rows(features)
        noise = ResearchNoise(generator, rows.device)
        work = torch.promote_types(rows.dtype, torch.float32)
        result = torch.empty_like(rows, memory_format=torch.contiguous_format)
        largest = torch.finfo(rows.dtype).max
        for span in row_chunks(rows) if rows.numel() else ():
            noise.offer(result[span])  # a copy of all rows less
            chunk = self.randomize(self.prepare(rows[span].to(work)), noise)
            if chunk.shape[1] != result.shape[1]:  # known from the first chunk
                result = rows.new_empty(len(rows), chunk.shape[1])
            if chunk.dtype == rows.dtype:
                torch.clamp(chunk, -largest, largest, out=result[span])
            else:
                result[span] = saturated(chunk, rows.dtype)
        return cast(Features, restore(result))

    def describe(self) -> dict[str, Any]:
        """Return what was done, ready for JSON: public parameters only."""
        return {
            "mechanism": self.name,
            "pure": self.pure,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "adjacency": "replace",
            "clip_norm": self.clip_norm,
            "sensitivity": self.sensitivity,
            "sigma": self.sigma,
            "mu": None if self.sigma is None else self.sensitivity / self.sigma,
            "noise": "research",
        }

    def _checked_delta(self, delta: float | None) -> float:
        if not self.pure:
            return require_delta(DEFAULT_DELTA if delta is None else delta, who=self.name)
        if delta is not None and (isinstance(delta, bool) or delta != 0):
            raise ValueError(f"delta is {delta!r}, {self.name} is pure and needs delta 0. Leave delta out.")
        return 0.0


MECHANISMS: Registry[type[Mechanism]] = Registry("mechanism", contract=Mechanism)
register_mechanism = MECHANISMS.register


@register_mechanism("gaussian")
class GaussianMechanism(Mechanism):
    r"""Adds :math:`N(0, \sigma^2 I_d)` to every row.

    Sigma is the smallest that satisfies, with :math:`\mu = \Delta / \sigma`,

    .. math:: \Phi(\mu/2 - \varepsilon/\mu) - e^\varepsilon \Phi(-\mu/2 - \varepsilon/\mu) \le \delta

    Args:
        epsilon: budget of one row under *replace* adjacency, > 0.
        delta: failure probability of one row, in (0, 1).
        clip_norm: bound C on a row's L2 norm (feature units); sensitivity :math:`\Delta = 2C`.

    Raises:
        ValueError: epsilon, delta or clip_norm out of range.

    Guarantee:
        (epsilon, delta)-DP for one row, in real arithmetic; k rows of one person compose to :math:`\sqrt{k}\,\mu`. The
        noise is float research noise, so this is not a release mechanism. Does not hide n, pids, camids or row order.

    Source:
        Balle and Wang, ICML 2018, arXiv 1805.06530, Theorem 8.

    Example:
        >>> round(GaussianMechanism(epsilon=16.0, delta=1e-5, clip_norm=1.0).sigma, 3)
        0.688
    """

    name = "gaussian"
    sigma: float

    def __init__(self, epsilon: float, delta: float | None = DEFAULT_DELTA, clip_norm: float = 1.0) -> None:
        super().__init__(epsilon, delta, clip_norm)
        self.sigma = gaussian_sigma(self.epsilon, self.delta, self.sensitivity)

    def randomize(self, rows: torch.Tensor, noise: ResearchNoise) -> torch.Tensor:
        """Add the noise."""
        return noise.normal(tuple(rows.shape), rows.dtype, self.sigma).add_(rows)


@register_mechanism("none")
class NoMechanism(Mechanism):
    """No protection: the output is a copy of the input, and epsilon is infinite whatever was asked for.

    Args:
        epsilon: accepted, so that a config can switch mechanisms by name alone, and not used. So are the others.
        delta: not used; the attribute is 0.
        clip_norm: not used; nothing is clipped.
    """

    name = "none"

    def __init__(self, epsilon: float = math.inf, delta: float | None = None, clip_norm: float = 1.0) -> None:
        self.epsilon, self.delta = math.inf, 0.0
        self.clip_norm = self.sensitivity = math.inf

    def privatize(self, features: Features, *, generator: Generator = None) -> Features:
        """Return a copy of the checked features."""
        rows, restore = to_rows(features)
        return cast(Features, restore(rows.clone()))

    def randomize(self, rows: torch.Tensor, noise: ResearchNoise) -> torch.Tensor:
        """Return the rows."""
        return rows

    def describe(self) -> dict[str, Any]:
        """Return what was done: nothing. JSON has no infinity, so epsilon is null here."""
        return {"mechanism": self.name, "pure": False, "epsilon": None, "protection": "none: features are as extracted"}


def build_mechanism(
    name: str, *, epsilon: float, delta: float | None = None, clip_norm: float = 1.0, **kwargs: Any
) -> Mechanism:
    """Return the registered mechanism ``name``.

    Args:
        name: as in YAML: ``gaussian``, ``privunit``, ``privunit_g``, ``codebook``, ``prior_subset``, ``none``, or what
            an extension registers.
        epsilon: budget of one row, > 0.
        delta: None means 1e-5, or 0 for a pure mechanism.
        clip_norm: bound on a row's L2 norm, feature units.
        kwargs: further arguments of that mechanism.

    Raises:
        ValueError: unknown name, an argument that the mechanism does not take, or a value out of range.

    Example:
        >>> build_mechanism("gaussian", epsilon=8.0).describe()["delta"]
        1e-05
    """
    mechanism = MECHANISMS.get(name)
    allowed = [key for key in inspect.signature(mechanism).parameters if key not in ("epsilon", "delta", "clip_norm")]
    for key in kwargs:
        if key not in allowed:
            raise ValueError(
                f"mechanism {name!r} takes no argument {key!r}; further arguments: {', '.join(allowed) or 'none'}. "
                "Leave it out."
            )
    return mechanism(epsilon=epsilon, delta=delta, clip_norm=clip_norm, **kwargs)
