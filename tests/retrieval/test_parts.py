"""A gallery in parts: the ranks of a stable sort, whatever the parts, the rows that repeat others, and who counts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from ppreid_plugin.retrieval import counting, evaluate, evaluate_distances, parts, ranking, scoring
from ppreid_plugin.retrieval.parts import Parts, parts_of


def in_parts(patch, queries, rows):
    """Let every evaluation be in such parts, and return the list of those that were."""
    done = []
    real = parts.ranks_in_parts
    patch.setattr(ranking, "parts_of", lambda *arguments: Parts(queries, rows))
    patch.setattr(ranking, "ranks_in_parts", lambda *arguments: done.append(arguments) or real(*arguments))
    return done


def exact(metric, query, gallery):
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return np.square(query[:, None] - gallery).sum(axis=2)
    left, right = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in (query, gallery))
    return -(left @ right.T)


def assert_same(found, expected):
    cmc, mean_ap, mean_inp, valid = expected
    np.testing.assert_allclose(found.cmc, cmc, rtol=0, atol=1e-12)
    assert (found.mAP, found.mINP) == pytest.approx((mean_ap, mean_inp), abs=1e-12)
    assert found.num_valid_queries == valid


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_query=st.integers(1, 9),
    num_gallery=st.integers(1, 40),
    levels=st.integers(1, 3),
    queries=st.integers(1, 9),
    rows=st.integers(1, 40),
    copied=st.sampled_from([0, 2**27]),
    compiled_from=st.sampled_from([0, 10**9]),
    sort_below=st.sampled_from([0, 100]),
)
def test_ranks_are_those_of_a_stable_sort(
    seed, num_query, num_gallery, levels, queries, rows, copied, compiled_from, sort_below
):
    """Whole numbers: their distances are exact in float32, and full of ties between rows that are not equal, too."""
    rng = np.random.default_rng(seed)
    query, gallery = (rng.integers(-levels, levels + 1, (n, 3)).astype(np.float32) for n in (num_query, num_gallery))
    labels = [rng.integers(0, top, n) for top in (3, 2) for n in (num_query, num_gallery)]
    expected = oracles.rank_metrics(exact("euclidean", query, gallery), *labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_COPIED", copied)
        patch.setattr(counting, "COMPILED_FROM", compiled_from)
        patch.setattr(counting, "SORT_BELOW", sort_below)
        done = in_parts(patch, queries, rows)
        if expected is None:
            with pytest.raises(ranking.NoMatchError):
                evaluate(query, gallery, *labels, metric="euclidean")
        else:
            assert_same(evaluate(query, gallery, *labels, metric="euclidean"), expected)
        assert done


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_repeat_others_tie_across_parts(monkeypatch, metric, copied, dtype):
    """A codebook's rows, and such as BLAS rounds otherwise in a product of another size."""
    if not copied:
        monkeypatch.setattr(scoring, "_COPIED", 0)
    for seed, (columns, num_gallery, kinds) in enumerate([(17, 37, 7), (64, 37, 30), (512, 37, 7), (64, 1003, 200)]):
        rng = np.random.default_rng(seed)
        base = rng.normal(size=(kinds, columns)).astype(dtype)
        which = rng.integers(0, kinds, num_gallery)
        query = base[rng.integers(0, kinds, 23)] + 0.3 * rng.normal(size=(23, columns)).astype(dtype)
        labels = np.arange(23) % 5, rng.integers(0, 5, num_gallery), rng.integers(0, 3, 23), np.zeros(num_gallery, int)
        expected = evaluate_distances(exact(metric, query, base)[:, which], *labels)
        for queries, rows in ((23, 10), (10, 10), (1, 1), (7, num_gallery), (23, 100)):
            done = in_parts(monkeypatch, queries, rows)
            found = evaluate(query, base[which], *labels, metric=metric)
            assert done
            np.testing.assert_array_equal(found.cmc, expected.cmc)
            assert (found.mAP, found.mINP) == pytest.approx((expected.mAP, expected.mINP), abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e18])
@pytest.mark.parametrize("copied", [0, 2**27])
def test_rows_of_any_length(monkeypatch, metric, scale, copied):
    monkeypatch.setattr(scoring, "_COPIED", copied)
    rng = np.random.default_rng(4)
    pids = [rng.integers(0, 9, n) for n in (30, 200)]
    centers = rng.normal(size=(9, 12))
    query, gallery = (centers[own] + rng.normal(size=(len(own), 12)) for own in pids)
    gallery[7] = 0
    labels = *pids, rng.integers(0, 3, 30), rng.integers(0, 3, 200)
    in_parts(monkeypatch, 11, 30)
    found = evaluate((query * scale).astype(np.float32), (gallery * scale).astype(np.float32), *labels, metric=metric)
    assert_same(found, oracles.rank_metrics(exact(metric, query, gallery), *labels))


