"""The exact backend: every row is scored, and the answer is that of float64 whatever the batch and the block size.

Rows are read by memory map in blocks, one float32 product a block. A row whose float32 score is within rounding error
of the best ones is scored again in float64, so blocks, the number of queries at once and the BLAS change nothing.
Codes need no scan: the rows of the best symbols are read from a list (:func:`.symbols.best_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.registry import check_arguments
from ppreid_plugin.search.columns import open_columns, save_column
from ppreid_plugin.search.hits import Hits, best
from ppreid_plugin.search.index import IndexWriter, register_index
from ppreid_plugin.search.record import IndexRecord, require_hashes
from ppreid_plugin.search.source import RowSource
from ppreid_plugin.search.storage import STORAGES, CodeRows, build_storage
from ppreid_plugin.search.stored_rows import StoredRowsIndex, StoredRowsWriter
from ppreid_plugin.search.symbols import best_rows, postings

BLOCK_BYTES = 2**22  # of rows widened to float32, which stay in the processor's cache: 2,048 rows of 512
QUERIES_AT_ONCE = 256

_LISTS = ("symbol_rows.npy", "symbol_starts.npy")  # of codes

Found = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


class ExactWriter(StoredRowsWriter):
    """Writes the columns; for codes the list of each symbol's rows too."""

    def finish(self) -> Mapping[str, bool]:
        """Sort the rows by symbol, where they are codes."""
        files = dict(super().finish())
        if isinstance(self.storage, CodeRows):
            table = self.storage.table
            stored = open_columns(self.folder, self.storage.shapes, self.rows)["symbols"]
            rows, starts = postings(table.unpacked(stored), table.size)
            save_column(self.folder, "symbol_rows", rows.astype(_number_type(self.rows)))
            save_column(self.folder, "symbol_starts", starts.astype("<i8"))
            files |= dict.fromkeys(_LISTS, True)
        return files


@register_index("exact")
class ExactIndex(StoredRowsIndex):
    """Scores every row.

    Options:
        storage: ``float32``, ``float16``, ``int8`` or ``codes`` (:mod:`.storage`); by default ``codes`` for codebook
            releases and ``float32`` for others.
    """

    name = "exact"

    def __init__(self, folder: Path, record: IndexRecord) -> None:
        super().__init__(folder, record)
        self._lists: dict[str, np.ndarray] = {}
        if isinstance(self.storage, CodeRows):
            require_hashes(folder, record, _LISTS)
            rows = open_columns(self.generation, {"symbol_rows": (_number_type(len(self)), ())}, len(self))
            starts = open_columns(self.generation, {"symbol_starts": ("<i8", ())}, self.storage.table.size + 1)
            self._lists = {**rows, **starts}

    @classmethod
    def checked_options(cls, options: Mapping[str, Any], source: RowSource) -> dict[str, Any]:
        """Return ``storage``."""
        check_arguments(options, [lambda storage: None], key="--backend exact")
        storage = options.get("storage", "float32" if source.table is None else "codes")
        build_storage(storage, source.columns, source.table)
        return {"storage": storage}

    @classmethod
    def sound_options(cls, options: Mapping[str, Any]) -> bool:
        """Return whether ``storage`` is named."""
        return options.get("storage") in STORAGES.names()

    @classmethod
    def writer(
        cls,
        folder: Path,
        options: Mapping[str, Any],
        source: RowSource,
        metadata: Mapping[str, Any],
        replaces: Mapping[str, Any] | None = None,
    ) -> IndexWriter:
        """Return the writer of the columns."""
        return ExactWriter(folder, build_storage(options["storage"], source.columns, source.table), source)

    def _search(self, queries: npt.NDArray[np.float64], top: int) -> list[Hits]:
        found: list[Found] = []
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            some = queries[first : first + QUERIES_AT_ONCE]
            found += self._by_symbol(some, top) if self._lists else self._scan(torch.from_numpy(some), top)
        return self.hits(found)

    def _by_symbol(self, queries: npt.NDArray[np.float64], top: int) -> list[Found]:
        assert isinstance(self.storage, CodeRows)  # noqa: S101  (for the type checker; the lists exist for codes only)
        rows, starts = self._lists["symbol_rows"], np.asarray(self._lists["symbol_starts"])
        # one query at a time: a product of several would round otherwise than one of them alone
        return [best_rows(self.storage.table.scores(query[None])[0], rows, starts, top) for query in queries]

    def _scan(self, queries: torch.Tensor, top: int) -> list[Found]:
        found: list[Found] = [(np.empty(0), np.empty(0, dtype=np.int64))] * len(queries)
        slack = 4 * rounding_error(self.record.columns)
        rows_a_block = max(1, BLOCK_BYTES // (4 * self.record.columns))
        for start in range(0, len(self), rows_a_block):
            scores = self.storage.products(queries.float(), self.columns_at(slice(start, start + rows_a_block))).numpy()
            least = np.array([of[0][-1] if len(of[0]) == top else -np.inf for of in found])
            for query, place in enumerate(scores.max(axis=1) >= least - slack):
                if place:
                    numbers = start + _candidates(scores[query], least[query], top, slack)
                    some = self.rescored(queries[query], numbers, top)
                    both = [np.concatenate(pair) for pair in zip(found[query], some, strict=True)]
                    found[query] = best(both[0], both[1], top)
        return found


def rounding_error(columns: int) -> float:
    """Return a bound on the error of a float32 product of rows of length 1: (d + 4) 2^-24, by Cauchy-Schwarz."""
    return float((columns + 4) * 2.0**-24)


def _candidates(scores: npt.NDArray[np.float32], least: float, top: int, slack: float) -> npt.NDArray[np.int64]:
    """Return the places of a block's scores (m,) that may be among the best: within ``slack`` of the last of them."""
    if len(scores) > top:
        near = np.flatnonzero(scores >= least - slack)
        if len(near) <= 4 * top:
            return near
        least = max(least, float(np.partition(scores, -top)[-top]))
    return np.flatnonzero(scores >= least - slack)


def _number_type(rows: int) -> str:
    return "<u4" if rows <= 2**32 else "<u8"
