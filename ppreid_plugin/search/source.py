"""Where the rows of an index come from: a release folder, or an index whose rows are to be thinned out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.dp.protected import unit_rows
from ppreid_plugin.dp.stored import Release
from ppreid_plugin.search.hits import encode_names
from ppreid_plugin.search.symbols import SymbolTable


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Some rows with their labels.

    Attributes:
        row_ids: (m,), UTF-8 padded with zero bytes.
        features: (m, d), float32, unit length.
        pids, camids: (m,), int64; None where the release carries none.
        symbols: (m,), int64; None unless the release is of a codebook.
    """

    row_ids: npt.NDArray[np.bytes_]
    features: npt.NDArray[np.float32]
    pids: npt.NDArray[np.int64] | None = None
    camids: npt.NDArray[np.int64] | None = None
    symbols: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, chosen: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> RowBatch:
        """Return some of the rows."""
        kept = {
            name: None if array is None else array[chosen]
            for name, array in (("pids", self.pids), ("camids", self.camids), ("symbols", self.symbols))
        }
        return replace(self, row_ids=self.row_ids[chosen], features=self.features[chosen], **kept)


class RowSource(ABC):
    """Rows in their order, which is the order of the index.

    Attributes:
        rows: how many.
        columns: d.
        has_pids, has_camids: whether they carry them.
        id_bytes: length of the longest row id.
        table: what symbols stand for, or None.
    """

    rows: int
    columns: int
    has_pids: bool
    has_camids: bool
    id_bytes: int
    table: SymbolTable | None

    @abstractmethod
    def batches(self, start: int, size: int) -> Iterator[RowBatch]:
        """Yield the rows from number ``start`` on, ``size`` at a time."""


class ReleaseSource(RowSource):
    """The rows of a release, without those of people who opted out.

    Args:
        release: as it was loaded and checked.
        left_out_pids: people whose rows are left out.
        left_out_rows: names of further rows.

    Raises:
        ValueError: nothing is left.
    """

    def __init__(
        self, release: Release, *, left_out_pids: Collection[int] = (), left_out_rows: Collection[str] = ()
    ) -> None:
        self._release = release
        names = np.ascontiguousarray(release.arrays["row_id"])
        self.id_bytes = names.shape[1]
        self._row_ids = names.view(f"S{self.id_bytes}")[:, 0]
        self.table = SymbolTable(release.arrays) if "symbols" in release.arrays else None
        kept = np.ones(release.manifest["rows"], dtype=bool)
        if left_out_rows:
            kept &= ~np.isin(self._row_ids, encode_names(sorted(left_out_rows)))
        if left_out_pids and release.pids is not None:
            kept &= ~np.isin(release.pids, list(left_out_pids))
        self._numbers = np.flatnonzero(kept)
        self.rows, self.left_out = len(self._numbers), int((~kept).sum())
        if not self.rows:
            raise ValueError(
                f"release {release.manifest['release']!r} has no row left to index: all {self.left_out} opted out."
            )
        self.columns = self.table.columns if self.table else release.arrays["features"].shape[1]
        self.has_pids, self.has_camids = release.pids is not None, release.camids is not None

    def batches(self, start: int, size: int) -> Iterator[RowBatch]:
        """Yield rows, decoded and normalized a batch at a time."""
        release = self._release
        for first in range(start, self.rows, size):
            chosen = self._numbers[first : first + size]
            symbols = None
            if self.table is not None:
                symbols = release.arrays["symbols"][chosen]
                features = self.table.rows(symbols)
            else:
                features = unit_rows(torch.from_numpy(release.arrays["features"][chosen])).numpy()
            yield RowBatch(
                row_ids=self._row_ids[chosen],
                features=features.astype(np.float32),
                pids=None if release.pids is None else release.pids[chosen],
                camids=None if release.camids is None else release.camids[chosen],
                symbols=symbols,
            )
