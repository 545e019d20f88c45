r"""Codebook releases in few bytes a row: symbols, and scores by looking them up.

The score of a row is the cosine of the query with what its symbol stands for, so one table of M cosines a query serves
all rows. For a codebook of levels the table is made from the products with the levels alone
(:meth:`.LevelCodebook.cosines`): 92 products make 279,841 scores.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp.arrays import directions
from ppreid_plugin.dp.codebooks import codebook_from_arrays

Floats = npt.NDArray[np.float64]
Symbols = npt.NDArray[np.int64]

_PREFIXES = ("codebook", "codewords", "codeword_")


class SymbolTable:
    """What the symbols of a release stand for.

    Args:
        arrays: of the release: ``codebook`` (M, d), the row of each symbol, or the arrays of a structured codebook.

    Attributes:
        size: M.
        columns: d.
        bytes_a_symbol: 1 up to 256 codewords, 2 up to 65,536, 3 up to 16,777,216, 4 above.

    Raises:
        ValueError: there is no codebook among the arrays.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._codebook = codebook_from_arrays(arrays)
        self._decoder: torch.Tensor | None = None
        if "codebook" in arrays:
            self._decoder = directions(torch.from_numpy(arrays["codebook"].astype(np.float64)))[0]
        self.size, self.columns = len(self._codebook), self._codebook.columns
        self.bytes_a_symbol = bytes_for(self.size)

    @staticmethod
    def arrays_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return those of a release's arrays that a table is made from."""
        return {name: array for name, array in arrays.items() if name.startswith(_PREFIXES)}

    def scores(self, queries: Floats) -> Floats:
        """Return the cosine of each query of unit length with each symbol: (q, d) -> (q, M)."""
        rows = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float64))
        table = rows @ self._decoder.T if self._decoder is not None else self._codebook.cosines(rows)
        return np.asarray(table.numpy(), dtype=np.float64)

    def rows(self, symbols: Symbols) -> Floats:
        """Return what symbols stand for, unit length: (n,) -> (n, d)."""
        if self._decoder is not None:
            return np.asarray(self._decoder.numpy()[symbols])
        return np.asarray(directions(torch.from_numpy(self._codebook.rows(symbols)))[0].numpy())

    def packed(self, symbols: Symbols) -> npt.NDArray[np.uint8]:
        """Return symbols as bytes, lowest first: (n,) -> (n, bytes_a_symbol)."""
        wide = symbols.astype("<u4").view(np.uint8).reshape(-1, 4)
        return np.ascontiguousarray(wide[:, : self.bytes_a_symbol])

    def unpacked(self, packed: npt.NDArray[np.uint8]) -> Symbols:
        """Return the symbols of :meth:`packed` bytes: (n, bytes_a_symbol) -> (n,)."""
        wide = np.zeros((len(packed), 4), dtype=np.uint8)
        wide[:, : packed.shape[1]] = packed
        return wide.view("<u4")[:, 0].astype(np.int64)


def bytes_for(size: int) -> int:
    """Return how many bytes hold a number below ``size``.

    Example:
        >>> [bytes_for(size) for size in (2, 256, 257, 279_841)]
        [1, 1, 2, 3]
    """
    return max(1, -(-(size - 1).bit_length() // 8))


def postings(symbols: Symbols, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return row numbers sorted by symbol (rising within one), (n,), and where each symbol's begin, (size + 1,).

    Example:
        >>> rows, starts = postings(np.array([2, 0, 2]), 3)
        >>> rows.tolist(), starts.tolist()
        ([1, 0, 2], [0, 1, 1, 3])
    """
    starts = np.concatenate([[0], np.cumsum(np.bincount(symbols, minlength=size))])
    return np.argsort(symbols, kind="stable"), starts


def best_rows(
    table: Floats, rows: npt.NDArray[np.integer], starts: npt.NDArray[np.int64], top: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the ``top`` best rows of one query, by reading those of its best symbols only.

    Args:
        table: (M,), the query's score with each symbol.
        rows: (n,), row numbers sorted by symbol; may be memory-mapped.
        starts: (M + 1,), where in ``rows`` each symbol's begin.
        top: how many.

    Returns:
        Scores, falling, and row numbers; equal scores by rising row number, across symbols too.
    """
    counts = np.diff(starts)
    present = np.flatnonzero(counts)
    order = present[np.argsort(-table[present], kind="stable")]
    reached = np.cumsum(counts[order])
    last = min(int(np.searchsorted(reached, top)), len(order) - 1)
    chosen = order[table[order] >= table[order[last]]]  # those that tie with the last one too
    numbers = np.concatenate([np.asarray(rows[starts[one] : starts[one + 1]], dtype=np.int64) for one in chosen])
    scores = np.repeat(table[chosen], counts[chosen])
    ranked = np.lexsort((numbers, -scores))[:top]
    return scores[ranked], numbers[ranked]
