"""Small releases and indexes for the tests of search."""

from pathlib import Path

import numpy as np
import torch

from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.plan import ReleaseTerms
from ppreid_plugin.dp.release import release_gallery
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.dp.units import GalleryRows
from ppreid_plugin.search import INDEXES
from ppreid_plugin.search.index import PUBLIC
from ppreid_plugin.search.record import IndexRecord, sealed
from ppreid_plugin.search.source import RowBatch, RowSource
from ppreid_plugin.search.symbols import SymbolTable

DIM = 12


def gallery(people=6, rows=4, *, seed=0, first_pid=0):
    """Rows of people of three cameras; pid 0 is background."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(people) + first_pid, rows)
    features = rng.normal(size=(people, DIM))[pids - first_pid] + 0.3 * rng.normal(size=(len(pids), DIM))
    names = [f"p{pid}_{number % rows}" for number, pid in enumerate(pids)]
    return GalleryRows(features, names, pids, np.arange(len(pids)) % 3)


def transform():
    return build_transform("center").fit(np.random.default_rng(9).normal(size=(50, DIM)))


def subset(epsilon=4.0, size=20, decoder=True):
    codebook = np.random.default_rng(5).normal(size=(size, DIM))
    stands_for = np.random.default_rng(6).normal(size=(size, DIM)) if decoder else None
    return build_mechanism("prior_subset", epsilon=epsilon, codebook=codebook, set_size=3, decoder=stands_for)


def release(folder, rows=None, *, out="release", name="a", mechanism=None, protocol="enrolled", **terms):
    """Draw a release into ``folder/out``; the ledger has room for many."""
    draw = {key: terms.pop(key) for key in ("truth_out", "append", "new_release") if key in terms}
    return release_gallery(
        gallery() if rows is None else rows,
        folder / out,
        ledger=Ledger(folder / "ledger", "site", epsilon=1000.0),
        mechanism=mechanism or build_mechanism("gaussian", epsilon=16.0, delta=1e-5),
        transform=transform(),
        terms=ReleaseTerms(name=name, model="model-1", protocol=protocol, **terms),
        **draw,
    )


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
    from safetensors.numpy import save_file

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
    files = {**writer.finish(), PUBLIC: True}
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
        release={"release": "arrays", "model": "none", "background_pids": list(background)},
        files=sealed(generation, files),
    )
    record.write(folder)
    return kind(folder, record)


def naive(rows, queries, top):
    """Row numbers and cosines of each query's best rows: float64, one at a time, a stable sort."""
    rows = np.asarray(rows, dtype=np.float64)
    found = []
    for query in np.asarray(queries, dtype=np.float64):
        query = query / (np.linalg.norm(query) or 1.0)
        scores = np.array([float(np.dot(row, query)) for row in rows])
        order = sorted(range(len(rows)), key=lambda number: (-scores[number], number))[:top]
        found.append((order, scores[order]))
    return found


def unit(rows):
    return torch.nn.functional.normalize(torch.as_tensor(rows, dtype=torch.float64), dim=1).numpy()
