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

Scores: TypeAlias = npt.NDArray[np.floating]
CompiledCount: TypeAlias = Callable[[Scores, IntArray, Scores, IntArray, IntArray, int], IntArray]

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

    @property
    def starts(self) -> IntArray:
        """(queries + 1,): query i has the positives ``starts[i]`` to ``starts[i + 1]``."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @property
    def asking(self) -> IntArray:
        """(positives,): whose each is."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


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
        self._num_scores = len(query_pids) * len(gallery_pids)

    @property
    def any_shared_pid(self) -> bool:
        """Whether any query's pid is in the gallery at all, whatever the camera."""
        return bool((self._stop > self._start).any())

    def compiled(self, dtype: np.dtype[np.floating]) -> CompiledCount | None:
        """Return the compiled loop for such scores if there is Numba, and scores enough that loading it is worth it."""
        return compiled_loop(dtype) if self._num_scores >= COMPILED_FROM else None

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
    chunks: Iterable[tuple[int, Scores]],
    matches: Matches,
    also: Callable[[Scores, IntArray], None] | None = None,
) -> Iterator[tuple[IntArray, IntArray]]:
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
        own = matches.of(first, len(scores))
        scores[own.ignoring, own.ignored] = np.nan
        starts = own.starts
        if also is not None:
            for query in np.flatnonzero(own.counts).tolist():
                also(scores[query], own.positives[starts[query] : starts[query + 1]])
        ranks = np.ones(len(own.positives), dtype=np.int64)
        sought = scores[own.asking, own.positives]
        add_above(scores, own.positives, sought, starts, ranks, matches.compiled(scores.dtype))
        yield ranks, own.counts


def add_above(
    scores: Scores,
    places: IntArray,
    sought: Scores,
    starts: IntArray,
    above: IntArray,
    compiled: CompiledCount | None = None,
) -> None:
    """Add to ``above`` how many of these columns stand above each positive of a row's query.

    Args:
        scores: (q, n), larger = closer; NaN is above nothing.
        places: (p,), columns of the positives, by query; below 0 or from n on if the positive stands left or right of
            these columns.
        sought: (p,), scores of the positives, those of ``scores`` where they are among these columns; no NaN.
        starts: (q + 1,): query i has the positives ``starts[i]`` to ``starts[i + 1]``.
        above: (p,).
        compiled: what counts the most of them, if there is Numba.
    """
    if compiled is not None:
        matched = compiled(scores, places, sought, starts, above, torch.get_num_threads())
    else:
        matched = np.flatnonzero(np.diff(starts))
    splits = np.clip(places, 0, scores.shape[1])
    among = (splits == places) & (places < scores.shape[1])
    buffer = np.empty(scores.shape[1], dtype=bool)
    spans = map(slice, starts[matched].tolist(), starts[matched + 1].tolist())
    for query, span in zip(matched.tolist(), spans, strict=True):
        above[span] += _above(scores[query], splits[span], among[span], sought[span], buffer)


def _above(
    row: Scores, splits: IntArray, among: npt.NDArray[np.bool_], sought: Scores, buffer: npt.NDArray[np.bool_]
) -> IntArray:
    reached = row.take(np.greater_equal(row, np.minimum.reduce(sought), out=buffer).nonzero()[0])
    if len(reached) <= SORT_BELOW * len(sought):
        reached.sort()
        stop = reached.searchsorted(sought, side="right")
        above = len(reached) - stop
        tied = (stop - reached.searchsorted(sought) != among).nonzero()[0]
    else:
        above, tied = np.empty(len(sought), dtype=np.int64), np.arange(len(sought))
    for k in tied.tolist():
        split, score = splits[k], sought[k]
        np.greater_equal(row[:split], score, out=buffer[:split])
        np.greater(row[split:], score, out=buffer[split:])
        above[k] = np.count_nonzero(buffer)
    return above


@cache
def compiled_loop(dtype: np.dtype[np.floating]) -> CompiledCount | None:
    """Return the compiled loop if Numba is there and the loop right for such scores, else None.

    A Numba that is there and does not work is told, once for each type of scores.
    """
    if dtype not in (np.float32, np.float64):
        return None
    try:
        import numba

        if getattr(numba.config, "DISABLE_JIT", 0):  # the loop would be run as Python
            return None
        from ppreid_plugin.retrieval.counting_compiled import add_above_compiled

        row, found = np.array([[2, 1, 2]], dtype=dtype), np.array([0, 0])
        add_above_compiled(row, np.array([1, 2]), row[0, 1:], np.array([0, 2]), found, 1)
        if found.tolist() != [2, 1]:
            raise RuntimeError(f"it counted {found.tolist()} where it is [2, 1]")
    except Exception as error:  # a Numba that is not for this numpy, no compiler for this processor: many types
        if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            logger.warning("Ranks are counted without Numba, which takes longer: it does not work here (%s).", why)
        return None
    return add_above_compiled
