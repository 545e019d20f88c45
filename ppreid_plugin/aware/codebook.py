r"""A residual codebook that learns with the encoder, for mechanisms that release one symbol of a codebook.

A symbol is one vector of each level; its codeword is the direction of their sum, as in stage 2's ``residual`` prior,
from which it starts. A row's symbol is the codeword nearest by cosine, as the mechanism's is; the gradient is that of
a softmax over the nearest codewords (straight through, Bengio et al. 2013, arXiv 1308.3432; the quantizer with its two
losses is that of van den Oord et al. 2017, arXiv 1711.00937; the codebook of sums, and training it for a release, is
ours).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional as F

from ..dp.codebooks import LevelCodebook, level_sizes, residual_codebook
from ..number_checks import require_positive

_NEIGHBORS = 64  # codewords that a row's soft assignment looks at
_USAGE_MOMENTUM = 0.9  # use is watched over about ten batches: one holds too few people to need every vector


class Assignment(NamedTuple):
    """Rows assigned to codewords.

    Attributes:
        symbols: (B, k), the nearest codewords, nearest first.
        vectors: (B, k, d), these codewords, unit length, with their graph.
        weights: (B, k), soft assignment, rows sum to 1, with its graph.
    """

    symbols: Tensor
    vectors: Tensor
    weights: Tensor


class LearnedCodebook(nn.Module):
    """M codewords of d columns from levels of learned vectors; the last level's number runs fastest.

    Args:
        codewords: M; it needs as many factors >= 2 as there are levels.
        levels: how many.
        columns: d.
        temperature: of the soft assignment, in cosines, > 0.

    Raises:
        ValueError: a number out of range.
    """

    usage: Tensor
    started: Tensor
    batches: Tensor

    def __init__(self, codewords: int, levels: int, columns: int, temperature: float) -> None:
        super().__init__()
        require_positive("codebook temperature", temperature, hint="such as 0.05")
        self.sizes = checked_sizes(codewords, levels)
        self.temperature = temperature
        self.levels = nn.ParameterList([torch.zeros(size, columns) for size in self.sizes])
        self.register_buffer("usage", torch.cat([torch.full((size,), 1.0 / size) for size in self.sizes]))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))  # whose usage was counted

    def __len__(self) -> int:
        return math.prod(self.sizes)

    @torch.no_grad()
    def start(self, rows: Tensor, seed: int) -> None:
        """Fit the levels to unit rows (n, d), n at least the largest level, as stage 2 fits a residual prior."""
        unit = rows.double().cpu().numpy()
        fitted = residual_codebook(unit, np.zeros(len(unit), dtype=np.int64), len(self), seed, len(self.sizes))
        for number, level in enumerate(self.levels):
            level.copy_(torch.tensor(fitted.codebook.arrays()[f"codeword_level_{number}"]))
        self.started.fill_(True)

    def released(self) -> LevelCodebook:
        """Return the codebook as stage 2 takes it: ``DPGallery(..., options={"codebook": codebook.released()})``."""
        return LevelCodebook(*(level.detach().cpu() for level in self.levels))

    def rows(self, symbols: Tensor) -> Tensor:
        """Return codewords, (...) -> (..., d), unit length."""
        places = self._places(symbols)
        return F.normalize(sum(level[place] for level, place in zip(self.levels, places, strict=True)), dim=-1)

    @torch.no_grad()
    def nearest(self, unit: Tensor, count: int) -> Tensor:
        """Return the symbols of the nearest codewords by cosine, nearest first: (B, d) -> (B, count)."""
        squares = unit.new_zeros(1)
        products = unit.new_zeros(len(unit), 1)
        sums = unit.new_zeros(1, unit.shape[1])
        for level in self.levels:
            cross = sums @ level.T
            squares = (squares[:, None] + 2 * cross + level.square().sum(1)).flatten()
            products = (products[:, :, None] + (unit @ level.T)[:, None]).flatten(1)
            if level is not self.levels[-1]:
                sums = (sums[:, None] + level).flatten(0, 1)
        cosines = products * squares.clamp_min(1e-12).rsqrt()
        return cosines.topk(count, dim=1).indices

    def assign(self, unit: Tensor, set_size: int = 1) -> Assignment:
        """Assign unit rows (B, d) to their nearest codewords, at least set_size; gradients reach rows and levels."""
        symbols = self.nearest(unit, min(max(_NEIGHBORS, set_size), len(self)))
        vectors = self.rows(symbols)
        cosines = torch.einsum("bd,bkd->bk", unit, vectors)
        return Assignment(symbols, vectors, torch.softmax(cosines / self.temperature, dim=1))

    def usage_gap(self, assigned: Assignment) -> Tensor:
        r"""Return how far a batch is from using the levels' vectors alike: 0 alike, 1 only one vector of each level.

        .. math:: G = 1 - \sum_l H(p_l) / \sum_l \log \min(M_l, B)

        with p the mean soft assignment to the vectors of a level and H its entropy. The batch alone counts: against an
        average over batches all rows would chase the vectors that were used least.
        """
        entropies, shares = [], []
        for size, place in zip(self.sizes, self._places(assigned.symbols), strict=True):
            share = assigned.weights.new_zeros(size).index_add(0, place.flatten(), assigned.weights.flatten())
            shares.append(share / len(place))
            entropies.append(_entropy(shares[-1]))
        self.usage.lerp_(torch.cat(shares).detach().to(self.usage), 1 - _USAGE_MOMENTUM)
        self.batches += 1
        most = sum(math.log(min(size, max(2, len(assigned.symbols)))) for size in self.sizes)
        return 1 - torch.stack(entropies).sum() / most

    @torch.no_grad()
    def used(self) -> float:
        """Return the entropy of the levels' use over the last batches as a share of the largest, 0 to 1."""
        entropies = [_entropy(share) for share in self.usage.split(list(self.sizes))]
        return float(sum(entropies)) / sum(map(math.log, self.sizes))

    def _places(self, symbols: Tensor) -> list[Tensor]:
        places = []
        for size in reversed(self.sizes):
            places.append(symbols % size)
            symbols = symbols // size
        return places[::-1]


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp_min(1e-12).log()).sum()


