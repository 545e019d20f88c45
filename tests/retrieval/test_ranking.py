"""Ranking against a naive loop, torchreid's own evaluate_rank, and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

import oracles
from ppreid_plugin.retrieval import counting, evaluate, evaluate_distances, scoring


def random_case(seed, num_query=12, num_gallery=120, people=8, cameras=3, dimension=16):
    rng = np.random.default_rng(seed)
    q_pids, g_pids = rng.integers(0, people + 1, num_query), rng.integers(0, people, num_gallery)  # the last: no match
    q_camids, g_camids = rng.integers(0, cameras, num_query), rng.integers(0, cameras, num_gallery)
    centers = rng.normal(size=(people + 1, dimension))
    query = (centers[q_pids] + rng.normal(size=(num_query, dimension))).astype(np.float32)
    gallery = (centers[g_pids] + rng.normal(size=(num_gallery, dimension))).astype(np.float32)
    return query, gallery, q_pids, g_pids, q_camids, g_camids


def euclidean(query, gallery):
    return ((query[:, None].astype(np.float64) - gallery[None]) ** 2).sum(axis=2)


def cosine(query, gallery):
    query, gallery = (rows / np.linalg.norm(rows.astype(np.float64), axis=1)[:, None] for rows in (query, gallery))
    return 1 - query @ gallery.T


def assert_same(result, expected):
    cmc, mean_ap, mean_inp, valid = expected
    np.testing.assert_allclose(result.cmc, cmc, rtol=0, atol=1e-12)
    assert (result.mAP, result.mINP) == pytest.approx((mean_ap, mean_inp), abs=1e-12)
    assert result.num_valid_queries == valid


@pytest.mark.parametrize("protocol", ["market1501", "all"])
@pytest.mark.parametrize(("metric", "distance"), [("cosine", cosine), ("euclidean", euclidean)])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_naive_loop(seed, metric, distance, protocol):
    case = random_case(seed)
    expected = oracles.rank_metrics(distance(*case[:2]), *case[2:], same_camera_dropped=protocol == "market1501")
    assert_same(evaluate(*case, metric=metric, protocol=protocol), expected)
    assert_same(evaluate_distances(distance(*case[:2]), *case[2:], protocol=protocol), expected)


@pytest.mark.parametrize("num_gallery", [30, 200])
@pytest.mark.filterwarnings("ignore:Cython evaluation:UserWarning")
def test_equals_torchreid(num_gallery):
    import torchreid

    for seed in range(10):
        # one row of each camera is dropped at most as often as there are rows left: torchreid needs lists of one length
        case = random_case(seed, num_gallery=num_gallery, cameras=40)
        distances = cosine(*case[:2])
        max_rank = min(50, num_gallery - 12)
        cmc, mean_ap = torchreid.metrics.evaluate_rank(distances, *case[2:], max_rank=max_rank, use_cython=False)
        result = evaluate(*case, max_rank=max_rank)
        np.testing.assert_allclose(result.cmc, cmc, atol=1e-6)  # torchreid's curve is float32
        assert result.mAP == pytest.approx(mean_ap, abs=1e-9)


def test_equals_scikit_learn_where_there_are_no_ties():
    query, gallery, q_pids, g_pids, q_camids, g_camids = random_case(3)
    precisions = []
    for q, scores in enumerate(-cosine(query, gallery)):
        kept = ~((g_pids == q_pids[q]) & (g_camids == q_camids[q]))
        if (g_pids[kept] == q_pids[q]).any():
            precisions.append(average_precision_score(g_pids[kept] == q_pids[q], scores[kept]))
    result = evaluate(query, gallery, q_pids, g_pids, q_camids, g_camids)
    assert result.mAP == pytest.approx(np.mean(precisions), abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    levels=st.integers(1, 4),
    sort_below=st.sampled_from([0, 3, 10**9]),
    compiled_from=st.sampled_from([0, 10**9]),
)
def test_ties_go_by_gallery_index(data, levels, sort_below, compiled_from):
    """Integer distances: exact, and full of ties. Every branch of the count has to agree with a stable sort."""
    num_query, num_gallery = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 25))

    def draw(n, top):
        return np.array(data.draw(st.lists(st.integers(0, top), min_size=n, max_size=n)))

    distances = draw(num_query * num_gallery, levels).reshape(num_query, num_gallery).astype(np.float32)
    labels = draw(num_query, 2), draw(num_gallery, 2), draw(num_query, 1), draw(num_gallery, 1)
    expected = oracles.rank_metrics(distances, *labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "SORT_BELOW", sort_below)
        patch.setattr(counting, "COMPILED_FROM", compiled_from)
        if expected is None:
            with pytest.raises(ValueError, match="no query has a match"):
                evaluate_distances(distances, *labels)
        else:
            assert_same(evaluate_distances(distances, *labels), expected)


def test_a_tied_row_of_lower_index_comes_first_match_or_not():
    labels = [1], [2, 1, 2], [0], [1, 1, 1]
    assert evaluate_distances(np.zeros((1, 3)), *labels).mAP == 0.5  # behind the first negative, before the last
    features = np.ones((3, 4), dtype=np.float32)
    assert evaluate(features[:1], features, *labels, metric="euclidean").mAP == 0.5


def test_curve_has_max_rank_entries_whatever_the_gallery():
    result = evaluate_distances(np.array([[0.0, 1.0], [1.0, 0.0]]), [1, 1], [1, 2], [0, 0], [1, 1], max_rank=10)
    np.testing.assert_array_equal(result.cmc, [0.5] + [1.0] * 9)
    assert result.cmc.dtype == np.float64
    assert (result.rank1, result.rank(10)) == (0.5, 1.0)
    short = evaluate_distances(np.array([[1.0, 0.0]]), [1], [1, 2], [0], [1, 1], max_rank=1)
    np.testing.assert_array_equal(short.cmc, [0.0])


def test_a_match_exactly_at_max_rank_counts():
    result = evaluate_distances(np.array([[2.0, 1.0, 0.0]]), [1], [1, 2, 2], [0], [1, 1, 1], max_rank=3)
    np.testing.assert_array_equal(result.cmc, [0.0, 0.0, 1.0])


def test_one_gallery_row():
    assert evaluate(np.ones((1, 2)), np.ones((1, 2)), [1], [1], [0], [1]).mAP == 1.0


def test_infinite_distances_are_last_and_not_an_error():
    result = evaluate_distances(np.array([[np.inf, 1.0, -np.inf]]), [1], [1, 2, 1], [0], [1, 1, 0])
    assert result.mAP == 0.5  # the row at -inf is of the query's camera


@pytest.mark.parametrize("memory_mb", [1e-9, 0.01, 64])
def test_chunks_change_nothing(memory_mb):
    case = random_case(1, num_query=40)
    assert_same(evaluate(*case, memory_mb=memory_mb), oracles.rank_metrics(cosine(*case[:2]), *case[2:]))


@pytest.mark.parametrize("block", [1, 7])
@pytest.mark.parametrize("copied", [0, 2**27])
def test_products_with_parts_of_the_gallery_change_nothing(block, copied, monkeypatch):
    case = random_case(4, num_query=40)
    monkeypatch.setattr(scoring, "_BLOCK", block)
    monkeypatch.setattr(scoring, "_COPIED", copied)
    assert_same(evaluate(*case), oracles.rank_metrics(cosine(*case[:2]), *case[2:]))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("kind", ["numpy", "torch", "mixed"])
def test_float_types_and_containers(dtype, kind):
    if dtype == ">f4" and kind != "numpy":
        pytest.skip("torch has one byte order")
    case = random_case(2)
    query, gallery = case[0].astype(dtype), case[1].astype(dtype)
    expected = oracles.rank_metrics(cosine(query, gallery), *case[2:])
    if kind != "numpy":
        query = torch.from_numpy(query).requires_grad_()
    if kind == "torch":
        gallery, case = torch.from_numpy(gallery), tuple(torch.from_numpy(part) for part in case)
    before = gallery.copy() if kind != "torch" else gallery.clone()
    assert_same(evaluate(query, gallery, *case[2:]), expected)
    assert (gallery == before).all()


@pytest.mark.parametrize("container", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("writeable", [True, False])
def test_distances_are_not_overwritten_and_may_be_read_only(container, writeable):
    distances = np.array([[0.0, 1.0, 2.0]])
    evaluate_distances(container(distances), [1], [1, 1, 2], [0], [0, 1, 1])
    distances.flags.writeable = writeable
    evaluate_distances(distances, [1], [1, 1, 2], [0], [0, 1, 1])
    np.testing.assert_array_equal(distances, [[0.0, 1.0, 2.0]])


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_tiny_and_huge_features_rank_as_usual(metric, scale):
    case = random_case(4)
    scaled = tuple((part.astype(np.float64) * scale).astype(np.float32) for part in case[:2])
    assert evaluate(*scaled, *case[2:], metric=metric).mAP == pytest.approx(evaluate(*case, metric=metric).mAP)


def test_zero_rows_have_cosine_zero():
    gallery = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert evaluate(np.array([[1.0, 0.0]]), gallery, [1], [2, 1, 2], [0], [1, 1, 1]).mAP == 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_features_give_the_same_figures():
    case = random_case(5)
    on_gpu = [torch.from_numpy(part).cuda() for part in case]
    assert evaluate(*on_gpu).mAP == pytest.approx(evaluate(*case).mAP, abs=1e-6)


def call(**changes):
    arguments = {
        "query_features": np.ones((2, 3)),
        "gallery_features": np.ones((4, 3)),
        "query_pids": [1, 2],
        "gallery_pids": [1, 2, 1, 2],
        "query_camids": [0, 0],
        "gallery_camids": [1, 1, 1, 1],
    }
    return evaluate(**{**arguments, **changes})


def holed(shape, rows, value=np.nan):
    features = np.ones(shape)
    features[rows, 1] = value
    return features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "cosin"}, r"metric is 'cosin'; allowed: cosine, euclidean. Did you mean 'cosine'\?"),
        ({"protocol": "cuhk3"}, r"protocol is 'cuhk3'; allowed: market1501, cuhk03, all. Did you mean 'cuhk03'"),
        ({"max_rank": 0}, "max_rank is 0, must be a whole number >= 1"),
        ({"max_rank": True}, "max_rank is True, must be"),
        ({"max_rank": 5.0}, "max_rank is 5.0, must be"),
        ({"memory_mb": 0}, "memory_mb is 0, must be a finite number > 0"),
        ({"memory_mb": float("nan")}, "memory_mb is nan, must be"),
        ({"query_features": np.ones(3)}, r"query_features has shape \(3,\), must be \(rows, columns\)"),
        ({"gallery_features": np.ones((0, 3))}, r"gallery_features has shape \(0, 3\), must be"),
        ({"gallery_features": np.ones((4, 5))}, "query_features have 3 columns and gallery_features 5, must be equal"),
        (
            {"query_features": np.ones((2, 3), int)},
            "query_features is of type int64, must be floating point. Convert it to float32",
        ),
        ({"query_features": torch.ones(2, 3, dtype=torch.int32)}, "is of type torch.int32, must be floating point"),
        ({"query_pids": [1]}, r"query_pids has shape \(1,\), must be \(2,\): one label a query row"),
        ({"gallery_camids": [1, 1, 1]}, r"gallery_camids has shape \(3,\), must be \(4,\): one label a gallery row"),
        ({"gallery_pids": [0.5, 1, 2, 3]}, "gallery_pids is of type float64, must be whole numbers"),
        ({"gallery_features": holed((4, 3), [1, 3])}, r"gallery_features rows 1, 3 \(2 of 4\) hold NaN or infinity"),
        ({"query_features": holed((2, 3), [0], np.inf)}, r"query_features rows 0 \(1 of 2\) hold NaN or infinity"),
        ({"query_pids": [8, 9]}, "the pids of query and gallery do not overlap"),
        (
            {"gallery_camids": [0] * 4},
            "every match shares the query's camera.*protocol='all'.*exclude_same_camera False",
        ),
    ],
)
def test_errors_name_value_allowed_and_fix(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_many_bad_rows_are_counted_and_the_first_named():
    with pytest.raises(ValueError, match=r"gallery_features rows 0, 1, 2, 3, 4, ... \(9 of 9\)"):
        call(gallery_features=holed((9, 3), slice(None)), gallery_pids=[1] * 9, gallery_camids=[1] * 9)


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (np.zeros((2, 3)), r"query_pids has shape \(1,\), must be \(2,\)"),
        (np.array([[0.0, np.nan, 1.0]]), r"distances rows 0 \(1 of 1\) hold NaN"),
        (np.zeros(3), r"distances has shape \(3,\)"),
    ],
)
def test_errors_of_distances(distances, message):
    with pytest.raises(ValueError, match=message):
        evaluate_distances(distances, [1], [1, 1, 2], [0], [1, 1, 1])


@pytest.mark.parametrize("k", [0, 51, True])
def test_rank_outside_the_curve_is_refused(k):
    with pytest.raises(ValueError, match="k is"):
        call().rank(k)
