"""The path of GPUs: on CPU tensors with another count, its kernel through Triton's interpreter, and both on CUDA."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import LEVELS, naive_count, random_scores

import oracles
from ppreid_plugin.retrieval import checks, equal_rows, evaluate, evaluate_distances, ranking, scoring
from ppreid_plugin.retrieval.counting import Matches, positive_ranks
from ppreid_plugin.retrieval.device_ranking import DeviceMatches, device_count, device_labels


@pytest.fixture
def on_device(monkeypatch):
    """CPU tensors take the way of a GPU's."""
    monkeypatch.setattr(ranking, "_device_count", lambda scores, protocol: naive_count)


def random_case(seed, num_query=30, num_gallery=200, people=9, columns=12):
    rng = np.random.default_rng(seed)
    q_pids, g_pids = rng.integers(0, people + 1, num_query), rng.integers(0, people, num_gallery)
    centers = rng.normal(size=(people + 1, columns))
    features = [(centers[pids] + rng.normal(size=(len(pids), columns))).astype(np.float32) for pids in (q_pids, g_pids)]
    return *features, q_pids, g_pids, rng.integers(0, 3, num_query), rng.integers(0, 3, num_gallery)


def assert_same(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(found.cmc, expected.cmc, rtol=0, atol=tolerance)
    assert (found.mAP, found.mINP) == pytest.approx((expected.mAP, expected.mINP), abs=tolerance)
    assert found.num_valid_queries == expected.num_valid_queries


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
def test_the_kernel_counts_what_is_above():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(Path(__file__).with_name("kernel_cases.py"))]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["equal"]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("protocol", ["market1501", "all"])
@pytest.mark.parametrize("memory_mb", [None, 1e-9, 0.01])
@pytest.mark.parametrize("copied", [True, False])
def test_figures_are_those_of_the_cpu(monkeypatch, metric, protocol, memory_mb, copied):
    case = random_case(1)
    expected = evaluate(*case, metric=metric, protocol=protocol)
    monkeypatch.setattr(ranking, "_device_count", lambda scores, protocol: naive_count)
    if not copied:
        monkeypatch.setattr(scoring, "_COPIED", 0)
        monkeypatch.setattr(scoring, "_DEVICE_MB", 1e-3)
    assert_same(evaluate(*case, metric=metric, protocol=protocol, memory_mb=memory_mb), expected)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_the_product_is_made_again_where_norms_are_odd(on_device, metric, scale):
    case = random_case(4)
    scaled = tuple((part.astype(np.float64) * scale).astype(np.float32) for part in case[:2])
    assert evaluate(*scaled, *case[2:], metric=metric).mAP == pytest.approx(evaluate(*case, metric=metric).mAP)


def test_features_that_are_not_finite_are_named(on_device):
    case = random_case(6)
    case[1][7, 3] = np.nan
    for metric in ("cosine", "euclidean"):
        with pytest.raises(ValueError, match=r"gallery_features rows 7 \(1 of 200\)"):
            evaluate(*case, metric=metric)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bounds_tell_nan_and_infinity(dtype):
    matrix = torch.randn(5, 7).to(dtype)
    assert checks._within_bounds(matrix, infinity_allowed=False)
    for odd, allowed in ((torch.inf, True), (-torch.inf, True), (torch.nan, False)):
        for place in ((0, 0), (2, 3), (4, 6)):
            one = matrix.clone()
            one[place] = odd
            assert not checks._within_bounds(one, infinity_allowed=False)
            assert checks._within_bounds(one, infinity_allowed=True) is allowed


@settings(max_examples=100, deadline=None)
@given(data=st.data(), levels=st.integers(1, 4), max_rank=st.integers(1, 30), wide=st.booleans())
def test_ties_junk_and_queries_without_a_match(data, levels, max_rank, wide):
    num_query, num_gallery = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 25))

    def draw(n, top):
        return np.array(data.draw(st.lists(st.integers(0, top), min_size=n, max_size=n)))

    distances = (
        draw(num_query * num_gallery, levels).reshape(num_query, num_gallery).astype(np.float64 if wide else "f")
    )
    distances[distances == levels] = np.inf
    labels = draw(num_query, 2), draw(num_gallery, 2), draw(num_query, 1), draw(num_gallery, 1)
    expected = oracles.rank_metrics(distances, *labels, max_rank=max_rank)
    given_distances = distances.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_device_count", lambda scores, protocol: naive_count)
        options = {"max_rank": max_rank, "memory_mb": 1e-4}
        if expected is None:
            with pytest.raises(ValueError, match="no query has a match"):
                evaluate_distances(distances, *labels, **options)
        else:
            found = evaluate_distances(distances, *labels, **options)
            np.testing.assert_allclose(found.cmc, expected[0], rtol=0, atol=1e-12)
            assert (found.mAP, found.mINP) == pytest.approx(expected[1:3], abs=1e-12)
            assert found.num_valid_queries == expected[3]
    np.testing.assert_array_equal(distances, given_distances)


