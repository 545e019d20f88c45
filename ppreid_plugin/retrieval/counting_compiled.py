"""The rows above each positive, counted on the CPU by a compiled loop on several threads: needs Numba.

The loop reads a row of scores once, keeps what is not below the row's last positive, and compares each positive with
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


def _ranks(scores: Any, positives: Any, starts: Any, ranks: Any, first: int, stop: int) -> None:
    """Write the ranks of the positives of the queries ``first`` to ``stop``; those of too many positives are left."""
    columns = scores.shape[1]
    kept = np.empty(columns + 8, scores.dtype)
    places = np.empty(columns + 8, np.int32)
    flags = np.zeros(_BLOCK, np.uint8)
    eights = flags.view(np.uint64)
    for query in range(first, stop):
        begin, end = starts[query], starts[query + 1]
        if begin == end or end - begin > MOST_POSITIVES:
            continue
        row = scores[query]
        lowest = row[positives[begin]]
        for number in range(begin + 1, end):
            lowest = min(lowest, row[positives[number]])
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
                        places[count] = start + j
                        count = _int32(count + _int32(flags[j]))
        for place in range(whole, columns):
            if row[place] >= lowest:
                kept[count] = row[place]
                places[count] = place
                count = _int32(count + _int32(1))
        for number in range(begin, end):
            place = positives[number]
            score = row[place]
            own = np.searchsorted(places[:count], place)
            ranks[number] = 1 + _above(kept[:own], score, True) + _above(kept[own:count], score, False)


@cache
def _loop(dtype: np.dtype[np.floating]) -> Any:
    """Return the loop for such scores, kept between processes where that works: a cut-off file must stop nothing."""
    try:
        kept = numba.njit(nogil=True, cache=True)(_ranks)
        kept(np.zeros((1, 1), dtype), np.zeros(1, np.int64), np.array([0, 1]), np.zeros(1, np.int64), 0, 1)
    except Exception as error:  # no folder to keep it in, no room there, a file that is cut off or another's
        logger.warning(
            "Numba's file of a compiled loop cannot be used (%s), so it is compiled anew in each process. It lies in "
            "'%s', or where NUMBA_CACHE_DIR says: delete what is there.",
            " ".join(f"{type(error).__name__}: {error}".split())[:200],
            Path(__file__).with_name("__pycache__"),
        )
        return numba.njit(nogil=True)(_ranks)
    return kept


def compiled_ranks(
    scores: npt.NDArray[np.floating], positives: IntArray, starts: IntArray, threads: int
) -> npt.NDArray[np.int64]:
    """Return the rank of each positive, from 1; 0 where a query has more than :data:`MOST_POSITIVES`.

    Args:
        scores: (q, n), float32 or float64, larger = closer, n < 2^31; NaN is above nothing, and no positive's.
        positives: (p,), columns of ``scores``, by query.
        starts: (q + 1,): query i has the positives ``starts[i]`` to ``starts[i + 1]``.
        threads: how many may run at once.
    """
    ranks = np.zeros(len(positives), dtype=np.int64)
    scores = np.ascontiguousarray(scores)  # rows are read, and another layout would be compiled anew
    part = partial(_loop(scores.dtype), scores, positives, starts, ranks)
    if threads < 2:
        part(0, len(scores))
        return ranks
    bounds = np.linspace(0, len(scores), threads * _PARTS + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, bounds[:-1], bounds[1:]))
    return ranks
