"""Exact evaluation with distractors, and from features to figures beside upstream torchreid's Cython path.

    RANKING_ROWS=1000000 UPSTREAM_PYTHON=/path/to/python python -m pytest tests/benchmarks/test_ranking_scale.py -s

Generated features, 3,368 queries of 750 people against Market-1501's 15,913 rows and more distractors, 512 columns,
cosine. UPSTREAM_PYTHON is the interpreter of an environment in which upstream torchreid is installed with its Cython
code built; without it that test is skipped. Threads are what OMP_NUM_THREADS says, or one a core.
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
UPSTREAM = os.environ.get("UPSTREAM_PYTHON", "")
QUERIES, ROWS, COLUMNS, PEOPLE, JUNK, CAMERAS = 3368, 15913, 512, 750, 2798, 6
ARRAYS = ("q", "g", "qp", "gp", "qc", "gc")

EXTRA_MEMORY = """
import json, os, resource, sys
import numpy as np
from ppreid_plugin.retrieval import evaluate
arrays = [np.load(os.path.join(sys.argv[1], name + ".npy")) for name in ("q", "g", "qp", "gp", "qc", "gc")]
people, rows = (np.random.default_rng(n).integers(0, 9, n) for n in (512, 2048))
evaluate(arrays[0][:512], arrays[1][:2048], people, rows, people * 0, rows * 0 + 1, memory_mb=2)  # loads libraries
resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
evaluate(*arrays)
print(json.dumps({"extra": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - resident / 2**20}))
"""

CYTHON = """
import json, os, sys, time
import numpy as np, torch, torchreid
from torchreid.metrics import rank, compute_distance_matrix, evaluate_rank
assert rank.IS_CYTHON_AVAI, "upstream's Cython code is not built there"
arrays = [np.load(os.path.join(sys.argv[1], name + ".npy")) for name in ("q", "g", "qp", "gp", "qc", "gc")]
features = [torch.from_numpy(rows) for rows in arrays[:2]]
start = time.perf_counter()
distances = compute_distance_matrix(*features, "cosine").numpy()
matrix = time.perf_counter() - start
cmc, found = evaluate_rank(distances, *arrays[2:])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "distances": matrix, "rank1": float(cmc[0]), "mAP": float(found),
                  "version": torchreid.__version__}))
"""


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


@pytest.mark.skipif(not UPSTREAM, reason="UPSTREAM_PYTHON names no environment with upstream's Cython code built")
def test_beside_upstreams_cython(market, tmp_path, benchmark):
    before = min(timed(evaluate, *market)[0] for _ in range(3))
    theirs = benchmark.pedantic(child, (CYTHON, kept(market, tmp_path), UPSTREAM), rounds=1)
    after = [timed(evaluate, *market) for _ in range(3)]
    mine, result = min(before, *(took for took, _ in after)), after[0][1]
    assert (result.rank1, result.mAP) == pytest.approx((theirs["rank1"], theirs["mAP"]), abs=1e-4)  # 1 - cosine rounds
    ratio = theirs["seconds"] / mine
    benchmark.extra_info.update({"upstream": theirs, "seconds, ours": mine, "ratio": ratio})
    print(
        f"\nupstream {theirs['version']}, Cython: {theirs['seconds']:.1f} s, {theirs['distances']:.1f} s of them the "
        f"distances: {ratio:.1f} times ours ({mine:.2f} s, {torch.get_num_threads()} threads)"
    )
    assert ratio > 4


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
    assert extra < 450  # scores of up to 256 MiB, and what counts them; no copy of the features
