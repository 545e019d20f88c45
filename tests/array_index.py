"""An index of rows from arrays, past the release that a real one is built from: for tests and timings of backends."""

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ppreid_plugin.dp.stored import MANIFEST
from ppreid_plugin.search import INDEXES
from ppreid_plugin.search.index import PUBLIC
from ppreid_plugin.search.record import IndexRecord, sealed
from ppreid_plugin.search.source import RowBatch, RowSource
from ppreid_plugin.search.symbols import SymbolTable

MANIFEST_BYTES = b"{}\n"
RELEASE = {
    "release": "arrays", "epsilon": 1.0, "delta": 0.0, "unit": "image", "adjacency": "replace", "protocol": "enrolled",
    "mechanism": {"mechanism": "none"}, "transform": {"transform": "none"}, "model": "none", "person_level": None,
    "ledger": {"scope": "none", "budget": None, "reservation": None, "ledger_seq": None, "ledger_head": None},
    "manifest_sha256": hashlib.sha256(MANIFEST_BYTES).hexdigest(),
}  # fmt: skip


class ArraySource(RowSource):
    """Rows from arrays, without a release: for tests of backends alone."""

    def __init__(self, features=None, *, symbols=None, arrays=None, pids=None, camids=None):
        self.table = None if arrays is None else SymbolTable(arrays)
        self.arrays = arrays or {"none": np.zeros(1)}
        self.symbols, self.pids, self.camids = symbols, pids, camids
        rows = self.table.rows(symbols) if features is None else features
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        self.features = (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)
        self.names = np.array([f"r{number}".encode() for number in range(len(self.features))])
        self.rows, self.columns = self.features.shape
        self.has_pids, self.has_camids = pids is not None, camids is not None
        self.id_bytes = self.names.dtype.itemsize

    def batches(self, start, size):
        everything = RowBatch(self.names, self.features, self.pids, self.camids, self.symbols)
        for first in range(start, self.rows, size):
            yield everything.take(slice(first, first + size))


def index_of(folder, source, backend="exact", *, batch=64, background=(0,), **options):
    """Write and open an index of a source, past the release that a real one needs."""
    kind, folder = INDEXES.get(backend), Path(folder)
    generation = folder / "rows-0001"
    generation.mkdir(parents=True)
    chosen = kind.checked_options(options, source)
    writer = kind.writer(generation, chosen, source, {})
    writer.begin()
    start = 0
    for rows in source.batches(0, batch):
        writer.write(start, rows)
        start += len(rows)
    save_file({name: np.array(a, order="C") for name, a in source.arrays.items()}, generation / PUBLIC)
    (generation / MANIFEST).write_bytes(MANIFEST_BYTES)
    files = {**writer.finish(), PUBLIC: True, MANIFEST: True}
    writer.publish()
    labels = tuple(name for name in ("pids", "camids") if getattr(source, f"has_{name}"))
    record = IndexRecord(
        generation="rows-0001",
        backend=backend,
        options=chosen,
        rows=source.rows,
        columns=source.columns,
        labels=labels,
        id_bytes=source.id_bytes,
        metric="cosine",
        release={**RELEASE, "background_pids": list(background)},
        files=sealed(generation, files),
    )
    record.write(folder)
    return kind(folder, record)