def set_mean(assigned: Assignment, set_size: int) -> Tensor:
    """Return the mean of each row's set_size nearest codewords, (B, d), with the gradient of the soft assignment."""
    soft = torch.einsum("bk,bkd->bd", assigned.weights, assigned.vectors)
    hard = assigned.vectors[:, :set_size].mean(1)
    return soft + (hard - soft).detach()


def expected_gain(epsilon: float, codewords: int, set_size: int) -> tuple[float, float]:
    r"""Return g and r of the mean released row, :math:`E[v | x] = g \bar w_{S(x)} + r \sum_s w_s`.

    :math:`\bar w_{S(x)}` is the mean codeword of the row's set S(x) of K symbols. With
    :math:`Z = K e^\varepsilon + M - K`, :math:`g = K (e^\varepsilon - 1) / Z` and :math:`r = 1 / Z`.

    Args:
        epsilon: budget of one row, > 0.
        codewords: M.
        set_size: K, 1 to M - 1.

    Raises:
        ValueError: a number out of range.
    """
    if not epsilon > 0 or not 1 <= set_size < codewords:
        raise ValueError(
            f"epsilon is {epsilon} and set_size {set_size} of {codewords} codewords; must be > 0 and 1 to "
            f"{codewords - 1}."
        )
    others = codewords - set_size
    outside = float(expit(math.log(others) - math.log(set_size) - epsilon))
    return 1 - outside - set_size * outside / others, outside / others


def checked_sizes(codewords: int, levels: int) -> tuple[int, ...]:
    """Return the sizes of the levels.

    Raises:
        ValueError: no two codewords, or too few factors.
    """
    sizes = level_sizes(codewords, levels) if codewords >= 2 and levels >= 1 else (0,)
    if min(sizes) < 2:
        raise ValueError(
            f"codewords is {codewords} with {levels} levels, which does not split into levels of two vectors or more. "
            f"Take a power of the number of levels such as {32**2} with 2."
        )
    return sizes
