"""Ranks in a gallery that is multiplied in parts: each part once, for as many queries as there are.

Where memory holds the scores of few queries against the whole gallery, products of so few take nearly twice as long.
Here it holds those of many against a part of the gallery, and what stands above each positive is summed over the parts.
The positives' own scores, which all parts are compared with, are taken first, pair by pair. Our own formulation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from ppreid_plugin.retrieval.checks import IntArray, positive_mebibytes, rows_at_once
from ppreid_plugin.retrieval.counting import Matches, Scores, add_above
from ppreid_plugin.retrieval.equal_rows import EqualRows
from ppreid_plugin.retrieval.scoring import LEAST_MB, Products

_COLUMNS = 8192  # of a part, at least: of fewer, products take longer
_MANY = 512  # queries at once from which on more of them make a product no faster


class Parts(NamedTuple):
    """How many queries and how many gallery rows are multiplied at once."""

    queries: int
    rows: int


def parts_of(memory_mb: float | None, query: torch.Tensor, gallery: torch.Tensor, kinds: int) -> Parts | None:
    """Return the parts in which this gallery is ranked fastest, None if as a whole.

    Args:
        memory_mb: MiB of scores; None: 72.
        query: (q, d).
        gallery: (n, d).
        kinds: how many rows are repeated by later ones; their scores are held beside a part's.

    Raises:
        ValueError: ``memory_mb`` is no number > 0.
    """
    size = positive_mebibytes("memory_mb", LEAST_MB if memory_mb is None else memory_mb) * 2**20
    scores = int(size // query.element_size())
    whole = max(1, scores // len(gallery))
    most = min(len(query), scores // (_COLUMNS + kinds))
    if whole >= _MANY or most < 2 * whole:
        return None
    queries = math.ceil(len(query) / math.ceil(len(query) / most))  # alike: a short chunk takes longer
    rows = scores // queries - kinds
    return Parts(queries, math.ceil(len(gallery) / math.ceil(len(gallery) / rows)))


def ranks_in_parts(
    products: Products, equal: EqualRows, matches: Matches, parts: Parts
) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield what :func:`.positive_ranks` yields, of ``parts.queries`` queries at a time."""
    count, total = len(products.query), len(products.gallery)
    kinds = equal.kinds
    kind_of = np.full(total, -1)
    kind_of[kinds] = np.arange(len(kinds))
    kind_of[equal.later] = kind_of[equal.first]
    buffer = products.query.new_empty(parts.queries * parts.rows)
    for first in range(0, count, parts.queries):
        number = min(parts.queries, count - first)
        queries = slice(first, first + number)
        own = matches.of(first, number)
        starts, asking = own.starts, own.asking
        sought = products.pairs(torch.from_numpy(asking + first), torch.from_numpy(own.positives)).cpu().numpy()
        of_kinds = _scores_of(products, queries, kinds, buffer.new_empty(number, len(kinds)))
        repeated = kind_of[own.positives] >= 0
        sought[repeated] = of_kinds[asking[repeated], kind_of[own.positives[repeated]]]
        ranks = np.ones(len(own.positives), dtype=np.int64)
        for start in range(0, total, parts.rows):
            rows = slice(start, min(start + parts.rows, total))
            width = rows.stop - start
            out = buffer[: number * width].view(number, width)
            scores = products.write(queries, rows, out).cpu().numpy()
            _tie(scores, of_kinds, kind_of[rows])
            here = _within(own.positives, rows)
            scores[asking[here], own.positives[here] - start] = sought[here]
            there = _within(own.ignored, rows)
            scores[own.ignoring[there], own.ignored[there] - start] = np.nan
            add_above(scores, own.positives - start, sought, starts, ranks, matches.compiled(scores.dtype))
        yield ranks, own.counts


def _scores_of(products: Products, queries: slice, rows: IntArray, out: torch.Tensor) -> Scores:
    """Write the scores of rows that lie anywhere; some at a time, as their features are copied."""
    step = rows_at_once(products.gallery.shape[1])
    for start in range(0, len(rows), step):
        products.write(queries, torch.from_numpy(rows[start : start + step]), out[:, start : start + step])
    return out.cpu().numpy()


def _within(places: IntArray, rows: slice) -> IntArray:
    return np.flatnonzero((places >= rows.start) & (places < rows.stop))


def _tie(scores: Scores, of_kinds: Scores, kind_of: IntArray) -> None:
    """Give the columns whose rows are repeated the score of their kind."""
    columns = np.flatnonzero(kind_of >= 0)
    step = rows_at_once(len(scores))
    for some in (columns[start : start + step] for start in range(0, len(columns), step)):
        scores[:, some] = of_kinds[:, kind_of[some]]
