"""Exact evaluation with distractors, and from features to figures beside upstream torchreid's and fastreid's Cython.

    RANKING_ROWS=1000000 UPSTREAM_PYTHON=/path/to/python python -m pytest tests/benchmarks/test_ranking_scale.py -s

Generated features, 3,368 queries of 750 people against Market-1501's 15,913 rows and more distractors, 512 columns,
cosine. UPSTREAM_PYTHON and FASTREID_PYTHON are the interpreters of environments in which upstream torchreid, fastreid
is installed with its Cython code built; without them these tests are skipped. Threads are what OMP_NUM_THREADS says, or
one a core.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ppreid_plugin.memory import keep_freed_memory
from ppreid_plugin.retrieval import evaluate

SCALES = [int(rows) for rows in os.environ.get("RANKING_ROWS", "515913").split(",") if rows]
THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
QUERIES, ROWS, COLUMNS, PEOPLE, JUNK, CAMERAS = 3368, 15913, 512, 750, 2798, 6
ARRAYS = ("q", "g", "qp", "gp", "qc", "gc")

EXTRA_MEMORY = """
import json, os, sys
import numpy as np
from ppreid_plugin.retrieval import evaluate
from ppreid_plugin.retrieval.counting import compiled_loop
arrays = [np.load(os.path.join(sys.argv[1], name + ".npy")) for name in ("q", "g", "qp", "gp", "qc", "gc")]
people, rows = (np.random.default_rng(n).integers(0, 9, n) for n in (512, 2048))
evaluate(arrays[0][:512], arrays[1][:2048], people, rows, people * 0, rows * 0 + 1, memory_mb=2)  # loads libraries
compiled_loop(np.dtype(np.float32))  # Numba, 141 MiB
held = lambda what: int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1]) / 1024
resident = held("VmRSS")
evaluate(*arrays)
print(json.dumps({"extra": held("VmHWM") - resident}))  # ru_maxrss would be at least the parent's
"""

# A peer's code defines load(), which returns its name, its distances of two tensors and its rank-1 and mAP.
PEER = """
import json, os, sys, time
import numpy as np, torch
{load}
name, distances_of, figures_of = load()
arrays = [np.load(os.path.join(sys.argv[1], name + ".npy")) for name in ("q", "g", "qp", "gp", "qc", "gc")]
features = [torch.from_numpy(rows) for rows in arrays[:2]]
start = time.perf_counter()
distances = distances_of(*features)
matrix = time.perf_counter() - start
rank1, found = figures_of(distances, *arrays[2:])
seconds = time.perf_counter() - start
print(json.dumps({{"seconds": seconds, "distances": matrix, "rank1": float(rank1), "mAP": float(found), "name": name}}))
"""

UPSTREAM = """
def load():
    import torchreid
    from torchreid.metrics import rank, compute_distance_matrix, evaluate_rank

    assert rank.IS_CYTHON_AVAI, "upstream's Cython code is not built there"

    def figures(distances, *labels):
        cmc, mAP = evaluate_rank(distances, *labels)
        return cmc[0], mAP

    distances = lambda *pair: compute_distance_matrix(*pair, "cosine").numpy()
    return "torchreid " + torchreid.__version__, distances, figures
"""

FASTREID = """
def load():
    import collections, collections.abc

    collections.Mapping = collections.abc.Mapping  # fastreid 1.4 takes it from where Python before 3.10 had it
    from fastreid.evaluation import rank
    from fastreid.utils.compute_dist import build_dist

    assert rank.IS_CYTHON_AVAI, "fastreid's Cython code is not built there"

    def figures(distances, *labels):
        cmc, precision, _ = rank.evaluate_rank(distances, *labels)
        return cmc[0], np.mean(precision)

    return "fastreid", lambda *pair: build_dist(*pair, "cosine"), figures
