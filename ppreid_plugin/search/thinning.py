"""Deleting people from an index: which rows go, and the rows that stay as the source of a new generation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from ppreid_plugin.search.hits import decode_names, encode_names
from ppreid_plugin.search.index import GalleryIndex
from ppreid_plugin.search.source import RowBatch, RowSource

_SCANNED = 65_536  # rows a step


class IndexSource(RowSource):
    """The rows of an index, without some.

    Args:
        index: opened.
        doomed: names of the rows that are left out.
    """

    def __init__(self, index: GalleryIndex, doomed: Collection[str]) -> None:
        self._index = index
        self._doomed = encode_names(sorted(doomed))
        self.rows = index.count() - len(doomed)
        self.columns, self.table = index.record.columns, index.table
        self.has_pids, self.has_camids = "pids" in index.record.labels, "camids" in index.record.labels
        self.id_bytes = index.record.id_bytes

    def batches(self, start: int, size: int) -> Iterator[RowBatch]:
        """Yield the rows that stay."""
        skipped = 0
        for batch in self._index.batches(0, size):
            kept = batch.take(~np.isin(batch.row_ids, self._doomed))
            fresh = kept.take(slice(min(len(kept), max(0, start - skipped)), None))
            skipped += len(kept)
            if len(fresh):
                yield fresh


@dataclass(frozen=True)
class Doomed:
    """What is to be deleted from an index.

    Attributes:
        rows: names of rows that it holds.
        pids, row_ids: people and rows that were asked for, of those that it holds or was told to leave out before.
    """

    rows: frozenset[str]
    pids: frozenset[int]
    row_ids: frozenset[str]


def doomed_rows(index: GalleryIndex, pids: Collection[int], row_ids: Collection[str]) -> Doomed:
    """Return the rows of these people, and of these names, that an index holds; it need not hold all, or any.

    Args:
        index: opened.
        pids: people; an index without pids holds none.
        row_ids: names.
    """
    possible = [pid for pid in sorted(pids) if -(2**63) <= pid < 2**63]  # what no label can be has no row
    wanted_pids, wanted_rows = np.array(possible, dtype=np.int64), encode_names(sorted(row_ids))
    rows: set[str] = set()
    seen_pids: set[int] = set(index.record.opted_out["pids"])
    seen_rows: set[str] = set(index.record.opted_out["rows"])
    for batch in index.batches(0, _SCANNED):
        named = np.isin(batch.row_ids, wanted_rows)
        seen_rows.update(decode_names(batch.row_ids[named]))
        if batch.pids is not None:
            theirs = np.isin(batch.pids, wanted_pids)
            seen_pids.update(batch.pids[theirs].tolist())
            named |= theirs
        rows.update(decode_names(batch.row_ids[named]))
    return Doomed(frozenset(rows), frozenset(seen_pids & set(pids)), frozenset(seen_rows & set(row_ids)))
