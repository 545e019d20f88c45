"""The FAISS backend: candidates from an index in memory, then the same float64 scores as the exact backend.

``flat`` looks at every row, ``hnsw`` walks a graph of neighbors, ``ivfpq`` reads the nearest lists of compressed rows.
What they propose is scored again from the rows on disk, so scores never differ between backends; a row can only be
missed.

Sources: FAISS, Douze et al., arXiv 2401.08281; HNSW, Malkov and Yashunin, arXiv 1603.09320; IVF and product
quantization, Jegou, Douze and Schmid, TPAMI 2011.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppreid_plugin.number_checks import require_whole
from ppreid_plugin.registry import closest
from ppreid_plugin.retrieval.checks import choice
from ppreid_plugin.search.columns import open_columns
from ppreid_plugin.search.hits import Hits
from ppreid_plugin.search.index import IndexWriter, register_index
from ppreid_plugin.search.record import IndexRecord, require_hashes
from ppreid_plugin.search.record_shape import misfit, whole
from ppreid_plugin.search.room import room_for
from ppreid_plugin.search.source import RowSource
from ppreid_plugin.search.storage import RowStorage, build_storage
from ppreid_plugin.search.stored_rows import StoredRowsIndex, StoredRowsWriter

GRAPH = "graph.faiss"
# defaults; those of hnsw and ivfpq as FAISS's own guidelines have them, but for probes and candidates, which are ours
OPTIONS: dict[str, dict[str, int]] = {
    "flat": {},
    "hnsw": {"links": 32, "ef_construction": 200, "ef_search": 128, "candidates": 1},
    "ivfpq": {"lists": 0, "code_bytes": 0, "probes": 32, "candidates": 10},
}

_STORED = ("float32", "float16", "int8")
_CODE_BITS = 8
_FITTED_ON = 2**_CODE_BITS  # rows that codes need at least
_ADDED = 16_384  # rows a step
_TRAINED = 262_144  # rows that lists and codes are fitted on, at most
_MARGIN = 16  # candidates beyond the asked ones: float32 may swap near ones

_log = logging.getLogger(__name__)


class FaissWriter(StoredRowsWriter):
    """Writes the rows in batches; at the end builds graph or lists from them, in one go.

    A build that was killed goes on with the rows; the graph is made again from its beginning. With one thread
    (OMP_NUM_THREADS=1) it is the same graph every time; several threads race for links.

    Args:
        folder: of the generation.
        storage: format of the rows.
        source: what is to be written.
        options: of the backend.
    """

    def __init__(self, folder: Path, storage: RowStorage, source: RowSource, options: Mapping[str, Any]) -> None:
        super().__init__(folder, storage, source)
        self._options, self._columns = options, source.columns

    def finish(self) -> Mapping[str, bool]:
        """Build and save the graph or the lists."""
        files = dict(super().finish())
        if self._options["kind"] == "flat":
            return files
        stored = open_columns(self.folder, self.storage.shapes, self.rows)
        faiss = import_faiss()
        graph = _trained(self._options, self._columns, self.storage, stored, self.rows)
        for rows in _decoded(self.storage, stored, self.rows):
            graph.add(rows)
        temporary = self.folder / f".{GRAPH}.tmp"
        # the rows themselves stay in their own file
        with room_for(self.folder / GRAPH):
            _write(graph, temporary, faiss.IO_FLAG_SKIP_STORAGE if self._options["kind"] == "hnsw" else 0)
        temporary.replace(self.folder / GRAPH)
        return {**files, GRAPH: True}


@register_index("faiss")
class FaissIndex(StoredRowsIndex):
    """Searches with FAISS, in this process; rows are read from the disk once, when it is opened.

    Options:
        kind: ``flat`` (default), ``hnsw`` or ``ivfpq``.
        storage: of the rows on disk, which the scores are computed from: ``float32``, ``float16`` or ``int8``.
        links, ef_construction, ef_search: hnsw: neighbors a row, breadth of the search while building and searching.
        lists, code_bytes: ivfpq: number of lists (4 sqrt(n)); bytes a row's code takes, a divisor of d (d / 8).
        probes: ivfpq: lists that are read a query.
        candidates: how many times ``top`` rows are scored again.
    """

    name = "faiss"

    def __init__(self, folder: Path, record: IndexRecord) -> None:
        super().__init__(folder, record)
        self._kind: str = record.options["kind"]
        self._graph = self._opened()

    @classmethod
    def checked_options(cls, options: Mapping[str, Any], source: RowSource) -> dict[str, Any]:
        """Return all options of the chosen kind."""
        import_faiss()
        kind = choice("kind", options.get("kind", "flat"), list(OPTIONS))
        storage = choice("storage", options.get("storage", "float32"), _STORED)
        allowed = ["kind", "storage", *OPTIONS[kind]]
        if unknown := [name for name in options if name not in allowed]:
            raise ValueError(
                f"--backend faiss:kind={kind} has '{unknown[0]}'; allowed: {', '.join(allowed)}."
                f"{closest(unknown[0], allowed)}"
            )
        numbers = {name: options.get(name, default) for name, default in OPTIONS[kind].items()}
        if kind == "ivfpq":
            numbers["lists"] = numbers["lists"] or max(1, round(4 * source.rows**0.5))
            numbers["code_bytes"] = numbers["code_bytes"] or _divisor(source.columns, max(1, source.columns // 8))
        for name, value in numbers.items():  # FAISS divides by the logarithm of links
            numbers[name] = require_whole(name, value, least=2 if name == "links" else 1)
        if kind == "ivfpq":
            _check_ivfpq(numbers, source)
        return {"kind": kind, "storage": storage, **numbers}

    @classmethod
    def sound_options(cls, options: Mapping[str, Any]) -> bool:
        """Return whether kind, storage and all numbers of the kind are named."""
        kind = options.get("kind")
        known = isinstance(kind, str) and kind in OPTIONS and options.get("storage") in _STORED
        return known and misfit(options, {name: whole(1, 2**31 - 1) for name in OPTIONS[str(kind)]}) is None

    @classmethod
    def thinned_options(cls, options: Mapping[str, Any], source: RowSource) -> dict[str, Any]:
        """Return the options for the rows that a deletion leaves: fewer lists, or ``flat``, where they are too few."""
        if options["kind"] != "ivfpq" or source.rows >= max(_FITTED_ON, options["lists"]):
            return cls.checked_options(options, source)
        if source.rows >= _FITTED_ON:
            fewer = {**options, "lists": round(4 * source.rows**0.5)}
        else:
            fewer = {"kind": "flat", "storage": options["storage"]}
        _log.warning(
            "%d rows are too few for ivfpq with lists=%d: the index goes on with %s.",
            source.rows,
            options["lists"],
            ", ".join(f"{name}={value}" for name, value in fewer.items()),
        )
        return cls.checked_options(fewer, source)

    @classmethod
    def writer(
        cls,
        folder: Path,
        options: Mapping[str, Any],
        source: RowSource,
        metadata: Mapping[str, Any],
        replaces: Mapping[str, Any] | None = None,
    ) -> IndexWriter:
        """Return the writer of rows and graph."""
        return FaissWriter(folder, build_storage(options["storage"], source.columns, None), source, options)

    def _search(self, queries: npt.NDArray[np.float64], top: int) -> list[Hits]:
        asked = min(len(self), max(top * self.record.options.get("candidates", 1), top + _MARGIN))
        _, found = self._graph.search(np.ascontiguousarray(queries, dtype=np.float32), asked)
        return self.hits(
            [
                self.rescored(query, np.unique(numbers[numbers >= 0]), top)  # -1: the lists held no more
                for query, numbers in zip(torch.from_numpy(queries), found, strict=True)
            ]
        )

    def _opened(self) -> Any:
        faiss = import_faiss()
        flat = faiss.IndexFlatIP(self.record.columns)
        if self._kind != "ivfpq":
            for rows in _decoded(self.storage, self.stored, len(self)):
                flat.add(rows)
        if self._kind == "flat":
            return flat
        require_hashes(self.folder, self.record, [GRAPH])
        path = self.generation / GRAPH
        try:
            graph = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_STORAGE if self._kind == "hnsw" else 0)
        except RuntimeError as error:
            raise ValueError(
                f"'{path}' cannot be read ({' '.join(str(error).split())}). Build the index again."
            ) from None
        if (graph.ntotal, graph.d) != (len(self), self.record.columns):
            raise ValueError(
                f"'{path}' holds {graph.ntotal} rows of {graph.d} columns, index.json says {len(self)} of "
                f"{self.record.columns}: the index is damaged. Build it again."
            )
        if self._kind == "hnsw":
            graph.storage, graph.own_fields = flat, False
            self._flat = flat  # FAISS does not keep it alive
            graph.hnsw.efSearch = self.record.options["ef_search"]
        else:
            graph.nprobe = self.record.options["probes"]
        return graph


def import_faiss() -> Any:
    """Return the library.

    Raises:
        ImportError: it is not installed.
    """
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells which builds for this CPU are not there
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError(
            f"the FAISS index needs faiss-cpu ({error}). Install it with: pip install 'ppreid_plugin[faiss]'"
        ) from None


def _trained(
    options: Mapping[str, Any], columns: int, storage: RowStorage, stored: Mapping[str, np.ndarray], rows: int
) -> Any:
    """Return the index without rows, its lists and codes fitted on evenly spaced rows where it has them."""
    faiss = import_faiss()
    if options["kind"] == "hnsw":
        graph = faiss.IndexHNSWFlat(columns, options["links"], faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = options["ef_construction"]
        return graph
    coarse = faiss.IndexFlatIP(columns)
    graph = faiss.IndexIVFPQ(
        coarse, columns, options["lists"], options["code_bytes"], _CODE_BITS, faiss.METRIC_INNER_PRODUCT
    )
    chosen = np.linspace(0, rows - 1, min(rows, _TRAINED)).astype(np.int64)
    graph.train(storage.decode({name: array[chosen] for name, array in stored.items()}).float().numpy())
    return graph


def _write(graph: Any, path: Path, flags: int) -> None:
    """Write and fsync through Python: FAISS says nothing where the last bytes do not reach the disk."""
    faiss = import_faiss()
    failed: list[OSError] = []

    def write(data: bytes) -> None:
        try:
            stream.write(data)
        except OSError as error:
            failed.append(error)
            raise

    with path.open("wb") as stream:
        try:
            faiss.write_index(graph, faiss.PyCallbackIOWriter(write), flags)
        except RuntimeError:
            if failed:
                raise failed[0] from None
            raise
        stream.flush()
        os.fsync(stream.fileno())


def _decoded(storage: RowStorage, stored: Mapping[str, np.ndarray], rows: int) -> Iterator[npt.NDArray[np.float32]]:
    for start in range(0, rows, _ADDED):
        part = {name: array[start : start + _ADDED] for name, array in stored.items()}
        yield storage.decode(part).float().numpy()


def _check_ivfpq(numbers: Mapping[str, int], source: RowSource) -> None:
    least = max(_FITTED_ON, numbers["lists"])
    if source.rows < least:
        raise ValueError(
            f"kind=ivfpq with lists={numbers['lists']} is fitted on at least {least} rows, the release has "
            f"{source.rows}. Take kind=flat."
        )
    if source.columns % numbers["code_bytes"]:
        raise ValueError(
            f"code_bytes is {numbers['code_bytes']}, must divide the {source.columns} columns. Take "
            f"{_divisor(source.columns, numbers['code_bytes'])}."
        )


def _divisor(number: int, most: int) -> int:
    return max(divisor for divisor in range(1, most + 1) if number % divisor == 0)
