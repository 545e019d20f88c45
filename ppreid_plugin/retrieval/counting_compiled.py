"""The rows above each positive, counted on the CPU by a compiled loop on several threads: needs Numba.

The loop reads a row of scores once, keeps what is not below the query's last positive, and compares each positive with
that. Compiled once for each type of scores (a second), and kept by Numba between processes where it finds a folder to
write to. Our own formulation.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from ppreid_plugin.retrieval.checks import IntArray

logger = logging.getLogger(__name__)

MOST_POSITIVES = 256  # of a query; each is compared with all that is kept, which beyond is more than sorting it
_BLOCK = 256  # scores whose comparisons stay in the processor's first cache, a multiple of 8
_PARTS = 4  # a thread: queries differ in what they take

_int32 = np.int32  # numba adds int32 as int64, a quarter as many at a time, unless every sum is cut


@numba.njit(nogil=True)
def _above(kept: Any, score: Any, or_equal: bool) -> Any:
    count = _int32(0)
    if or_equal:
        for j in range(len(kept)):
            count = _int32(count + _int32(kept[j] >= score))
    else:
        for j in range(len(kept)):
            count = _int32(count + _int32(kept[j] > score))
    return count


def _add(scores: Any, places: Any, sought: Any, starts: Any, above: Any, first: int, stop: int) -> None:
    """Add to ``above`` for the positives of the queries ``first`` to ``stop``; those of too many are left."""
    columns = scores.shape[1]
    kept = np.empty(columns + 8, scores.dtype)
    kept_at = np.empty(columns + 8, np.int32)
    flags = np.zeros(_BLOCK, np.uint8)
    eights = flags.view(np.uint64)
    for query in range(first, stop):
        begin, end = starts[query], starts[query + 1]
        if begin == end or end - begin > MOST_POSITIVES:
            continue
        row = scores[query]
        lowest = sought[begin]
        for number in range(begin + 1, end):
            lowest = min(lowest, sought[number])
        count = _int32(0)
        whole = columns // _BLOCK * _BLOCK
        for start in range(0, whole, _BLOCK):
            block = row[start : start + _BLOCK]
            for j in range(_BLOCK):
                flags[j] = np.uint8(block[j] >= lowest)
            for eight in range(_BLOCK // 8):
                if eights[eight]:
                    for j in range(eight * 8, eight * 8 + 8):  # written in any case, and kept by counting on
                        kept[count] = block[j]
                        kept_at[count] = start + j
                        count = _int32(count + _int32(flags[j]))
        for place in range(whole, columns):
            if row[place] >= lowest:
                kept[count] = row[place]
                kept_at[count] = place
                count = _int32(count + _int32(1))
        for number in range(begin, end):
            own = np.searchsorted(kept_at[:count], places[number])
            score = sought[number]
            above[number] += _above(kept[:own], score, True) + _above(kept[own:count], score, False)


@cache
def _loop(dtype: np.dtype[np.floating]) -> Any:
    """Return the loop for such scores, kept between processes where that works: a cut-off file must stop nothing."""
    try:
        kept = numba.njit(nogil=True, cache=True)(_add)
        one, place = np.zeros((1, 1), dtype), np.zeros(1, np.int64)
        kept(one, place, one[0], np.array([0, 1]), place.copy(), 0, 1)
    except Exception as error:  # no folder to keep it in, no room there, a file that is cut off or another's
        logger.warning(
            "Numba's file of a compiled loop cannot be used (%s), so it is compiled anew in each process. It lies in "
            "'%s', or where NUMBA_CACHE_DIR says: delete what is there.",
            " ".join(f"{type(error).__name__}: {error}".split())[:200],
            Path(__file__).with_name("__pycache__"),
        )
        return numba.njit(nogil=True)(_add)
    return kept


def add_above_compiled(
    scores: npt.NDArray[np.floating],
    places: IntArray,
    sought: npt.NDArray[np.floating],
    starts: IntArray,
    above: IntArray,
    threads: int,
) -> IntArray:
    """Do what :func:`.counting.add_above` does, and return the queries that are left: of too many positives.

    Args:
        scores: (q, n), float32 or float64, n < 2^31.
        places: (p,), by query.
        sought: (p,), of the type of ``scores``.
        starts: (q + 1,): query i has the positives ``starts[i]`` to ``starts[i + 1]``.
        above: (p,).
        threads: how many may run at once.
    """
    scores = np.ascontiguousarray(scores)  # rows are read, and another layout would be compiled anew
    part = partial(_loop(scores.dtype), scores, places, sought, starts, above)
    left = np.flatnonzero(np.diff(starts) > MOST_POSITIVES)
    if threads < 2:
        part(0, len(scores))
        return left
    bounds = np.linspace(0, len(scores), threads * _PARTS + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, bounds[:-1], bounds[1:]))
    return left
