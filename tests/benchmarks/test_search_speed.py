"""Search backends side by side: build rate, recall, latency of single queries, bytes on the disk; JSON if asked.

    SEARCH_ROWS=1000000 SEARCH_OUT=search.json python -m pytest tests/benchmarks/test_search_speed.py -s

The rows are protected: generated features (16 a person, in clusters) through ``privunit_g`` at epsilon 16, research
noise. Codes are of the same features through ``prior_subset`` at epsilon 16 (residual codebook of 4,096 codewords, 16
in a set), and compared with a scan of the rows that they stand for. Queries are clean features of the same people.

SEARCH_ROWS (5,000), SEARCH_QUERIES (200), SEARCH_COLUMNS (512) and SEARCH_BACKENDS (all; names of CONFIGURATIONS)
change the run. MILVUS_TEST_URI adds that server's flat and hnsw. Threads are what OMP_NUM_THREADS says.
"""

import itertools
import os
import statistics
import time

import numpy as np
import pytest
import torch
from tabulate import tabulate

from array_index import index_of
from ppreid_plugin.dp import build_mechanism, fit_prior
from ppreid_plugin.report.record import environment, write_json
from ppreid_plugin.search import open_index
from ppreid_plugin.search.index import PUBLIC
from ppreid_plugin.search.source import RowBatch, RowSource
from ppreid_plugin.search.symbols import SymbolTable

ROWS = int(os.environ.get("SEARCH_ROWS", "5000"))
QUERIES = int(os.environ.get("SEARCH_QUERIES", "200"))
COLUMNS = int(os.environ.get("SEARCH_COLUMNS", "512"))
EPSILON, ROWS_A_PERSON, TOP, CHUNK = 16.0, 16, 10, 16_384

CONFIGURATIONS = {
    "exact float32": ("exact", {"storage": "float32"}),
    "exact float16": ("exact", {"storage": "float16"}),
    "exact int8": ("exact", {"storage": "int8"}),
    "faiss flat": ("faiss", {"kind": "flat"}),
    "faiss hnsw": ("faiss", {"kind": "hnsw"}),
    "faiss hnsw 40": ("faiss", {"kind": "hnsw", "ef_construction": 40}),  # a graph of a million rows in an hour
    "faiss ivfpq": ("faiss", {"kind": "ivfpq"}),
    "milvus-lite flat": ("milvus", {"kind": "flat"}),
    "milvus-lite hnsw": ("milvus", {"kind": "hnsw"}),
    "exact codes": ("exact", {"storage": "codes"}),
    "exact float32 of codes": ("exact", {"storage": "float32"}),
}
if uri := os.environ.get("MILVUS_TEST_URI"):
    for kind, consistency in itertools.product(("flat", "hnsw"), ("strong", "bounded")):
        name = f"benchmark_{kind}_{consistency}_{os.getpid()}"
        served = {"kind": kind, "uri": uri, "consistency": consistency, "collection": name}
        CONFIGURATIONS[f"milvus server {kind} {consistency}"] = ("milvus", served)
CHOSEN = [name for name in os.environ.get("SEARCH_BACKENDS", ",".join(CONFIGURATIONS)).split(",") if name]


class Generated:
    """Features of people: a center each in 64 directions, and rows around it (cosine about 0.8 with each other)."""

    def __init__(self, people, seed):
        self._rng = np.random.default_rng(seed)
        self._directions = np.linalg.qr(np.random.default_rng(0).normal(size=(COLUMNS, min(64, COLUMNS))))[0]
        self.people = people
        self._centers = unit(self._rng.normal(size=(people, self._directions.shape[1])))

    def rows(self, pids):
        spread = 0.5 * unit(self._rng.normal(size=(len(pids), COLUMNS)))
        return unit(self._centers[pids] @ self._directions.T + spread).astype(np.float32)


