"""Rows that are equal tie, whatever BLAS makes of them: a gallery released by a codebook has many of them."""

import numpy as np
import pytest
import torch

from ppreid_plugin.retrieval import evaluate, evaluate_distances, scoring
from ppreid_plugin.retrieval.distances import FeatureDistances
from ppreid_plugin.retrieval.enrolled import template_scores
from ppreid_plugin.retrieval.equal_rows import EqualRows


def kinds_of(rows, kinds, columns, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(kinds, columns)).astype(dtype), rng.integers(0, kinds, rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 2, 7, 37, 1003])
@pytest.mark.parametrize("columns", [1, 17, 512])
def test_equal_rows_are_found(dtype, rows, columns):
    base, which = kinds_of(rows, max(1, rows // 3), columns, rows, dtype)
    equal = EqualRows(torch.from_numpy(base[which]))
    first = [which.tolist().index(kind) for kind in which.tolist()]
    later = [place for place in range(rows) if first[place] != place]
    assert equal.later.tolist() == later
    assert equal.first.tolist() == [first[place] for place in later]


def test_checksums_that_agree_by_chance_tie_nothing(monkeypatch):
    monkeypatch.setattr("ppreid_plugin.retrieval.equal_rows._checksums", lambda matrix, rows: np.zeros(len(rows), int))
    equal = EqualRows(torch.tensor([[1.0], [2.0], [1.0]]))
    assert (equal.later.tolist(), equal.first.tolist()) == ([2], [0])


def test_rows_that_begin_alike_are_not_equal_for_that():
    rows = torch.zeros(6, 40)
    rows[[1, 4], -1] = 1.0
    rows[2, 17] = 1.0
    rows[3, 0] = 1.0
    equal = EqualRows(rows)
    assert (equal.later.tolist(), equal.first.tolist()) == ([4, 5], [1, 0])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("queries", [1, 2, 3, 23])
def test_figures_are_those_of_a_stable_sort_whatever_the_chunks(monkeypatch, metric, copied, queries):
    if not copied:
        monkeypatch.setattr(scoring, "_COPIED", 0)
    rng = np.random.default_rng(queries)
    for columns, rows in ((17, 37), (64, 37), (512, 37), (64, 1003)):
        base, which = kinds_of(rows, rows // 5, columns, columns + rows)
        query = base[rng.integers(0, len(base), queries)] + 0.3 * rng.normal(size=(queries, columns)).astype(np.float32)
        labels = (np.arange(queries) % 5, rng.integers(0, 5, rows), np.zeros(queries, int), np.ones(rows, int))
        wide = query.astype(np.float64), base.astype(np.float64)
        if metric == "cosine":
            left, right = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in wide)
            distances = -(left @ right.T)
        else:
            distances = np.square(wide[0][:, None] - wide[1]).sum(axis=2)
        expected = evaluate_distances(distances[:, which], *labels)
        for memory_mb in (None, 1e-9, 0.02):
            found = evaluate(query, base[which], *labels, metric=metric, memory_mb=memory_mb)
            assert found.mAP == pytest.approx(expected.mAP, abs=1e-12)
            np.testing.assert_array_equal(found.cmc, expected.cmc)


@pytest.mark.parametrize("queries", [1, 3, 9])
@pytest.mark.parametrize("people", [7, 37, 301])
def test_equal_templates_have_equal_scores(queries, people):
    """A tie goes to the lower pid; it must be one."""
    for columns in (17, 64, 512):
        base, which = kinds_of(people, max(1, people // 4), columns, people)
        features = torch.from_numpy(np.random.default_rng(1).normal(size=(queries, columns)).astype(np.float32))
        ((_, scores),) = template_scores(features, np.arange(queries), torch.from_numpy(base[which]))
        first = [which.tolist().index(kind) for kind in which.tolist()]
        np.testing.assert_array_equal(scores, scores[:, first])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("columns", [17, 512])
def test_distances_of_equal_items_tie_where_neighbors_are_listed(metric, columns):
    base, which = kinds_of(1003, 200, columns, columns)
    query = torch.from_numpy(base[:37] + np.float32(0.3))
    gallery = torch.from_numpy(base[which])
    distances = FeatureDistances(query, gallery, metric)
    _, places, kinds = np.unique(which, return_index=True, return_inverse=True)
    first = places[kinds]
    for step in (1, 2, 3, 23, 500):
        for start in range(0, distances.num_items, step * 7):
            rows = distances.rows(start, min(start + step, distances.num_items))[:, 37:]
            assert torch.equal(rows, rows[:, first])
            rows = distances.rows(start, min(start + step, distances.num_items), first=37)
            assert torch.equal(rows, rows[:, first])


def test_minus_zero_is_zero():
    matrix = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0]])
    equal = EqualRows(matrix)
    assert (equal.later.tolist(), equal.first.tolist()) == ([1], [0])
