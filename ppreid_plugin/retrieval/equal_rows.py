"""Rows that are equal bit for bit, as in a gallery released by a codebook: their scores have to tie.

A matrix product does not see to that: BLAS rounds a column otherwise in the middle of its tiles than at their edge, and
few queries otherwise than many. So equal rows are found once, by a checksum of their first columns and then, where that
repeats, of all, and take the score of the first of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.retrieval.checks import IntArray

_AT_ONCE = 2**20  # numbers
_PROBED = 16  # columns, a cache line: of features that are no codewords next to no row repeats another's


class EqualRows:
    """The rows of a matrix that repeat an earlier one.

    Args:
        matrix: (n, d), float32 or float64.

    Attributes:
        later: (k,), places of rows that repeat an earlier one.
        first: (k,), place of the first of each one's kind.

    Example:
        >>> equal = EqualRows(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
        >>> equal.later.tolist(), equal.first.tolist()
        ([2], [0])
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        _, kinds, counts = np.unique(
            _checksums(matrix[:, :_PROBED], np.arange(len(matrix))), return_inverse=True, return_counts=True
        )
        repeated = np.flatnonzero(counts[kinds] > 1)
        _, places, kinds = np.unique(_checksums(matrix, repeated), return_index=True, return_inverse=True)
        first = np.arange(len(matrix))
        first[repeated] = repeated[places[kinds]]
        later = np.flatnonzero(first != np.arange(len(matrix)))
        step = max(1, _AT_ONCE // matrix.shape[1])
        really = [  # two checksums may agree by chance
            (matrix[later[start : start + step]] == matrix[first[later[start : start + step]]]).all(dim=1).cpu().numpy()
            for start in range(0, len(later), step)
        ]
        self.later: IntArray = later[np.concatenate(really)] if really else later
        self.first: IntArray = first[self.later]

    def tie(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Give equal rows equal scores, in place: (q, n), returned."""
        step = max(1, _AT_ONCE // max(1, len(scores)))  # what is copied at a time stays small beside the scores
        for start in range(0, len(self.later), step):
            span = slice(start, start + step)
            scores[:, self.later[span]] = scores[:, self.first[span]]
        return scores


def _checksums(matrix: torch.Tensor, rows: IntArray) -> IntArray:
    """Return a number for each of these rows, (k,), that is the same for equal rows, and hardly ever for others."""
    words = torch.int32 if matrix.element_size() == 4 else torch.int64
    odd = np.random.default_rng(0).integers(2**62, size=matrix.shape[1]) * 2 + 1
    weights = torch.from_numpy(odd).to(matrix.device)
    parts = torch.from_numpy(rows).to(matrix.device).split(max(1, _AT_ONCE // max(1, matrix.shape[1])))
    sums = [(matrix[part].view(words).long() * weights).sum(dim=1) for part in parts]
    return torch.cat(sums).cpu().numpy() if sums else rows
