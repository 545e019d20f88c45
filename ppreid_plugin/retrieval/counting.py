"""Ranks without sorting the gallery: the rank of a positive is one more than the number of gallery rows above it.

A stable descending sort puts row j above row p if its score is larger, or equal with j < p. Rows below a query's
last positive are above none. The scores of the few others are sorted, without their indices, and each positive is
looked up. Where two of them are equal, or many are reached, the rows above a positive are counted: split the row of
scores at p and both cases are one comparison each, ``>=`` to the left of p, ``>`` from p on. Our own formulation.
Where there are scores enough, and Numba, :mod:`.counting_compiled` does the same in one pass on several threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.retrieval.checks import IntArray

logger = logging.getLogger(__name__)

CompiledRanks: TypeAlias = Callable[
    [npt.NDArray[np.floating], IntArray, IntArray, int], npt.NDArray[np.int64]
]  # of scores, positives, starts, threads

# Rows a positive below which one sort of the rows costs less than one count a positive (measured, one x86 core).
SORT_BELOW = 100
# Scores in all from which on loading the compiled loop, 0.3 s once, is worth it: it takes 80 ms from these.
COMPILED_FROM = 2**25


class Candidates(NamedTuple):
    """The rows of some queries' own pids, by query, then by gallery index.

    ``positives`` count as matches, ``counts[i]`` of them are query i's. ``ignored`` (same pid, same camera) are taken
    out of the list of the query that ``ignoring`` names, from 0.
    """

    positives: IntArray
    counts: IntArray
    ignored: IntArray
    ignoring: IntArray


class Matches:
    """Finds the :class:`Candidates` of queries. Labels only; looks up, never scans.

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
        self.num_scores = len(query_pids) * len(gallery_pids)

    @property
    def any_shared_pid(self) -> bool:
        """Whether any query's pid is in the gallery at all, whatever the camera."""
        return bool((self._stop > self._start).any())

    def of(self, first: int, count: int) -> Candidates:
        """Return the candidates of ``count`` queries from number ``first`` on."""
        span = slice(first, first + count)
        own = self._stop[span] - self._start[span]
        query = np.repeat(np.arange(count), own)
        place = np.arange(len(query)) + np.repeat(self._stop[span] - np.cumsum(own), own)
        rows = self._by_pid[place]
        if not self._exclude:
            return Candidates(rows, own, rows[:0], query[:0])
        same_camera = self._camids[place] == self._query_camids[span][query]
        counts = own - np.bincount(query[same_camera], minlength=count)
        return Candidates(rows[~same_camera], counts, rows[same_camera], query[same_camera])


def positive_ranks(
    chunks: Iterable[tuple[int, npt.NDArray[np.floating]]],
    matches: Matches,
    also: Callable[[npt.NDArray[np.floating], IntArray], None] | None = None,
) -> Iterator[tuple[npt.NDArray[np.int64], IntArray]]:
    """Yield for each chunk the ranks of its positives, from 1, and how many each query has.

    Args:
        chunks: (number of the first query, scores of shape (queries, num_gallery), larger = closer, no NaN). The
            scores are overwritten.
        matches: whose rows count.
        also: called with the row of scores of each query that has a positive, NaN where a gallery row is not in the
            list, and its positives.
    Shape:
        (positives of the chunk,), by query, then by gallery index (not sorted), and (queries,).
    """
    for first, scores in chunks:
        compiled = compiled_loop(scores.dtype) if matches.num_scores >= COMPILED_FROM else None
        own = matches.of(first, len(scores))
        scores[own.ignoring, own.ignored] = np.nan  # NaN is above nothing, so these rows are never counted
        starts = np.concatenate([[0], np.cumsum(own.counts)])
        matched = np.flatnonzero(own.counts)
        if also is not None:
            for query in matched.tolist():
                also(scores[query], own.positives[starts[query] : starts[query + 1]])
        if compiled is not None:
            ranks = compiled(scores, own.positives, starts, torch.get_num_threads())
            matched = matched[ranks[starts[matched]] == 0]  # those that it leaves
        else:
            ranks = np.empty(len(own.positives), dtype=np.int64)
        above = np.empty(scores.shape[1], dtype=bool)
        spans = map(slice, starts[matched].tolist(), starts[matched + 1].tolist())
        for query, span in zip(matched.tolist(), spans, strict=True):
            ranks[span] = _ranks_of(scores[query], own.positives[span], above)
        yield ranks, own.counts


def _ranks_of(
    row: npt.NDArray[np.floating], positives: IntArray, above: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    sought = row.take(positives)
    reached = row.take(np.greater_equal(row, np.minimum.reduce(sought), out=above).nonzero()[0])
    if len(reached) <= SORT_BELOW * len(sought):
        reached.sort()
        stop = reached.searchsorted(sought, side="right")
        ranks = len(reached) + 1 - stop
        tied = (stop - reached.searchsorted(sought) != 1).nonzero()[0]
    else:
        ranks, tied = np.empty(len(sought), dtype=np.int64), np.arange(len(sought))
    for k in tied.tolist():
        position, score = positives[k], sought[k]
        np.greater_equal(row[:position], score, out=above[:position])
        np.greater(row[position:], score, out=above[position:])
        ranks[k] = np.count_nonzero(above) + 1
    return ranks


@cache
def compiled_loop(dtype: np.dtype[np.floating]) -> CompiledRanks | None:
    """Return the compiled loop if Numba is there and the loop right for such scores, else None.

    A Numba that is there and does not work is told, once for each type of scores.
    """
    if dtype not in (np.float32, np.float64):
        return None
    try:
        import numba

        if getattr(numba.config, "DISABLE_JIT", 0):  # the loop would be run as Python
            return None
        from ppreid_plugin.retrieval.counting_compiled import compiled_ranks

        found = compiled_ranks(np.array([[2, 1, 2]], dtype=dtype), np.array([1, 2]), np.array([0, 2]), 1).tolist()
        if found != [3, 2]:
            raise RuntimeError(f"it ranked {found} where it is [3, 2]")
    except Exception as error:  # a Numba that is not for this numpy, no compiler for this processor: many types
        if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            logger.warning("Ranks are counted without Numba, which takes longer: it does not work here (%s).", why)
        return None
    return compiled_ranks
