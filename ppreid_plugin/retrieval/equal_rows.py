"""Rows that are equal bit for bit, as in a gallery released by a codebook: their scores have to tie.

A matrix product does not see to that: BLAS rounds a column otherwise in the middle of its tiles than at their edge, and
few queries otherwise than many. So equal rows are found once, by a checksum of their first columns and then, where that
repeats, of all, and take the score of the first of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.retrieval.checks import IntArray, rows_at_once

_PROBED = 16  # columns, a cache line: of features that are no codewords next to no row repeats another's


class EqualRows:
    """The rows of a matrix that repeat an earlier one.

    Args:
        matrix: (n, d), float32 or float64.

    Attributes:
        later: (k,), places of rows that repeat an earlier one.
        first: (k,), place of the first of each one's kind.
        kinds: (c,), places of the rows that later ones repeat.

    Example:
        >>> equal = EqualRows(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
        >>> equal.later.tolist(), equal.first.tolist()
        ([2], [0])
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        first = _first_alike_on_device(matrix) if matrix.is_cuda else _first_alike(matrix)
        later = np.flatnonzero(first != np.arange(len(matrix)))
        step = rows_at_once(matrix.shape[1])
        really = [  # two checksums may agree by chance
            (matrix[later[start : start + step]] == matrix[first[later[start : start + step]]]).all(dim=1).cpu().numpy()
            for start in range(0, len(later), step)
        ]
        self.later: IntArray = later[np.concatenate(really)] if really else later
        self.first: IntArray = first[self.later]
        self.kinds: IntArray = np.unique(self.first)
        self._tensors: tuple[torch.Tensor, torch.Tensor] | None = None

    def tie(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Give equal rows equal scores, in place: (q, n), returned."""
        step = rows_at_once(len(scores))
        for start in range(0, len(self.later), step):
            span = slice(start, start + step)
            scores[:, self.later[span]] = scores[:, self.first[span]]
        return scores

    def tie_tensor(self, scores: torch.Tensor) -> torch.Tensor:
        """Do what :meth:`tie` does to a tensor, on its device."""
        if len(self.later) == 0:
            return scores
        if not scores.is_cuda:
            self.tie(scores.numpy())  # the same memory
            return scores
        if self._tensors is None:
            self._tensors = (
                torch.from_numpy(self.later).to(scores.device),
                torch.from_numpy(self.first).to(scores.device),
            )
        step = rows_at_once(len(scores), on_device=True)
        for later, first in zip(*(part.split(step) for part in self._tensors), strict=True):
            scores[:, later] = scores[:, first]
        return scores


def _first_alike(matrix: torch.Tensor) -> IntArray:
    """Return for each row the first one with its checksum, (n,)."""
    first, begins = np.arange(len(matrix)), matrix[:, :_PROBED]
    begun = torch.cat([_sums(part) for part in begins.split(rows_at_once(_PROBED))]).cpu().numpy()
    ordered = np.sort(begun)
    if not (ordered[1:] == ordered[:-1]).any():
        return first
    _, kinds, counts = np.unique(begun, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[kinds] > 1)
    _, places, kinds = np.unique(_checksums(matrix, repeated), return_index=True, return_inverse=True)
    first[repeated] = repeated[places[kinds]]
    return first


def _first_alike_on_device(matrix: torch.Tensor) -> IntArray:
    """Do what :func:`_first_alike` does where the matrix is: one number comes back if no row begins as another does."""
    every = torch.arange(len(matrix), device=matrix.device)
    begun = torch.sort(_sums(matrix[:, :_PROBED])).values
    if not bool((begun[1:] == begun[:-1]).any()):
        return np.arange(len(matrix))
    step = rows_at_once(matrix.shape[1], on_device=True)
    sums, order = torch.sort(torch.cat([_sums(part) for part in matrix.split(step)]), stable=True)
    new = torch.ones(len(sums), dtype=torch.bool, device=matrix.device)
    torch.ne(sums[1:], sums[:-1], out=new[1:])
    start = torch.where(new, every, 0).cummax(0).values
    first = torch.empty_like(order)
    first[order] = order[start]
    return first.cpu().numpy()


def _checksums(matrix: torch.Tensor, rows: IntArray) -> IntArray:
    """Return a number for each of these rows, (k,), that is the same for equal rows, and hardly ever for others."""
    parts = torch.from_numpy(rows).to(matrix.device).split(rows_at_once(matrix.shape[1]))
    sums = [_sums(matrix[part]) for part in parts]
    return torch.cat(sums).cpu().numpy() if sums else rows


def _sums(rows: torch.Tensor) -> torch.Tensor:
    words = torch.int32 if rows.element_size() == 4 else torch.int64
    odd = np.random.default_rng(0).integers(2**62, size=rows.shape[1]) * 2 + 1
    rows = rows + 0.0  # -0 is 0
    return (rows.view(words).long() * torch.from_numpy(odd).to(rows.device)).sum(dim=1)
