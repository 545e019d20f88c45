"""What an approximate or compressed index costs in mAP on a protected gallery, at equal depth.

    SEARCH_FEATURES=features python -m pytest tests/benchmarks/test_search_utility.py -s

SEARCH_FEATURES names a folder with train.npz, query.npz and gallery.npz (arrays features, pids, camids) of
tools/extract_features.py; without it the features are generated. The gallery goes through ``center``, fitted on the
training rows, and ``privunit_g`` at epsilon 16 an image (research noise, seed 1). Ranked are the best SEARCH_DEPTH
(200) rows of each query, those of its own person and camera left out; a match that is not among them counts as 0. JSON
to SEARCH_OUT, if it is set.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tabulate import tabulate

from array_index import ArraySource, index_of
from ppreid_plugin.dp import build_mechanism, build_transform
from ppreid_plugin.report.record import environment, write_json
from ppreid_plugin.retrieval import evaluate

DEPTH = int(os.environ.get("SEARCH_DEPTH", "200"))
FOLDER = os.environ.get("SEARCH_FEATURES", "")
EPSILON, SEED = 16.0, 1
INDEXES = {
    "exact float32": ("exact", {"storage": "float32"}),
    "exact float16": ("exact", {"storage": "float16"}),
    "exact int8": ("exact", {"storage": "int8"}),
    "faiss hnsw": ("faiss", {"kind": "hnsw"}),
    "faiss hnsw, ef_search 1024": ("faiss", {"kind": "hnsw", "ef_search": 1024}),
    "faiss ivfpq": ("faiss", {"kind": "ivfpq"}),
    "faiss ivfpq, all lists": ("faiss", {"kind": "ivfpq", "probes": 10**6}),
}


def people(seed, count, each):
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(count) + 1, each)
    rows = rng.normal(size=(count, 512))[pids - 1] + rng.normal(size=(len(pids), 512))
    return rows.astype(np.float32), pids, np.tile(np.arange(each), count)


@pytest.fixture(scope="module")
def splits():
    if FOLDER:
        files = [np.load(Path(FOLDER, f"{name}.npz")) for name in ("train", "query", "gallery")]
        train, *others = ([one[part] for part in ("features", "pids", "camids")] for one in files)
    else:
        train, (rows, pids, camids) = people(0, 50, 4), people(1, 100, 8)
        others = [[part[camids == 0] for part in (rows, pids, camids)], [rows, pids, camids]]
    center = build_transform("center").fit(train[0])
    (query, *query_labels), (gallery, *gallery_labels) = others
    mechanism = build_mechanism("privunit_g", epsilon=EPSILON)
    released = mechanism.privatize(center.transform(gallery), generator=np.random.default_rng(SEED))
    return (center.transform(query), *query_labels), (np.asarray(released), *gallery_labels)


def mean_precision(found, query_pids, query_camids, gallery_pids, gallery_camids):
    """Mean over queries with a match of the mean precision at their matches among the rows found."""
    values = []
    for hits, pid, camid in zip(found, query_pids, query_camids, strict=True):
        matches = int(((gallery_pids == pid) & (gallery_camids != camid)).sum())
        if not matches:
            continue
        right = hits.pids[(hits.pids != pid) | (hits.camids != camid)] == pid
        ranks = np.flatnonzero(right) + 1
        values.append(float((np.arange(1, len(ranks) + 1) / ranks).sum()) / matches)
    return float(np.mean(values))


def test_map_through_an_index(splits, tmp_path):
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    query, gallery = splits
    full = evaluate(query[0], gallery[0], query[1], gallery[1], query[2], gallery[2]).mAP
    source = ArraySource(gallery[0], pids=gallery[1], camids=gallery[2])
    depth = min(DEPTH, source.rows)
    lines = []
    for name, (backend, options) in INDEXES.items():
        if "probes" in options:
            options = {**options, "probes": max(1, int(4 * source.rows**0.5))}
        with index_of(tmp_path / name, source, backend, batch=4096, **options) as index:
            found = index.search(np.asarray(query[0]), depth)
        lines.append({"index": name, "mAP": mean_precision(found, *query[1:], *gallery[1:])})
    print(f"\n{source.rows} rows, {len(query[0])} queries; all ranked: mAP {full:.2%}; the best {depth}:")
    print(tabulate([{**line, "mAP": f"{line['mAP']:.2%}"} for line in lines], headers="keys"))
    if out := os.environ.get("SEARCH_OUT"):
        about = {"rows": source.rows, "depth": depth, "epsilon": EPSILON, "mechanism": "privunit_g", "all": full}
        write_json({**about, "environment": environment("cpu"), "indexes": lines}, out)
    assert lines[0]["mAP"] <= full + 1e-9
    assert abs(lines[1]["mAP"] - lines[0]["mAP"]) < 0.005
