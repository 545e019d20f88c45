"""Re-ranking against torchreid's own, which holds all pairs, and against loops over sets where distances are tied."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from ppreid_plugin.retrieval import KReciprocal, evaluate, evaluate_distances, re_rank, re_rank_distances, reranking
from ppreid_plugin.retrieval.distances import FeatureDistances, MatrixDistances
from ppreid_plugin.toolbox import metrics, utils

OPTIONS = [
    {},
    {"k1": 5, "k2": 1, "lambda_value": 0.0},
    {"k1": 7, "k2": 12, "lambda_value": 0.5},  # more codes are averaged than neighbors are listed
    {"k1": 1, "k2": 2, "lambda_value": 1.0},
    {"k1": 10, "k2": 3},  # 10 / 2 and 2 / 3 of 3 or 6 are whole: the bounds are met exactly
]


def random_case(seed, num_query=25, num_gallery=120, people=12, dimension=8, dtype=np.float32):
    rng = np.random.default_rng(seed)
    q_pids, g_pids = rng.integers(0, people, num_query), rng.integers(0, people, num_gallery)
    q_camids, g_camids = rng.integers(0, 3, num_query), rng.integers(0, 3, num_gallery)
    centers = rng.normal(size=(people, dimension))
    query = (centers[q_pids] + rng.normal(size=(num_query, dimension))).astype(dtype)
    gallery = (centers[g_pids] + rng.normal(size=(num_gallery, dimension))).astype(dtype)
    return query, gallery, q_pids, g_pids, q_camids, g_camids


def torchreids_matrices(query, gallery, metric):
    query, gallery = torch.as_tensor(query), torch.as_tensor(gallery)
    pairs = (query, gallery), (query, query), (gallery, gallery)
    return [metrics.compute_distance_matrix(*pair, metric).numpy() for pair in pairs]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_torchreid(seed, metric, options):
    query, gallery, *labels = random_case(seed)
    matrices = torchreids_matrices(query, gallery, metric)
    wanted = utils.re_ranking(*matrices, **options)
    ours = re_rank_distances(*matrices, **options)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)
    of_features = re_rank(query, gallery, **options, metric=metric)
    np.testing.assert_allclose(of_features, wanted, rtol=0, atol=1e-5)
    assert ours.dtype == of_features.dtype == np.float32
    expected = evaluate_distances(wanted, *labels)
    for result in (
        evaluate_distances(ours, *labels),
        evaluate(query, gallery, *labels, metric=metric, rerank=KReciprocal(**options)),
    ):
        np.testing.assert_array_equal(result.cmc, expected.cmc)
        assert (result.mAP, result.mINP) == (expected.mAP, expected.mINP)


def test_more_neighbors_than_there_are_items():
    matrices = torchreids_matrices(*random_case(0, num_query=5, num_gallery=20)[:2], "cosine")
    wanted = utils.re_ranking(*matrices, k1=500, k2=400)
    np.testing.assert_allclose(re_rank_distances(*matrices, k1=500, k2=400), wanted, rtol=0, atol=1e-6)


def test_matrices_that_are_not_symmetric_count_by_column_as_in_torchreid():
    rng = np.random.default_rng(0)
    matrices = [rng.random(shape).astype(np.float32) for shape in ((6, 40), (6, 6), (40, 40))]
    wanted = utils.re_ranking(*matrices, k1=6)
    np.testing.assert_allclose(re_rank_distances(*matrices, k1=6), wanted, rtol=0, atol=1e-6)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_query=st.integers(1, 4),
    num_gallery=st.integers(1, 14),
    levels=st.integers(1, 30),
    k1=st.integers(1, 9),
    k2=st.integers(1, 9),
)
def test_ties_go_by_item(seed, num_query, num_gallery, levels, k1, k2):
    """Whole distances, few levels: lists end among ties, items miss their own list, codes are empty."""
    rng = np.random.default_rng(seed)
    count = num_query + num_gallery
    upper = np.triu(rng.integers(0, levels, (count, count)))
    whole = (upper + upper.T).astype(np.float32)
    q = num_query
    wanted = oracles.k_reciprocal(whole, q, k1, k2)
    ours = re_rank_distances(whole[:q, q:], whole[:q, :q], whole[q:, q:], k1, k2)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)


def test_chunks_change_nothing_and_keep_to_their_memory(monkeypatch):
    query, gallery, *labels = random_case(7)
    whole = re_rank(query, gallery)
    sizes = []
    own = FeatureDistances.rows

    def rows(self, start, stop, first=0):
        out = own(self, start, stop, first)
        sizes.append(out.numel() * out.element_size())
        return out

    monkeypatch.setattr(FeatureDistances, "rows", rows)
    monkeypatch.setattr(reranking, "_ITEMS_PER_PRODUCT", 13)
    monkeypatch.setattr(reranking, "_PAIRS_AT_A_TIME", 37)
    parts = re_rank(query, gallery, memory_mb=0.01)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6)
    assert 0.005 * 2**20 < max(sizes) <= 0.01 * 2**20
    assert len(sizes) > 145 * 145 * 4 / (0.01 * 2**20)
    result = evaluate(query, gallery, *labels, memory_mb=0.01, rerank=KReciprocal())
    assert result.mAP == evaluate_distances(whole, *labels).mAP


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rows_and_pairs_are_the_same_distances(metric):
    query, gallery = random_case(8, dtype=np.float64)[:2]
    matrices = torchreids_matrices(query, gallery, metric)
    whole = np.block([[matrices[1], matrices[0]], [matrices[0].T, matrices[2]]])
    rng = np.random.default_rng(0)
    items, others = rng.integers(0, 145, 400), rng.integers(0, 145, 400)
    features, given = FeatureDistances(query, gallery, metric), MatrixDistances(*matrices)
    scale = np.median(whole / np.maximum(features.rows(0, 145).numpy(), 1e-9))  # features may be scaled
    for source, factor in ((features, scale), (given, 1.0)):
        np.testing.assert_allclose(factor * source.pairs(items, others).numpy(), whole[items, others], atol=1e-9)
        np.testing.assert_allclose(factor * source.rows(20, 33).numpy(), whole[20:33], atol=1e-9)
        np.testing.assert_allclose(factor * source.rows(5, 9, first=25).numpy(), whole[5:9, 25:], atol=1e-9)
    assert np.log2(scale / 4) % 1 == pytest.approx(0, abs=1e-9) or metric == "cosine"


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_tiny_and_huge_features_rank_as_usual(metric, scale):
    query, gallery = random_case(3)[:2]
    scaled = [(rows.astype(np.float64) * scale).astype(np.float32) for rows in (query, gallery)]
    wanted = re_rank(query, gallery, metric=metric)
    np.testing.assert_allclose(re_rank(*scaled, metric=metric), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_features_that_are_all_alike_are_at_one_distance(metric, value):
    features = np.full((30, 4), value, dtype=np.float32)
    distances = re_rank(features[:5], features, k1=4, metric=metric)
    assert np.isfinite(distances).all()
    assert (distances >= 0).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_float_types_and_containers(dtype, kind):
    query, gallery = (rows.astype(dtype) for rows in random_case(4)[:2])
    wanted = utils.re_ranking(*torchreids_matrices(query.astype(np.float64), gallery.astype(np.float64), "cosine"))
    before = query.copy()
    given_query, given_gallery = (
        (torch.from_numpy(query), torch.from_numpy(gallery)) if kind == "torch" else (query, gallery)
    )
    np.testing.assert_allclose(re_rank(given_query, given_gallery), wanted, rtol=0, atol=1e-5)
    assert (query == before).all()
    matrices = torchreids_matrices(query.astype(np.float32), gallery.astype(np.float32), "cosine")
    copies = [matrix.copy() for matrix in matrices]
    re_rank_distances(*(torch.from_numpy(matrix) for matrix in matrices))
    assert all((matrix == copy).all() for matrix, copy in zip(matrices, copies, strict=True))


def test_it_helps_where_people_have_many_images():
    query, gallery, *labels = random_case(5, num_query=100, num_gallery=600, people=20, dimension=24)
    plain, better = (evaluate(query, gallery, *labels, rerank=rerank) for rerank in (None, KReciprocal()))
    assert better.mAP > plain.mAP + 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_features_give_the_same_distances():
    query, gallery = random_case(6)[:2]
    on_gpu = [torch.from_numpy(rows).cuda() for rows in (query, gallery)]
    np.testing.assert_allclose(re_rank(*on_gpu), re_rank(query, gallery), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k1": 0}, "k1 is 0, must be a whole number >= 1"),
        ({"k2": 2.0}, "k2 is 2.0, must be a whole number >= 1"),
        ({"lambda_value": 1.1}, r"lambda_value is 1.1, must lie in \[0, 1\]. The paper's value is 0.3"),
        ({"lambda_value": True}, "lambda_value is True, must lie"),
        ({"lambda_value": float("nan")}, "lambda_value is nan, must lie"),
        ({"memory_mb": 0}, "memory_mb is 0, must be a finite number > 0"),
        ({"metric": "cosin"}, "metric is 'cosin'; allowed: cosine, euclidean. Did you mean 'cosine'"),
        ({"query_features": np.ones((2, 5))}, "query_features have 5 columns and gallery_features 3"),
        ({"gallery_features": np.full((4, 3), np.nan)}, r"gallery_features rows 0, 1, 2, 3 \(4 of 4\) hold NaN"),
    ],
)
def test_errors_name_value_allowed_and_fix(changes, message):
    with pytest.raises(ValueError, match=message):
        re_rank(**{"query_features": np.ones((2, 3)), "gallery_features": np.ones((4, 3)), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"q_q_dist": np.ones((2, 3))},
            r"q_q_dist has shape \(2, 3\), must be \(2, 2\) beside a q_g_dist of shape \(2, 4\)",
        ),
        ({"g_g_dist": np.ones((2, 2))}, r"g_g_dist has shape \(2, 2\), must be \(4, 4\)"),
        ({"g_g_dist": np.full((4, 4), np.inf)}, "g_g_dist rows 0, 1, 2, 3 .* hold NaN or infinity"),
        ({"q_g_dist": np.ones((2, 4), int)}, "q_g_dist is of type int64, must be floating point"),
        ({"k1": -1}, "k1 is -1"),
        ({"memory_mb": "64"}, "memory_mb is '64'"),
    ],
)
def test_errors_of_matrices(changes, message):
    matrices = {"q_g_dist": np.ones((2, 4)), "q_q_dist": np.ones((2, 2)), "g_g_dist": np.ones((4, 4))}
    with pytest.raises(ValueError, match=message):
        re_rank_distances(**{**matrices, **changes})
