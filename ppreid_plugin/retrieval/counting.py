"""Ranks without sorting the gallery: the rank of a positive is one more than the number of gallery rows above it.

A stable descending sort puts row j above row p if its score is larger, or equal with j < p. Split the row of scores
at p and both cases are one comparison each: ``>=`` to the left of p, ``>`` from p on. Rows below a
query's last positive are left out first, and where few rows are left, these few are sorted. Our own formulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ppreid_plugin.retrieval.checks import IntArray

# Rows a positive below which one stable sort of the rows costs less than one count a positive (measured, one x86 core).
SORT_BELOW = 40


class Candidates(NamedTuple):
    """One query's rows of its own pid, as ascending gallery indices.

    ``positives`` count as matches; ``ignored`` (same pid, same camera) are taken out of the list.
    """

    positives: IntArray
    ignored: IntArray


class Matches:
    """Finds each query's :class:`Candidates`. Labels only; looks up, never scans.

    Args:
        query_pids, query_camids: (num_query,).
        gallery_pids, gallery_camids: (num_gallery,).
        exclude_same_camera: take gallery rows of the query's own pid and camera out of its list.
    """

    def __init__(
        self,
        query_pids: IntArray,
        gallery_pids: IntArray,
        query_camids: IntArray,
        gallery_camids: IntArray,
        *,
        exclude_same_camera: bool,
    ) -> None:
        self.gallery_pids = gallery_pids
        self._by_pid = np.argsort(gallery_pids, kind="stable")
        self._camids = gallery_camids[self._by_pid]
        ordered = gallery_pids[self._by_pid]
        self._start = np.searchsorted(ordered, query_pids, side="left")
        self._stop = np.searchsorted(ordered, query_pids, side="right")
        self._query_camids = query_camids
        self._exclude = exclude_same_camera

    @property
    def any_shared_pid(self) -> bool:
        """Whether any query's pid is in the gallery at all, whatever the camera."""
        return bool((self._stop > self._start).any())

    def of(self, query: int) -> Candidates:
        """Return the candidates of query number ``query``."""
        span = slice(self._start[query], self._stop[query])
        rows = self._by_pid[span]
        if not self._exclude:
            return Candidates(rows, rows[:0])
        same_camera = self._camids[span] == self._query_camids[query]
        return Candidates(rows[~same_camera], rows[same_camera])


def positive_ranks(
    chunks: Iterable[tuple[int, npt.NDArray[np.floating]]],
    matches: Matches,
    also: Callable[[npt.NDArray[np.floating], IntArray], None] | None = None,
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield for each query with a match the ranks of its positives, from 1, in gallery order (not sorted).

    Args:
        chunks: (number of the first query, scores of shape (queries, num_gallery), larger = closer, no NaN). The
            scores are overwritten.
        matches: whose rows count.
        also: called with each such query's row of scores, NaN where a gallery row is not in the list, and positives.
    """
    above: npt.NDArray[np.bool_] = np.empty(0, dtype=bool)
    for first, scores in chunks:
        if len(above) != scores.shape[1]:
            above = np.empty(scores.shape[1], dtype=bool)
        for offset, row in enumerate(scores):
            positives, ignored = matches.of(first + offset)
            if not len(positives):
                continue
            row[ignored] = np.nan  # NaN is above nothing, so these rows are never counted
            if also is not None:
                also(row, positives)
            yield _ranks_of(row, positives, above)


def _ranks_of(
    row: npt.NDArray[np.floating], positives: IntArray, above: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    np.greater_equal(row, row[positives].min(), out=above)
    if 2 * np.count_nonzero(above) < len(row):  # rows below the last positive are above none: leave them out
        reached = np.flatnonzero(above)
        row, positives, above = row[reached], np.searchsorted(reached, positives), above[: len(reached)]
    if len(row) <= SORT_BELOW * len(positives):
        rank_of = np.empty(len(row), dtype=np.int64)
        rank_of[np.argsort(-row, kind="stable")] = np.arange(1, len(row) + 1)  # NaN sorts last
        return rank_of[positives]
    ranks = np.empty(len(positives), dtype=np.int64)
    for k, (position, score) in enumerate(zip(positives.tolist(), row[positives], strict=True)):
        np.greater_equal(row[:position], score, out=above[:position])
        np.greater(row[position:], score, out=above[position:])
        ranks[k] = np.count_nonzero(above) + 1
    return ranks
