"""The CUHK03 protocol: the mean over every choice of gallery images, and torchreid's draws around it."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from ppreid_plugin.retrieval import KReciprocal, NoMatchError, evaluate, evaluate_distances, re_rank
from ppreid_plugin.retrieval.single_shot import _at_most
from ppreid_plugin.toolbox import submodule

RANK = submodule("metrics.rank")


def random_case(seed, num_query, num_gallery, people, levels):
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, levels, (num_query, num_gallery)).astype(np.float64)
    q_pids, g_pids = rng.integers(0, people, num_query), rng.integers(0, people, num_gallery)
    return distances, q_pids, g_pids, rng.integers(0, 2, num_query), rng.integers(0, 2, num_gallery)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_query=st.integers(1, 3),
    num_gallery=st.integers(1, 11),
    people=st.integers(1, 5),
    levels=st.sampled_from([2, 5, 10**6]),
    max_rank=st.integers(1, 7),
)
def test_equals_every_choice_of_images(seed, num_query, num_gallery, people, levels, max_rank):
    case = random_case(seed, num_query, num_gallery, people, levels)
    wanted = oracles.single_shot_cmc(*case, max_rank=max_rank)
    if wanted is None:
        with pytest.raises(NoMatchError, match="no query has a match"):
            evaluate_distances(*case, protocol="cuhk03", max_rank=max_rank)
        return
    result = evaluate_distances(*case, protocol="cuhk03", max_rank=max_rank)
    np.testing.assert_allclose(result.cmc, wanted, rtol=0, atol=1e-12)
    plain = evaluate_distances(*case, max_rank=max_rank)
    assert (result.mAP, result.mINP, result.num_valid_queries) == (plain.mAP, plain.mINP, plain.num_valid_queries)


def test_torchreids_draws_scatter_around_it():
    """1,000 draws a query: further than 5 standard errors from it less than once in a million entries."""
    rng = np.random.default_rng(0)
    q_pids, g_pids = np.arange(6), np.concatenate([np.arange(12), rng.integers(0, 12, 60)])
    distances = rng.permutation(6 * 72).reshape(6, 72) + 150.0 * (g_pids != q_pids[:, None])
    labels = q_pids, g_pids, np.zeros(6, int), np.ones(72, int)
    result = evaluate_distances(distances, *labels, protocol="cuhk03", max_rank=10)
    np.random.seed(1)  # torchreid draws from it
    curves = []
    for _ in range(100):
        with contextlib.redirect_stdout(io.StringIO()):
            cmc, mAP = RANK.evaluate_py(distances, *labels, 10, True)
        curves.append(cmc)
    error = np.std(curves, axis=0) / np.sqrt(len(curves))
    assert 0.2 < result.cmc[0] < 0.8
    assert (error[:5] > 0).all()
    assert error.max() < 0.01  # else the test sees nothing
    np.testing.assert_array_less(np.abs(np.mean(curves, axis=0) - result.cmc), 5 * error + 1e-6)
    assert result.mAP == pytest.approx(mAP, abs=1e-12)


def test_one_image_a_person_is_the_plain_curve():
    rng = np.random.default_rng(3)
    case = rng.random((9, 30)), np.arange(9), np.arange(30), np.zeros(9, int), np.ones(30, int)
    single, plain = (evaluate_distances(*case, protocol=protocol) for protocol in ("cuhk03", "market1501"))
    np.testing.assert_allclose(single.cmc, plain.cmc, rtol=0, atol=1e-12)
    assert single.cmc[29:].tolist() == [1.0] * 21  # beyond the number of people


def test_images_of_the_query_camera_are_never_shown():
    distances = np.array([[0.0, 2.0, 1.0, 3.0]])
    result = evaluate_distances(distances, [1], [1, 1, 2, 2], [0], [0, 1, 1, 1], protocol="cuhk03", max_rank=2)
    assert result.cmc.tolist() == [0.5, 1.0]


def test_features_and_re_ranked_distances_have_the_protocol_too():
    rng = np.random.default_rng(4)
    pids = np.repeat(np.arange(8), 6)
    features = rng.normal(size=(8, 6))[pids] + rng.normal(size=(48, 6))
    case = features[::3], features, pids[::3], pids, np.zeros(16, int), np.ones(48, int)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for rerank, distances in ((None, -unit[::3] @ unit.T), (KReciprocal(k1=6), re_rank(*case[:2], k1=6))):
        result = evaluate(*case, protocol="cuhk03", rerank=rerank, memory_mb=0.001)
        wanted = evaluate_distances(distances, *case[2:], protocol="cuhk03")
        np.testing.assert_allclose(result.cmc, wanted.cmc, rtol=0, atol=1e-9)
        assert 0 < result.cmc[0] < 1


@pytest.mark.parametrize("count", [1, 4, 30])
def test_equal_chances_are_binomial(count):
    stats = pytest.importorskip("scipy.stats")
    chances = np.array([0.0, 1e-9, 0.3, 0.999, 1.0])
    found = _at_most(np.repeat(chances[:, None], 12, axis=1), count)
    np.testing.assert_allclose(found, stats.binom.cdf(np.arange(count), 12, chances[:, None]), rtol=0, atol=1e-14)