def test_how_a_gallery_is_divided():
    def divided(memory_mb, rows, queries=3368, kinds=0, dtype=torch.float32):
        query, gallery = (torch.empty(1, dtype=dtype).expand(count, 1) for count in (queries, rows))
        return parts_of(memory_mb, query, gallery, kinds)

    assert divided(None, 15_913) is None  # 1,186 queries at once
    assert divided(None, 30_000) is None  # 629
    assert divided(None, 10**6) == Parts(1684, 11_112)  # 71.4 MiB
    assert divided(None, 10**6, queries=100) == Parts(100, 10**6 // 6 + 1)  # 63.6 MiB
    assert divided(None, 10**6, queries=10) is None  # 18 fit as a whole
    assert divided(None, 10**6, kinds=4096) == Parts(1123, 12_659)
    assert divided(None, 10**6, kinds=10**6) is None  # 18 as a whole, as many in parts
    assert divided(None, 10**6, dtype=torch.float64) == Parts(1123, 8_334)
    assert divided(1, 10**6) == Parts(32, 8_131)
    assert divided(1e-9, 10**6) is None
    for rows, queries, kinds in ((10**5, 3368, 0), (10**6, 700, 1000), (10**7, 10**4, 5000)):
        made = divided(72, rows, queries, kinds)
        assert made.queries * (made.rows + kinds) * 4 <= 72 * 2**20
        assert made.rows >= 8192


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03", "all"])
def test_a_gallery_that_memory_does_not_hold_is_ranked_in_parts(monkeypatch, protocol):
    rng = np.random.default_rng(5)
    pids = [rng.integers(0, 30, n) for n in (60, 900)]
    centers = rng.normal(size=(30, 8))
    features = [(centers[own] + rng.normal(size=(len(own), 8))).astype(np.float32) for own in pids]
    case = *features, *pids, rng.integers(0, 3, 60), rng.integers(0, 3, 900)
    whole = evaluate(*case, protocol=protocol)
    monkeypatch.setattr(parts, "_COLUMNS", 64)
    used = []
    real = scoring.Products.write
    monkeypatch.setattr(scoring.Products, "write", lambda self, *of: used.append(tuple(of[2].shape)) or real(self, *of))
    found = evaluate(*case, protocol=protocol, memory_mb=0.02)
    np.testing.assert_allclose(found.cmc, whole.cmc, rtol=0, atol=1e-12)
    assert (found.mAP, found.mINP) == pytest.approx((whole.mAP, whole.mINP), abs=1e-12)
    assert max(columns for _, columns in used) == (900 if protocol == "cuhk03" else 82)
    assert all(rows * columns * 4 <= 0.02 * 2**20 for rows, columns in used)


@pytest.mark.parametrize("copied", [0, 2**27])
def test_scores_of_pairs_are_summed_in_float64(copied):
    """Far from the origin a sum in float32 would lose digits."""
    rng = np.random.default_rng(7)
    query, gallery = (torch.from_numpy(1000 + rng.normal(size=(n, 600))).float() for n in (4, 9))
    made = scoring.Products(query, gallery, "cosine", copied=copied)
    queries, rows = torch.arange(36) // 9, torch.arange(36) % 9
    exact = (made.query.double() @ made.gallery.double().T).flatten()
    exact = exact.float() if copied else exact.float() / torch.linalg.vector_norm(gallery, dim=1).repeat(4)
    assert torch.equal(made.pairs(queries, rows), exact)


def test_rows_that_are_repeated_are_copied_some_at_a_time(monkeypatch):
    rng = np.random.default_rng(8)
    gallery = rng.normal(size=(500, 16)).astype(np.float32)[np.arange(1000) % 500]
    labels = rng.integers(0, 9, 20), rng.integers(0, 9, 1000), np.zeros(20, int), np.ones(1000, int)
    query = rng.normal(size=(20, 16)).astype(np.float32)
    expected = evaluate(query, gallery, *labels)
    monkeypatch.setattr("ppreid_plugin.retrieval.checks._AT_ONCE", 16 * 70)
    used = []
    real = scoring.Products.write
    monkeypatch.setattr(scoring.Products, "write", lambda self, *of: used.append(tuple(of[2].shape)) or real(self, *of))
    in_parts(monkeypatch, 20, 300)
    found = evaluate(query, gallery, *labels)
    assert (found.mAP, found.mINP) == (expected.mAP, expected.mINP)
    assert used[:8] == [*[(20, 70)] * 7, (20, 10)]


def test_a_query_without_a_match_and_one_of_very_many(monkeypatch):
    monkeypatch.setattr(counting, "COMPILED_FROM", 0)
    rng = np.random.default_rng(6)
    query, gallery = (rng.normal(size=(n, 5)).astype(np.float32) for n in (3, 900))
    labels = [1, 7, 2], np.repeat([1, 2], [600, 300]), [0, 0, 0], np.ones(900, int)
    expected = oracles.rank_metrics(exact("cosine", query, gallery), *map(np.asarray, labels))
    in_parts(monkeypatch, 2, 100)
    assert_same(evaluate(query, gallery, *labels), expected)
