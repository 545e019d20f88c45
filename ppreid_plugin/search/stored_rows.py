"""Rows of an index in column files: what the exact and the FAISS backend share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.search.columns import (
    create_columns,
    file_of,
    label_shapes,
    labels_of,
    open_columns,
    write_columns,
)
from ppreid_plugin.search.hits import Hits, best, decode_names
from ppreid_plugin.search.index import GalleryIndex, IndexWriter
from ppreid_plugin.search.record import IndexRecord, damaged, require_hashes
from ppreid_plugin.search.source import RowBatch, RowSource
from ppreid_plugin.search.storage import CodeRows, RowStorage, build_storage, dot_products

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

_RESCORED = 4096  # rows a step: 16 MiB of float64 at 512 columns


class StoredRowsWriter(IndexWriter):
    """Writes labels and rows into column files.

    Args:
        folder: of the generation.
        storage: format of the rows.
        source: what is to be written.
    """

    def __init__(self, folder: Path, storage: RowStorage, source: RowSource) -> None:
        self.folder, self.storage = folder, storage
        self.rows = source.rows
        self._shapes = {**label_shapes(source), **storage.shapes}

    def begin(self) -> None:
        """Make the files."""
        create_columns(self.folder, self._shapes, self.rows)

    def resume(self, done: int) -> bool:
        """Return whether the files are there and as long as they were made."""
        try:
            open_columns(self.folder, self._shapes, self.rows)
        except ValueError:
            return False
        return True

    def write(self, start: int, batch: RowBatch) -> None:
        """Write one batch."""
        write_columns(self.folder, start, {**labels_of(batch), **self.storage.encode(batch)})

    def finish(self) -> Mapping[str, bool]:
        """Return the files."""
        return {f"{name}.npy": True for name in self._shapes}


class StoredRowsIndex(GalleryIndex):
    """An index whose rows lie in column files.

    Attributes:
        storage: format of the rows.
        stored: columns of the rows, memory-mapped; ``labels``: of the labels.
    """

    def __init__(self, folder: Path, record: IndexRecord) -> None:
        super().__init__(folder, record)
        self.storage = build_storage(record.options["storage"], record.columns, self.table)
        if self.table is not None and self.table.columns != record.columns:
            raise damaged(folder, "columns")
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {"row_ids": (f"|S{record.id_bytes}", ())}
        shapes |= {name: ("<i8", ()) for name in record.labels}
        require_hashes(folder, record, [file_of(folder, name).name for name in (*shapes, *self.storage.shapes)])
        self.labels = open_columns(self.generation, shapes, record.rows)
        self.stored = open_columns(self.generation, self.storage.shapes, record.rows)

    def batches(self, start: int, size: int) -> Iterator[RowBatch]:
        """Yield the rows as they are stored, widened to float32."""
        for first in range(start, len(self), size):
            span = slice(first, first + size)
            stored = self.columns_at(span)
            yield RowBatch(
                row_ids=np.array(self.labels["row_ids"][span]),
                features=self.storage.decode(stored).numpy().astype(np.float32),
                pids=self._label("pids", span),
                camids=self._label("camids", span),
                symbols=self._symbols(stored),
            )

    def columns_at(self, where: slice | Numbers) -> dict[str, np.ndarray]:
        """Return the stored entries of some rows."""
        return {name: array[where] for name, array in self.stored.items()}

    def rescored(self, query: torch.Tensor, numbers: Numbers, top: int) -> tuple[Floats, Numbers]:
        """Return the best of these rows for one query (d,), scored in float64, each for itself.

        A row's score depends on neither the other rows nor how many are scored at once, so equal rows tie.
        """
        scores: Floats = np.empty(0)
        kept: Numbers = np.empty(0, dtype=np.int64)
        for first in range(0, len(numbers), _RESCORED):
            some = numbers[first : first + _RESCORED]
            found = dot_products(self.storage.decode(self.columns_at(some)), query)
            scores, kept = best(np.concatenate([scores, found]), np.concatenate([kept, some]), top)
        return scores, kept

    def hits(self, found: Sequence[tuple[Floats, Numbers]]) -> list[Hits]:
        """Return scores and row numbers with their labels."""
        return [
            Hits(
                row_ids=decode_names(self.labels["row_ids"][numbers]),
                pids=self._label("pids", numbers),
                scores=scores,
                numbers=numbers,
                camids=self._label("camids", numbers),
            )
            for scores, numbers in found
        ]

    def _label(self, name: str, where: slice | Numbers) -> Numbers | None:
        return np.array(self.labels[name][where]) if name in self.labels else None

    def _symbols(self, stored: Mapping[str, Any]) -> Numbers | None:
        return self.storage.table.unpacked(stored["symbols"]) if isinstance(self.storage, CodeRows) else None