def test_candidates_are_those_of_the_cpu():
    labels = random_case(2)[2:]
    query_pids, gallery_pids, query_camids, gallery_camids = labels
    for exclude in (True, False):
        here = Matches(query_pids, gallery_pids, query_camids, gallery_camids, exclude_same_camera=exclude).of(3, 9)
        there = DeviceMatches([torch.from_numpy(one) for one in labels], exclude_same_camera=exclude).of(3, 9)
        out = torch.zeros_like(there.query, dtype=torch.bool) if there.ignored is None else there.ignored
        np.testing.assert_array_equal(there.places[~out], here.positives)
        np.testing.assert_array_equal(there.places[out], here.ignored)
        np.testing.assert_array_equal(there.query[out], here.ignoring)
        np.testing.assert_array_equal(torch.bincount(there.query[~out], minlength=9), here.counts)


def test_equal_rows_are_found_and_tied_as_on_the_cpu(monkeypatch):
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 3), (40, 17), (300, 64)):
        base, which = torch.from_numpy(rng.normal(size=(rows // 3 + 1, columns))), rng.integers(0, rows // 3 + 1, rows)
        for matrix in (base[which], torch.cat([base[which][:, :16], base[which][:, 16:].abs()], dim=1)):
            equal = equal_rows.EqualRows(matrix)
            scores = torch.from_numpy(rng.normal(size=(5, rows)))
            expected = equal.tie(scores.numpy().copy())
            with monkeypatch.context() as patch:
                patch.setattr(equal_rows, "_first_alike", equal_rows._first_alike_on_device)
                patch.setattr(checks, "_AT_ONCE_ON_DEVICE", 7)
                there = equal_rows.EqualRows(matrix)
                np.testing.assert_array_equal(there.later, equal.later)
                np.testing.assert_array_equal(there.first, equal.first)
                np.testing.assert_array_equal(there.tie_tensor(scores), expected)


@pytest.mark.parametrize(("camids", "message"), [([0] * 4, "every match shares the query's camera"), ([1] * 4, "pids")])
def test_no_match_says_why(on_device, camids, message):
    gallery_pids = [1, 2, 1, 2] if camids[0] == 0 else [3, 4, 3, 4]
    with pytest.raises(ranking.NoMatchError, match=message):
        evaluate(np.ones((2, 3)), np.ones((4, 3)), [1, 2], gallery_pids, [0, 0], camids)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (([1], [1, 2], [0], [0, 0]), r"gallery_pids has shape \(2,\), must be \(3,\)"),
        ((torch.ones(1), torch.ones(3), torch.ones(1), torch.ones(3)), "query_pids is of type float32, must be whole"),
    ],
)
def test_errors_of_labels_are_those_of_the_cpu(labels, message):
    names = "query_pids", "gallery_pids", "query_camids", "gallery_camids"
    with pytest.raises(ValueError, match=message):
        device_labels(names, labels, (1, 3, 1, 3), torch.device("cpu"))


def test_labels_of_any_kind_become_tensors():
    names = "query_pids", "gallery_pids", "query_camids", "gallery_camids"
    for labels in (
        ([1], np.array([1, 2, 3], dtype=np.uint8), torch.tensor([4]), (5, 6, 7)),
        tuple(torch.tensor(one, dtype=torch.int32) for one in ([1], [1, 2, 3], [4], [5, 6, 7])),
    ):
        found = device_labels(names, labels, (1, 3, 1, 3), torch.device("cpu"))
        assert [one.tolist() for one in found] == [[1], [1, 2, 3], [4], [5, 6, 7]]
        assert {one.dtype for one in found} == {torch.int64}


def test_chunks_of_a_device_are_larger_and_whole_tiles():
    def chunk(memory_mb, num_gallery, queries=5000):
        return scoring.queries_per_chunk(memory_mb, torch.empty(queries, 1), num_gallery, on_device=True)

    assert chunk(None, 15_913) == 5000
    assert chunk(None, 515_913) == 512  # of 520 that fit
    assert chunk(64, 2**20) == 16
    assert chunk(1e-9, 10) == 1


def test_without_triton_the_cpu_counts(monkeypatch, caplog):
    assert device_count(torch.device("cpu"), torch.float32) is None
    monkeypatch.setitem(sys.modules, "ppreid_plugin.retrieval.counting_kernel", None)
    with caplog.at_level(logging.WARNING):
        assert device_count.__wrapped__(torch.device("cuda"), torch.float32) is None
    assert "counted on the CPU: no Triton kernel there" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", LEVELS)
def test_cuda_kernel_counts_what_is_above(level, dtype):
    from ppreid_plugin.retrieval.counting_kernel import count_above

    for seed, queries, columns in ((0, 3, 20_011), (1, 7, 4_096), (2, 50, 127), (3, 1, 1)):
        case = [part.cuda() for part in random_scores(seed, queries, columns, 40, level=level, dtype=dtype)]
        assert torch.equal(count_above(*case), naive_count(*case))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("protocol", ["market1501", "all"])
@pytest.mark.parametrize("kind", ["plain", "ties"])
def test_cuda_distances_give_the_cpus_figures(kind, protocol, dtype):
    assert device_count(torch.device("cuda", torch.cuda.current_device()), torch.float32) is not None
    query, gallery, *labels = random_case(3, num_query=700, num_gallery=15_913, people=750, columns=64)
    distances = torch.from_numpy((1 - query @ gallery.T).astype(dtype))
    if kind == "ties":
        distances = distances.div(8).round()
        distances[:, ::97] = torch.inf
    expected = evaluate_distances(distances, *labels, protocol=protocol)
    for memory_mb in (None, 1):
        found = evaluate_distances(distances.cuda(), *labels, protocol=protocol, memory_mb=memory_mb)
        assert_same(found, expected)
        np.testing.assert_array_equal(found.cmc, expected.cmc)


@pytest.mark.gpu
def test_cuda_ranks_are_the_cpus():
    from ppreid_plugin.retrieval.counting_kernel import count_above

    query, gallery, *labels = random_case(4, num_query=300, num_gallery=15_913, people=300, columns=64)
    scores = torch.from_numpy(query @ gallery.T).mul(4).round()
    matches = Matches(*labels, exclude_same_camera=False)
    ((ranks, _),) = positive_ranks([(0, scores.numpy().copy())], matches)
    own = DeviceMatches([torch.from_numpy(one).cuda() for one in labels], exclude_same_camera=False).of(0, len(query))
    np.testing.assert_array_equal(count_above(scores.cuda(), own.places.int(), own.starts).cpu() + 1, ranks)


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_cuda_features_give_the_cpus_figures_to_rounding(metric, scale):
    case = random_case(5, num_query=500, num_gallery=15_913, people=750, columns=64)
    case = tuple(rows * np.float32(scale) for rows in case[:2]) + case[2:]
    expected = evaluate(*case, metric=metric)
    on_gpu = [torch.from_numpy(part).cuda() for part in case]
    assert_same(evaluate(*on_gpu, metric=metric), expected, 1e-4)
    assert_same(evaluate(*on_gpu[:2], *case[2:], metric=metric, memory_mb=2), expected, 1e-4)


@pytest.mark.gpu
def test_cuda_rows_that_are_equal_tie():
    rng = np.random.default_rng(0)
    base, which = torch.from_numpy(rng.normal(size=(300, 512)).astype(np.float32)), rng.integers(0, 300, 5003)
    query = base[rng.integers(0, 300, 77)] + 0.3 * torch.randn(77, 512)
    for metric in ("cosine", "euclidean"):
        for memory_mb in (None, 0.1):
            made = scoring.DeviceScores(query.cuda(), base[which].cuda(), metric, memory_mb)
            made.check()
            for _, scores in made.chunks():
                first = torch.from_numpy(np.unique(which, return_index=True)[1][which]).cuda()
                assert torch.equal(scores, scores[:, first])


@pytest.mark.gpu
def test_cuda_nan_is_named():
    case = random_case(6)
    case[1][7, 3] = np.nan
    with pytest.raises(ValueError, match=r"gallery_features rows 7 \(1 of 200\)"):
        evaluate(*(torch.from_numpy(part).cuda() for part in case))