"""

PEERS = {"UPSTREAM_PYTHON": UPSTREAM, "FASTREID_PYTHON": FASTREID}


def made(rows):
    """Features, pids and camids of queries and gallery; what goes beyond Market-1501's rows are distractors."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(PEOPLE + 1, COLUMNS)).astype(np.float32)
    centers[0] = 0
    pids = np.concatenate([rng.integers(1, PEOPLE + 1, ROWS - JUNK), np.zeros(rows - ROWS + JUNK, dtype=np.int64)])
    queried = rng.integers(1, PEOPLE + 1, QUERIES)

    def features(people):
        found = np.empty((len(people), COLUMNS), dtype=np.float32)
        for start in range(0, len(people), 65536):
            part = people[start : start + 65536]
            found[start : start + len(part)] = rng.standard_normal((len(part), COLUMNS), dtype=np.float32) * 2.7
            found[start : start + len(part)] += centers[part]
        return found

    camids = [rng.integers(0, CAMERAS, count) for count in (QUERIES, rows)]
    return features(queried), features(pids), queried, pids, *camids


@pytest.fixture(scope="module")
def market():
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    return made(ROWS)


def timed(function, *args):
    start = time.perf_counter()
    found = function(*args)
    return time.perf_counter() - start, found


def kept(arrays, folder):
    for name, array in zip(ARRAYS, arrays, strict=True):
        np.save(folder / f"{name}.npy", array)
    return folder


def child(code, folder, python=sys.executable):
    done = subprocess.run([python, "-W", "ignore", "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("variable", PEERS)
def test_beside_the_cython_of_peers(market, variable, tmp_path, benchmark):
    python = os.environ.get(variable, "")
    if not python:
        pytest.skip(f"{variable} names no environment with the peer's Cython code built")
    code = PEER.format(load=PEERS[variable])
    before = min(timed(evaluate, *market)[0] for _ in range(3))
    theirs = benchmark.pedantic(child, (code, kept(market, tmp_path), python), rounds=1)
    after = [timed(evaluate, *market) for _ in range(3)]
    mine, result = min(before, *(took for took, _ in after)), after[0][1]
    assert (result.rank1, result.mAP) == pytest.approx((theirs["rank1"], theirs["mAP"]), abs=1e-4)  # 1 - cosine rounds
    ratio = theirs["seconds"] / mine
    benchmark.extra_info.update({"peer": theirs, "seconds, ours": mine, "ratio": ratio})
    print(
        f"\n{theirs['name']}, Cython: {theirs['seconds']:.1f} s, {theirs['distances']:.1f} s of them the "
        f"distances: {ratio:.1f} times ours ({mine:.2f} s, {torch.get_num_threads()} threads)"
    )
    assert ratio > (6 if torch.get_num_threads() > 1 else 4)  # fastreid's; upstream's goal is 8


@pytest.mark.parametrize("rows", SCALES)
def test_with_distractors(market, rows, tmp_path, benchmark):
    arrays = made(rows)
    small = [timed(evaluate, *market)[0] for _ in range(3)]
    large, found = benchmark.pedantic(timed, (evaluate, *arrays), rounds=1)
    small += [timed(evaluate, *market)[0] for _ in range(3)]
    growth = large / sorted(small)[len(small) // 2] / (rows / ROWS)
    kept(arrays, tmp_path)
    size = sum(array.nbytes for array in arrays[:2]) / 2**20
    del arrays
    extra = child(EXTRA_MEMORY, tmp_path)["extra"]
    benchmark.extra_info.update(
        {"rows": rows, "seconds": large, "growth over that of the rows": growth, "extra MiB": extra, "MiB": size}
    )
    print(
        f"\n{rows} rows, mAP {found.mAP:.1%}: {large:.1f} s, {growth:.2f} times what {rows / ROWS:.1f} times the rows "
        f"say; {extra:.0f} MiB at the peak beside {size:.0f} MiB of features"
    )
    assert growth < 1.15
    assert extra < 250  # 72 MiB of scores, labels and what is found of each row; no copy of the features
