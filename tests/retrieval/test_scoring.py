"""Scores of a large gallery, which is not copied: the same figures, and the whole gallery's memory saved."""

import numpy as np
import pytest
import torch

import oracles
from ppreid_plugin.retrieval import evaluate, scoring
from ppreid_plugin.retrieval.equal_rows import EqualRows


@pytest.fixture
def uncopied(monkeypatch):
    monkeypatch.setattr(scoring, "_COPIED", 0)


def score_chunks(query, gallery, metric, step):
    return scoring.score_chunks(scoring.Products(query, gallery, metric), EqualRows(gallery), step)


def case(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    q_pids, g_pids = rng.integers(0, 9, 30), rng.integers(0, 8, 200)
    centers = rng.normal(size=(9, 12))
    query = (scale * (centers[q_pids] + rng.normal(size=(30, 12)))).astype(np.float32)
    gallery = (scale * (centers[g_pids] + rng.normal(size=(200, 12)))).astype(np.float32)
    return query, gallery, q_pids, g_pids, rng.integers(0, 3, 30), rng.integers(0, 3, 200)


def exact(metric, query, gallery):
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return ((query[:, None] - gallery[None]) ** 2).sum(2)
    query, gallery = (rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (query, gallery))
    return 1 - query @ gallery.T


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e18])
def test_figures_are_those_of_the_exact_distances(uncopied, metric, scale):
    arrays = case(scale=scale)
    result = evaluate(*arrays, metric=metric)
    cmc, mean_ap, mean_inp, valid = oracles.rank_metrics(exact(metric, *case()[:2]), *arrays[2:])
    np.testing.assert_allclose(result.cmc, cmc, rtol=0, atol=1e-12)
    assert (result.mAP, result.mINP) == pytest.approx((mean_ap, mean_inp), abs=1e-12)
    assert result.num_valid_queries == valid


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_scores_order_as_those_of_a_copy_and_nothing_given_is_changed(monkeypatch, metric):
    query, gallery = (torch.from_numpy(rows) for rows in case()[:2])
    gallery[5] = gallery[150]
    before = query.clone(), gallery.clone()
    copied = np.concatenate([rows.copy() for _, rows in score_chunks(query, gallery, metric, 7)])
    monkeypatch.setattr(scoring, "_COPIED", 0)
    made = np.concatenate([rows.copy() for _, rows in score_chunks(query, gallery, metric, 7)])
    np.testing.assert_allclose(made, copied, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(made[:, 5], made[:, 150])
    assert torch.equal(query, before[0])
    assert torch.equal(gallery, before[1])


def test_rows_at_the_same_distance_tie_where_float32_holds_it(uncopied):
    """Squares of norms would not: what float32 holds of the roots of 2 and of 6 is below the one, above the other."""
    gallery = torch.tensor([[0.0, 1.0, 1.0], [2.0, 1.0, 1.0], [0.0, -1.0, 1.0], [2.0, 1.0, -1.0]])
    ((_, scores),) = score_chunks(torch.tensor([[1.0, 0.0, 0.0]]), gallery, "euclidean", 1)
    np.testing.assert_array_equal(scores, [[-1.0] * 4])


def test_a_zero_row_has_cosine_0(uncopied):
    query, gallery = torch.ones(1, 2), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    ((_, scores),) = score_chunks(query, gallery, "cosine", 1)
    np.testing.assert_allclose(scores, [[0.0, 0.5**0.5]], rtol=1e-6)


def test_how_many_queries_a_chunk_has():
    def chunk(memory_mb, num_gallery, queries=5000):
        return scoring.queries_per_chunk(memory_mb, torch.empty(queries, 1), num_gallery)

    assert chunk(None, 15_913) == 1000  # of at most 1,186, 72 MiB, five alike
    assert chunk(None, 15_913, queries=3368) == 1123
    assert chunk(None, 15_913, queries=1186) == 1186
    assert chunk(None, 2**18) == 125  # of at most 128, 128 MiB
    assert chunk(None, 2**20) == 64  # 256 MiB
    assert chunk(64, 2**20) == 16
    assert chunk(None, 10, queries=40) == 40
    assert chunk(1e-9, 10) == 1
