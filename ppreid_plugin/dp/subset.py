r"""Mechanisms with finitely many outputs: a row is released as one symbol of a public codebook.

The K codewords nearest to a row are its set S(x). A symbol s is released with probability

.. math:: P(s | x) = e^\varepsilon / Z \ \text{if}\ s \in S(x), \quad 1 / Z \ \text{otherwise}, \qquad
          Z = K e^\varepsilon + M - K.

Z is the same for every row because every set has exactly K symbols; so P(s | x) / P(s | y) is :math:`e^{-\varepsilon}`,
1 or :math:`e^\varepsilon`, which is pure epsilon-DP for any two rows and any codebook, nearest or not. The codebook and
the decoder have to be public: fitted on other people (:mod:`.prior`), never on the gallery that is released.

K = 1 is randomized response over M values. The definition of larger sets for Re-ID features is ours; on all values it
is the subset selection of Ye and Barg, arXiv 1702.00610.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from typing_extensions import Self

from ppreid_plugin.dp import arrays
from ppreid_plugin.dp.codebooks import Codebook, Codewords, as_codebook, checked_rows
from ppreid_plugin.dp.mechanisms import Mechanism, register_mechanism
from ppreid_plugin.dp.noise import Generator, ResearchNoise

# cosines are rounded to this many steps per unit: closer ones are equal, whatever order they are summed in
_TIE = 2.0**40


@register_mechanism("prior_subset")
class PriorSubset(Mechanism):
    r"""Releases one symbol, e^epsilon times as likely in the set of the K codewords nearest to the row as outside.

    Nearest by cosine; ties (closer than 1e-12) go to the lowest index. A zero row has cosine 0 with every codeword, so
    its set is the first K codewords: fixed and public. The output row is ``decoder[symbol]``.

    Args:
        epsilon: budget of one row under *replace* adjacency, > 0; any size, K e^epsilon never overflows.
        delta: None or 0.
        clip_norm: checked and not used, so that a config can switch mechanisms by name alone: cosines know no length.
        codebook: public codewords, (M, d), M >= 2, finite, none of them zero; or a :class:`.codebooks.Codebook`.
        set_size: K, 1 to M - 1. With K = M every symbol would be equally likely for every row, a release of nothing;
            that is refused.
        decoder: public rows that stand for the symbols, (M, d); None: the codewords themselves.

    Attributes:
        codewords: the :class:`.codebooks.Codebook`.
        codebook, decoder: float64 arrays (M, d), read-only.

    Raises:
        ValueError: a number out of range, or a codebook or decoder of the wrong shape or not finite.

    Guarantee:
        epsilon-DP for one row (delta 0); k rows of one person compose to k epsilon, or see
        :func:`.composition.compose`. Exact for the probabilities of :meth:`symbol_probabilities`; the draw is float
        research noise. Does not hide n, pids, camids or row order, nor the people that the codebook was fitted to.

    Example:
        >>> mechanism = PriorSubset(epsilon=2.0, codebook=np.eye(3), set_size=2)
        >>> mechanism.symbol_probabilities(np.array([[0.1, 0.9, 0.8]])).round(3)
        array([[0.063, 0.468, 0.468]])
    """

    name = "prior_subset"
    pure = True

    def __init__(
        self,
        epsilon: float,
        delta: float | None = None,
        clip_norm: float = 1.0,
        codebook: Codebook | Codewords | None = None,
        set_size: int = 1,
        decoder: Codewords | None = None,
    ) -> None:
        super().__init__(epsilon, delta, clip_norm)
        if codebook is None:
            raise ValueError(
                f"mechanism {self.name!r} needs codebook=(M, d), public codewords. Make one with fit_prior."
            )
        self.codewords = as_codebook(codebook)
        self._decoder = None if decoder is None else checked_rows("decoder", decoder)
        if self._decoder is not None and self._decoder.shape != (len(self.codewords), self.codewords.columns):
            raise ValueError(
                f"decoder has shape {self._decoder.shape}, must be that of the codebook, "
                f"{(len(self.codewords), self.codewords.columns)}."
            )
        self.set_size = check_set_size(set_size, len(self.codewords))
        inside, outside = math.log(self.set_size) + self.epsilon, math.log(len(self.codewords) - self.set_size)
        self.outside = float(expit(outside - inside))
        log_z = float(np.logaddexp(inside, outside))
        self._probabilities = math.exp(-log_z), math.exp(self.epsilon - log_z)

    @property
    def codebook(self) -> npt.NDArray[np.float64]:
        """The codewords as one array, (M, d)."""
        rows = self.codewords.rows(np.arange(len(self.codewords)))
        rows.flags.writeable = False
        return rows

    @property
    def decoder(self) -> npt.NDArray[np.float64]:
        """The rows that stand for the symbols, (M, d)."""
        return self.codebook if self._decoder is None else self._decoder

    @property
    def decodes_to_codewords(self) -> bool:
        """Whether each symbol stands for its own codeword."""
        return self._decoder is None

    def decode(self, symbols: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the rows that stand for these symbols: (n,) -> (n, d)."""
        return self.codewords.rows(symbols) if self._decoder is None else self._decoder[symbols]

    def symbols(self, features: np.ndarray | torch.Tensor, *, generator: Generator = None) -> npt.NDArray[np.int64]:
        """Return one random symbol a row: (n, d) -> (n,), 0 to M - 1.

        Args:
            features: float16, float32 or float64, numpy or torch.
            generator: None draws fresh noise that no seed controls; a numpy or torch generator makes it reproducible.

        Raises:
            ValueError: wrong shape or type; NaN or infinity (rows are named).
            TypeError: ``generator`` is not a generator.
        """
        rows, _ = arrays.to_rows(features)
        return self._draw(rows, ResearchNoise(generator, rows.device)).cpu().numpy()

    def symbol_probabilities(self, features: np.ndarray | torch.Tensor) -> npt.NDArray[np.float64]:
        """Return the probability of every symbol for every row: (n, d) -> (n, M). This is what the proof is about.

        Raises:
            ValueError: wrong shape or type; NaN or infinity (rows are named).
        """
        rows, _ = arrays.to_rows(features)
        self._require_columns(rows)
        result = np.full((len(rows), len(self.codewords)), self._probabilities[0])
        np.put_along_axis(result, self.members(rows).cpu().numpy(), self._probabilities[1], axis=1)
        return result

    def marginal(self, features: np.ndarray | torch.Tensor) -> npt.NDArray[np.float64]:
        """Return the mean over the rows of :meth:`symbol_probabilities`, without making it: (n, d) -> (M,).

        Raises:
            ValueError: wrong shape or type; NaN or infinity (rows are named).
        """
        rows, _ = arrays.to_rows(features)
        held = np.bincount(self.members(rows).cpu().numpy().ravel(), minlength=len(self.codewords)) / len(rows)
        outside, inside = self._probabilities
        return outside + (inside - outside) * held

    def expected(
        self, features: np.ndarray | torch.Tensor, weights: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Return the mean of ``weights`` (M,) over each row's symbol, without all probabilities: (n, d) -> (n,).

        Raises:
            ValueError: wrong shape or type; NaN or infinity (rows are named).
        """
        rows, _ = arrays.to_rows(features)
        outside, inside = self._probabilities
        return outside * weights.sum() + (inside - outside) * weights[self.members(rows).cpu().numpy()].sum(axis=1)

    def prepare(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows as they are: their length does not matter."""
        return rows

    def randomize(self, rows: torch.Tensor, noise: ResearchNoise) -> torch.Tensor:
        """Draw symbols and look them up."""
        return torch.from_numpy(self.decode(self._draw(rows, noise).cpu().numpy())).to(rows)

    def members(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the symbols of each row's set, ascending: (n, d) -> (n, K), int64."""
        self._require_columns(rows)
        result = torch.empty(len(rows), self.set_size, dtype=torch.int64, device=rows.device)
        for span in self._spans(rows):
            cosines = self.codewords.cosines(arrays.directions(rows[span].double())[0]).mul_(_TIE).round_()
            if self.set_size == 1:
                result[span, 0] = cosines.argmax(dim=1)  # of equal ones the first
                continue
            near = torch.topk(cosines, self.set_size, dim=1, sorted=False)
            least = near.values.min(dim=1, keepdim=True).values
            tied = (cosines == least).sum(dim=1) != (near.values == least).sum(dim=1)  # some at the edge are left out
            chosen = near.indices
            if tied.any():
                chosen[tied] = _lowest_first(cosines[tied], least[tied], self.set_size)
            result[span] = chosen.sort(dim=1).values
        return result

    def sets(self, rows: torch.Tensor) -> torch.Tensor:
        """Return which symbols are in each row's set: (n, d) -> (n, M), bool, exactly K true in every row."""
        marked = torch.zeros(len(rows), len(self.codewords), dtype=torch.bool, device=rows.device)
        return marked.scatter_(1, self.members(rows), True)

    def describe(self) -> dict[str, Any]:
        """Return what was done: sizes and probabilities; the codebook is an array of its own."""
        return {
            **super().describe(),
            "clip_norm": None,
            "sensitivity": None,
            "codewords": len(self.codewords),
            "columns": self.codewords.columns,
            "set_size": self.set_size,
            "probability_in_set": 1 - self.outside,
        }

    def with_codebook(self, codebook: Codebook | Codewords, decoder: Codewords | None = None) -> Self:
        """Return the same mechanism with another codebook of the same size, and rows that stand for its symbols."""
        return type(self)(self.epsilon, None, self.clip_norm, codebook, self.set_size, decoder)

    def draw_members(self, members: npt.NDArray[np.int64], noise: ResearchNoise) -> npt.NDArray[np.int64]:
        """Return one symbol a row, (n,), given the symbols of each row's set, ascending, (n, K)."""
        count = len(members)
        outside = noise.uniform(count) <= self.outside
        sizes = np.where(outside, len(self.codewords) - self.set_size, self.set_size)
        place = np.clip(np.ceil(noise.uniform(count) * sizes).astype(np.int64) - 1, 0, sizes - 1)
        inside = np.take_along_axis(members, np.minimum(place, self.set_size - 1)[:, None], axis=1)[:, 0]
        # the place-th symbol that is not in the set: members up to it push it on
        before = np.empty(count, dtype=np.int64)
        for span in arrays.row_chunks(torch.from_numpy(members)):
            before[span] = (members[span] - np.arange(self.set_size) <= place[span, None]).sum(axis=1)
        return np.where(outside, place + before, inside)

    def _draw(self, rows: torch.Tensor, noise: ResearchNoise) -> torch.Tensor:
        drawn = self.draw_members(self.members(rows).cpu().numpy(), noise)
        return torch.from_numpy(drawn).to(rows.device)

    def _spans(self, rows: torch.Tensor) -> list[slice]:
        step = max(1, 8 * arrays.CHUNK_ELEMENTS // max(len(self.codewords), self.codewords.columns))
        return [slice(start, start + step) for start in range(0, len(rows), step)]

    def _require_columns(self, rows: torch.Tensor) -> None:
        if rows.shape[1] != self.codewords.columns:
            raise ValueError(
                f"features have {rows.shape[1]} columns, the codebook has {self.codewords.columns}. "
                "Fit it on features of the same model and transform."
            )


@register_mechanism("codebook")
class CodebookMechanism(PriorSubset):
    r"""Randomized response over a codebook: the nearest codeword with probability e^epsilon / Z, else any other one.

    :class:`PriorSubset` with K = 1, so :math:`Z = e^\varepsilon + M - 1`; arguments and guarantee as there.

    Source:
        Kairouz, Oh and Viswanath, JMLR 2016, arXiv 1407.1338 (k-ary randomized response).

    Example:
        >>> round(1 - CodebookMechanism(epsilon=8.0, codebook=np.eye(1024)).outside, 3)
        0.745
    """

    name = "codebook"

    def __init__(
        self,
        epsilon: float,
        delta: float | None = None,
        clip_norm: float = 1.0,
        codebook: Codebook | Codewords | None = None,
        decoder: Codewords | None = None,
    ) -> None:
        super().__init__(epsilon, delta, clip_norm, codebook, 1, decoder)

    def with_codebook(self, codebook: Codebook | Codewords, decoder: Codewords | None = None) -> Self:
        """Return the same mechanism with another codebook."""
        return type(self)(self.epsilon, None, self.clip_norm, codebook, decoder)


def _lowest_first(cosines: torch.Tensor, least: torch.Tensor, size: int) -> torch.Tensor:
    """Return the K symbols above ``least``, and of those at it the lowest: (n, M), (n, 1) -> (n, K)."""
    above, ties = cosines > least, cosines == least
    room = size - above.sum(dim=1, keepdim=True)
    return (above | (ties & (ties.cumsum(dim=1) <= room))).nonzero()[:, 1].reshape(-1, size)


def check_set_size(set_size: object, codewords: int) -> int:
    """Return the number of codewords in a row's set.

    Raises:
        ValueError: no whole number from 1 to one less than all codewords.
    """
    if isinstance(set_size, (int, np.integer)) and not isinstance(set_size, bool) and 1 <= set_size < codewords:
        return int(set_size)
    raise ValueError(
        f"set_size is {set_size!r}, must be 1 to {codewords - 1}: with all {codewords} codewords in every set each "
        "symbol would be equally likely and the release would say nothing."
    )
