"""How the rows of an index are stored: what a row takes on disk, and what is scored in its place.

===========  ================  ==============================================================================
storage      bytes a row       what is scored
===========  ================  ==============================================================================
``float32``  4 d               the released row, unit length
``float16``  2 d               each number rounded to 11 significant bits
``int8``     d + 4             v / |v|, v whole numbers in -127 to 127: the row times 127 over its largest number,
                               rounded; 1 / |v| is the row's scale (float32)
``codes``    1 to 4, + 4 or 8  codebook releases: the symbol, exactly; and the row's number in the list of its symbol
===========  ================  ==============================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.registry import Registry
from ppreid_plugin.search.source import RowBatch
from ppreid_plugin.search.symbols import SymbolTable

Columns = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[str, tuple[int, ...]]]

_FEW = 8  # queries


class RowStorage(ABC):
    """The format of rows on disk. An entry implements all of this; columns are arrays of one entry a row.

    Args:
        columns: d, numbers a row.
    """

    name: ClassVar[str]

    def __init__(self, columns: int) -> None:
        self.columns = columns

    @property
    @abstractmethod
    def shapes(self) -> Shapes:
        """Name of each column file -> its type and the shape of one row's entry."""

    @abstractmethod
    def encode(self, batch: RowBatch) -> dict[str, np.ndarray]:
        """Return what is written for these rows, by column file."""

    @abstractmethod
    def decode(self, stored: Columns) -> torch.Tensor:
        """Return the rows that stored entries stand for, float64 (m, d), in memory of their own."""

    @abstractmethod
    def products(self, queries: torch.Tensor, stored: Columns) -> torch.Tensor:
        """Return the product of each query with each row in float32: (q, d), float32 -> (q, m)."""


STORAGES: Registry[type[RowStorage]] = Registry("storage", contract=RowStorage)
register_storage = STORAGES.register


class _FloatRows(RowStorage):
    dtype: ClassVar[str]

    @property
    def shapes(self) -> Shapes:
        """``rows``."""
        return {"rows": (self.dtype, (self.columns,))}

    def encode(self, batch: RowBatch) -> dict[str, np.ndarray]:
        """Round to the type."""
        return {"rows": batch.features.astype(self.dtype)}

    def decode(self, stored: Columns) -> torch.Tensor:
        """Widen."""
        return torch.from_numpy(stored["rows"].astype(np.float64))

    def products(self, queries: torch.Tensor, stored: Columns) -> torch.Tensor:
        """Multiply in float32."""
        return float_products(queries, torch.from_numpy(stored["rows"]).float())


@register_storage("float32")
class Float32Rows(_FloatRows):
    """Rows as released."""

    name, dtype = "float32", "<f4"


@register_storage("float16")
class Float16Rows(_FloatRows):
    """Half the bytes."""

    name, dtype = "float16", "<f2"


@register_storage("int8")
class Int8Rows(RowStorage):
    """A quarter of the bytes: whole numbers, and one scale a row that makes its length 1 again."""

    name = "int8"

    @property
    def shapes(self) -> Shapes:
        """``rows`` and ``scales``."""
        return {"rows": ("|i1", (self.columns,)), "scales": ("<f4", ())}

    def encode(self, batch: RowBatch) -> dict[str, np.ndarray]:
        """Round; a row of zeros keeps them, with scale 0."""
        features = np.asarray(batch.features, dtype=np.float64)
        largest = np.abs(features).max(axis=1, keepdims=True)
        rows = np.rint(features * (127 / np.where(largest > 0, largest, 1.0)))
        lengths = np.linalg.norm(rows, axis=1)
        scales = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        return {"rows": rows.astype(np.int8), "scales": scales.astype(np.float32)}

    def decode(self, stored: Columns) -> torch.Tensor:
        """Scale."""
        return torch.from_numpy(stored["rows"].astype(np.float64) * stored["scales"][:, None])

    def products(self, queries: torch.Tensor, stored: Columns) -> torch.Tensor:
        """Multiply with the whole numbers, then scale the scores."""
        scores = float_products(queries, torch.from_numpy(stored["rows"]).float())
        return scores.mul_(torch.from_numpy(np.array(stored["scales"])))


@register_storage("codes")
class CodeRows(RowStorage):
    """The symbol of a row.

    Args:
        columns: d.
        table: what symbols stand for.
    """

    name = "codes"

    def __init__(self, columns: int, table: SymbolTable) -> None:
        super().__init__(columns)
        self.table = table

    @property
    def shapes(self) -> Shapes:
        """``symbols``."""
        return {"symbols": ("|u1", (self.table.bytes_a_symbol,))}

    def encode(self, batch: RowBatch) -> dict[str, np.ndarray]:
        """Pack the symbols."""
        if batch.symbols is None:
            raise ValueError("rows hold no symbols: only a codebook release can be stored as codes.")
        return {"symbols": self.table.packed(batch.symbols)}

    def decode(self, stored: Columns) -> torch.Tensor:
        """Look them up."""
        return torch.from_numpy(self.table.rows(self.table.unpacked(stored["symbols"])))

    def products(self, queries: torch.Tensor, stored: Columns) -> torch.Tensor:
        """Look the scores up."""
        symbols = self.table.unpacked(stored["symbols"])
        return torch.from_numpy(self.table.scores(queries.double().numpy())[:, symbols]).float()


def build_storage(name: str, columns: int, table: SymbolTable | None) -> RowStorage:
    """Return the storage ``name`` for rows of ``columns`` numbers.

    Raises:
        ValueError: unknown name, or ``codes`` for a release that is none of a codebook.

    Example:
        >>> build_storage("float16", 512, None).shapes
        {'rows': ('<f2', (512,))}
    """
    kind = STORAGES.get(name)
    if not issubclass(kind, CodeRows):
        return kind(columns)
    if table is None:
        raise ValueError(
            f"storage is {name!r}, which needs a release of symbols (mechanisms 'prior_subset', 'codebook'); this "
            "one holds rows. Take float32, float16 or int8."
        )
    return kind(columns, table)


def bytes_a_row(storage: RowStorage) -> int:
    """Return what one row's features take on disk, without its labels."""
    return sum(np.dtype(dtype).itemsize * int(np.prod(shape, dtype=int)) for dtype, shape in storage.shapes.values())


def float_products(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the float32 products of queries (q, d) with rows (m, d): (q, m).

    For few queries BLAS is slower than memory: one is multiplied row by row (BLAS takes 2.3 times as long), up to 8 are
    the narrow side of the product.
    """
    if len(queries) == 1:
        return torch.from_numpy(np.einsum("ij,j->i", rows.numpy(), queries[0].numpy())[None])
    if len(queries) <= _FEW:
        return torch.mm(rows, queries.T).T.contiguous()
    return torch.mm(queries, rows.T)


def dot_products(rows: torch.Tensor, query: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the float64 products of rows (m, d) with one query (d,): a row's does not depend on its neighbors."""
    return np.asarray((rows * query).sum(dim=1).numpy())
