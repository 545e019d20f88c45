"""Which release noise belongs to which mechanism, what it costs, and what it draws; the rest is refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp.charges import Charge
from ppreid_plugin.dp.entropy import Entropy
from ppreid_plugin.dp.exact import LatticeGaussian, sample_subset
from ppreid_plugin.dp.mechanisms import Mechanism

Floats = npt.NDArray[np.float64]

_MOST_EPSILON = 700.0
_ROWS_A_CALL = 1024  # times 4096 codewords: 32 MiB of cosines


class Sampler(ABC):
    """Draws a release for one mechanism; ``arrays`` are public ones that a reader needs beside the rows."""

    def __init__(self, mechanism: Mechanism, dim: int) -> None:
        self.mechanism, self.dim = mechanism, dim
        self.arrays: dict[str, np.ndarray] = {}

    @abstractmethod
    def charge(self, epsilon: float) -> Charge:
        """Return what one row costs at ``epsilon``."""

    @abstractmethod
    def draw(self, rows: Floats, epsilon: float) -> dict[str, np.ndarray]:
        """Return the released rows by array name, drawn with OS entropy."""

    def describe(self, epsilon: float) -> dict[str, Any]:
        """Return the public parameters, ready for JSON."""
        described = {key: value for key, value in self.mechanism.describe().items() if key != "noise"}
        return {**described, "epsilon": epsilon}


class GaussianSampler(Sampler):
    """The lattice Gaussian of :mod:`.exact`; released rows are renormalized (post-processing)."""

    def charge(self, epsilon: float) -> Charge:
        """Return the cost by mu."""
        return Charge(epsilon, self.mechanism.delta, mu=self._lattice(epsilon).mu)

    def draw(self, rows: Floats, epsilon: float) -> dict[str, np.ndarray]:
        """Return ``features``: unit-length rows, float32."""
        noised = self._lattice(epsilon).release(rows)
        norms = np.linalg.norm(noised, axis=1, keepdims=True)
        return {"features": (noised / np.where(norms > 0, norms, 1.0)).astype(np.float32)}

    def describe(self, epsilon: float) -> dict[str, Any]:
        """Return the parameters of the release noise, not of the research noise."""
        return {**super().describe(epsilon), **self._lattice(epsilon).describe()}

    def _lattice(self, epsilon: float) -> LatticeGaussian:
        return LatticeGaussian(epsilon, self.mechanism.delta, self.dim, self.mechanism.clip_norm)


class SubsetSampler(Sampler):
    """Exact integer sampling for finite mechanisms, whose set of symbols is all that the sampler sees of a row.

    ``codewords`` are those that the sets were chosen by, ``codebook`` the rows that stand for the symbols; a codebook
    of two levels is stored as its levels, and its symbols stand for their codewords.
    """

    def __init__(self, mechanism: Any, dim: int) -> None:
        super().__init__(mechanism, dim)
        self._finite = mechanism
        codebook = mechanism.codewords
        if codebook.columns != dim:
            raise ValueError(
                f"rows have {dim} columns, the codebook has {codebook.columns}. "
                "Fit it on features of the same model and transform."
            )
        self.arrays = codebook.arrays()
        if "codewords" in self.arrays or not mechanism.decodes_to_codewords:
            self.arrays["codebook"] = self._decoder(mechanism.decoder)

    def charge(self, epsilon: float) -> Charge:
        """Return the cost of a pure release.

        Raises:
            ValueError: an epsilon beyond which the exact sampler draws for minutes, and protects nothing.
        """
        if epsilon > _MOST_EPSILON:
            raise ValueError(
                f"epsilon is {epsilon:g}, must be <= {_MOST_EPSILON:g} for a mechanism that samples symbols exactly: "
                "long before that every row gets its own symbol. Use a smaller one."
            )
        return Charge(epsilon, 0.0)

    @staticmethod
    def _decoder(rows: Floats) -> np.ndarray:
        with np.errstate(over="ignore"):
            single = rows.astype(np.float32)
        if not np.isfinite(single).all():
            raise ValueError(
                f"the decoder of the codebook holds numbers up to {np.abs(rows).max():g}, which float32 does not. Fit "
                "it on features of ordinary size."
            )
        return single

    def draw(self, rows: Floats, epsilon: float) -> dict[str, np.ndarray]:
        """Return ``symbols``, int64."""
        count = len(self._finite.codewords)
        parts = [np.empty(0, np.int64)]
        for start in range(0, len(rows), _ROWS_A_CALL):
            members = self._finite.members(torch.from_numpy(rows[start : start + _ROWS_A_CALL])).cpu().numpy()
            parts.append(sample_subset(members, count, epsilon, Entropy()))
        return {"symbols": np.concatenate(parts)}


def release_sampler(mechanism: Mechanism, dim: int) -> Sampler:
    """Return the sampler of ``mechanism`` for rows of ``dim`` numbers.

    Raises:
        ValueError: a mechanism that has research noise only.
    """
    if mechanism.name == "gaussian":
        return GaussianSampler(mechanism, dim)
    if all(hasattr(mechanism, name) for name in ("members", "set_size", "codewords", "decoder")):
        return SubsetSampler(mechanism, dim)
    raise ValueError(
        f"mechanism {mechanism.name!r} is research only: no sampler of it is proved safe in floating point. "
        "Release with 'gaussian' or a finite mechanism ('codebook', 'prior_subset')."
    )