class ProtectedSource(RowSource):
    """Protected rows in a file, or symbols with what they stand for."""

    def __init__(self, pids, *, features=None, symbols=None, arrays=None):
        self.pids, self.features, self.symbols = pids, features, symbols
        self.arrays = arrays or {"none": np.zeros(1)}
        self.table = None if arrays is None else SymbolTable(arrays)
        self.rows, self.columns = len(pids), COLUMNS
        self.has_pids, self.has_camids, self.id_bytes = True, False, 8

    def batches(self, start, size):
        for first in range(start, self.rows, size):
            span = slice(first, min(first + size, self.rows))
            symbols = None if self.symbols is None else self.symbols[span]
            rows = self.features[span] if symbols is None else self.table.rows(symbols).astype(np.float32)
            names = np.char.mod("%08d", np.arange(span.start, span.stop)).astype("S8")
            yield RowBatch(names, np.array(rows), self.pids[span], None, symbols)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Protected rows and symbols of the same people, and clean queries with their pids."""
    pids = np.arange(ROWS, dtype=np.int64) // ROWS_A_PERSON + 1
    gallery = Generated(int(pids[-1]) + 1, seed=1)
    mechanism = build_mechanism("privunit_g", epsilon=EPSILON)
    folder = tmp_path_factory.mktemp("protected")
    features = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=np.float32, shape=(ROWS, COLUMNS))
    symbols = np.empty(ROWS, dtype=np.int64)
    finite = None
    if any("codes" in name for name in CHOSEN):
        others = Generated(1000, seed=2)
        labels = np.arange(8000) % 1000
        prior = fit_prior(others.rows(labels), labels, codewords=4096, set_size=16, kind="residual", seed=1)
        options = {name: value for name, value in prior.options().items() if name in ("codebook", "set_size")}
        finite = build_mechanism("prior_subset", epsilon=EPSILON, **options)
    draw = np.random.default_rng(3)
    for start in range(0, ROWS, CHUNK):
        rows = gallery.rows(pids[start : start + CHUNK])
        features[start : start + CHUNK] = unit(mechanism.privatize(rows, generator=draw))
        if finite is not None:
            symbols[start : start + CHUNK] = finite.symbols(rows, generator=draw)
    asked = np.random.default_rng(4).integers(1, pids[-1] + 1, QUERIES)
    rows = ProtectedSource(pids, features=features)
    codes = None if finite is None else ProtectedSource(pids, symbols=symbols, arrays=finite.codewords.arrays())
    return {"rows": rows, "codes": codes}, gallery.rows(asked), asked


def test_backends_side_by_side(sources, tmp_path):
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    held, queries, asked = sources
    truth, lines = {}, []
    for name in ["exact float32", *(["exact float32 of codes"] if held["codes"] else []), *CHOSEN]:
        if name in truth:
            continue
        of = "codes" if "codes" in name else "rows"
        backend, options = CONFIGURATIONS[name]
        line, found = measured(tmp_path / name, held[of], queries, asked, backend, options)
        if name.startswith("exact float32"):
            truth[name] = found
        right = truth["exact float32 of codes" if of == "codes" else "exact float32"]
        line |= {
            # a row with the score of the right one is as right: codes have many equal rows
            f"recall@{k}": float(np.mean([recall(one, best, k) for one, best in zip(found, right, strict=True)]))
            for k in (1, TOP)
        }
        lines.append({"backend": name, **line})
    print(f"\n{ROWS} protected rows of {COLUMNS}, {QUERIES} single queries, {torch.get_num_threads()} threads")
    print(tabulate(lines, headers="keys", floatfmt=".4g"))
    if out := os.environ.get("SEARCH_OUT"):
        about = {"rows": ROWS, "columns": COLUMNS, "queries": QUERIES, "epsilon": EPSILON, "mechanism": "privunit_g",
                 "codes": "prior_subset, residual, 4096 codewords, 16 in a set", "threads": torch.get_num_threads(),
                 "features": "generated, 16 rows a person in clusters", "noise": "research"}  # fmt: skip
        write_json({**about, "environment": environment("cpu"), "backends": lines}, out)
    for line in lines:
        if any(word in line["backend"] for word in ("exact float", "flat", "codes")):
            assert line["recall@1"] >= 0.98, line
        assert line["p50_ms"] > 0


def measured(folder, source, queries, asked, backend, options):
    """Build, open and search; return the figures and the hits."""
    start = time.perf_counter()
    index_of(folder, source, backend, batch=CHUNK, **options).close()
    built = time.perf_counter() - start
    start = time.perf_counter()
    with open_index(folder) as index:
        opened = time.perf_counter() - start
        index.search(queries[:3], TOP)
        seconds, processor, found = [], [], []
        for query in queries:
            start, worked = time.perf_counter(), time.process_time()
            found += index.search(query[None], TOP)
            seconds.append(time.perf_counter() - start)
            processor.append(time.process_time() - worked)  # what other programs do not disturb
        data = sum(told["bytes"] for name, told in index.record.files.items() if name != PUBLIC)
        kinds = {key: value for key, value in index.record.options.items() if not key.startswith("_")}
    index.discard(folder, index.record.options)  # on a server the rows are not in the folder
    line = {
        "rows_a_second": ROWS / built,
        "open_s": opened,
        "p50_ms": 1000 * statistics.median(seconds),
        "p99_ms": 1000 * float(np.quantile(seconds, 0.99)),
        "cpu_ms": 1000 * statistics.median(processor),
        "bytes_a_row": data / ROWS,  # with row ids and pids; without transform and codebook
        "own_person_first": float(np.mean([hits.pids[0] == pid for hits, pid in zip(found, asked, strict=True)])),
        "options": kinds,
    }
    return line, found


def recall(hits, best, k):
    """Share of the k best that were found; a row with as high a score as the k-th best counts as one of them."""
    least = best.scores[:k][-1] - 1e-9
    known = set(best.numbers[:k].tolist())
    right = sum(
        score >= least or number in known for score, number in zip(hits.scores[:k], hits.numbers[:k], strict=True)
    )
    return right / min(k, len(best))
