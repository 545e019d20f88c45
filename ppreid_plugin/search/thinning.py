"""Deleting people from an index: which rows go, and the rows that stay as the source of a new generation."""

from __future__ import annotations

from collections.abc import Collection, Iterator

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


def doomed_rows(index: GalleryIndex, pids: Collection[int], row_ids: Collection[str]) -> set[str]:
    """Return the names of all rows of these people, and of these rows; empty if they were deleted before.

    Raises:
        ValueError: neither is given; a person or row that the index neither holds nor was told to leave out;
            background; pids for an index that carries none.
    """
    if not pids and not row_ids:
        raise ValueError("nothing is named to delete. Give --pid or --row.")
    if pids and "pids" not in index.record.labels:
        raise ValueError(
            f"release {index.record.release['release']!r} is anonymous: its rows carry no pid. Give --row, or with "
            "--pid the map that was written with the release: --truth FILE."
        )
    if background := sorted(set(pids) & set(index.record.background_pids)):
        raise ValueError(f"pid {background[0]} is background, which is no person. Name its rows: --row ROW_ID.")
    wanted_pids, wanted_rows = np.array(sorted(pids), dtype=np.int64), encode_names(sorted(row_ids))
    doomed: set[str] = set()
    seen_pids: set[int] = set(index.record.opted_out["pids"])
    seen_rows: set[str] = set(index.record.opted_out["rows"])
    for batch in index.batches(0, _SCANNED):
        named = np.isin(batch.row_ids, wanted_rows)
        seen_rows.update(decode_names(batch.row_ids[named]))
        if batch.pids is not None:
            theirs = np.isin(batch.pids, wanted_pids)
            seen_pids.update(batch.pids[theirs].tolist())
            named |= theirs
        doomed.update(decode_names(batch.row_ids[named]))
    if missing := sorted(set(pids) - seen_pids):
        raise ValueError(f"pid {missing[0]} has no row in this index. Look at the pids that a search prints.")
    if strange := sorted(set(row_ids) - seen_rows):
        raise ValueError(f"row '{strange[0]}' is not in this index. Row ids are those that a search prints.")
    return doomed
