"""Ranking inside an engine's test: what torchreid prints stays, and re-ranking holds no matrix of the gallery."""

from functools import partial

import numpy as np
import pytest
import torch

from ppreid_plugin import toolbox
from ppreid_plugin.retrieval import evaluate_distances
from ppreid_plugin.retrieval.engine_ranking import LazyDistances, exact_ranking
from ppreid_plugin.toolbox import metrics, utils

ENGINE = toolbox.submodule("engine.engine")


@pytest.fixture
def computed(monkeypatch):
    """Sizes of the matrices that torchreid computes."""
    sizes = []
    stock = metrics.compute_distance_matrix

    def compute_distance_matrix(input1, input2, metric="euclidean"):
        sizes.append((len(input1), len(input2)))
        return stock(input1, input2, metric)

    monkeypatch.setattr(metrics, "compute_distance_matrix", compute_distance_matrix)
    return sizes


def test_what_a_re_ranking_engine_prints_is_torchreids(make_engine, capsys, computed):
    engine = make_engine("test.evaluate", True)
    stock_test = partial(ENGINE.Engine.test, engine, dist_metric="cosine", rerank=True)
    engine.set_model_mode("eval")
    printed = []
    for ours in (False, True):
        capsys.readouterr()
        if not ours:
            returned = stock_test()
        else:
            with exact_ranking() as results:
                assert stock_test() == pytest.approx(float(returned), abs=1e-6)
            assert results[0].rank1 == pytest.approx(float(returned), abs=1e-6)
        printed.append([line for line in capsys.readouterr().out.splitlines() if "sec/batch" not in line])
    assert printed[0] == printed[1]
    query, gallery = (len(engine.test_loader["synthetic_pedestrians"][role].dataset) for role in ("query", "gallery"))
    assert computed == [(query, gallery), (query, query), (gallery, gallery)]  # the second time there were none


def test_the_engine_asks_for_it(make_engine, run_engine, computed):
    engine = make_engine("test.evaluate", True, "test.rerank", True)
    run_engine(engine)
    assert not computed
    assert ENGINE.re_ranking is utils.re_ranking
    plain = make_engine("test.evaluate", True)
    run_engine(plain)
    name = "synthetic_pedestrians"
    assert engine.results[name].clean.mAP != plain.results[name].clean.mAP


@pytest.mark.parametrize("exclude_same_camera", [True, False])
def test_cuhk03s_metric_is_the_expectation_in_print_and_in_the_result(exclude_same_camera):
    rng = np.random.default_rng(0)
    case = rng.random((6, 40)), np.arange(6), np.arange(40) % 8, np.zeros(6, int), np.arange(40) % 3
    with exact_ranking(exclude_same_camera=exclude_same_camera, max_rank=5) as results:
        cmc, mAP = metrics.evaluate_rank(*case, use_metric_cuhk03=True)
        metrics.evaluate_rank(*case)
    wanted = evaluate_distances(*case, protocol="cuhk03", max_rank=5)
    assert (cmc.tolist(), mAP) == (wanted.cmc.tolist(), wanted.mAP)
    assert results[0].cmc.tolist() == cmc.tolist() != results[1].cmc.tolist()
    assert (results[0].mAP == results[1].mAP) == exclude_same_camera  # CUHK03's metric always leaves out


def test_all_names_are_given_back_after_an_error():
    before = metrics.evaluate_rank, metrics.compute_distance_matrix, ENGINE.re_ranking
    with pytest.raises(KeyboardInterrupt), exact_ranking():
        assert ENGINE.re_ranking is not before[2]
        raise KeyboardInterrupt
    assert (metrics.evaluate_rank, metrics.compute_distance_matrix, ENGINE.re_ranking) == before


def test_other_readers_of_distances_get_the_matrix():
    """An engine of one's own may hand them to a function that it imported itself, or reckon with them."""
    query, gallery = torch.randn(6, 5), torch.randn(40, 5)
    pairs = (query, gallery), (query, query), (gallery, gallery)
    wanted = [metrics.compute_distance_matrix(*pair, "cosine").numpy() for pair in pairs]
    with exact_ranking():
        found = [metrics.compute_distance_matrix(*pair, "cosine").numpy() for pair in pairs]
        assert [type(distances) for distances in found] == [LazyDistances] * 3
        for lazy, whole in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(lazy, whole)
            np.testing.assert_array_equal(2 * lazy - 1, 2 * whole - 1)
            np.testing.assert_array_equal(np.argsort(lazy, axis=1), np.argsort(whole, axis=1))
            np.testing.assert_array_equal(lazy.argsort(axis=1)[:, :3], whole.argsort(axis=1)[:, :3])
            assert (lazy.shape, len(lazy), lazy.dtype, lazy[2, 3]) == (
                whole.shape,
                len(whole),
                whole.dtype,
                whole[2, 3],
            )
        own = utils.re_ranking(*found)
        ours = ENGINE.re_ranking(*found)
        mixed = ENGINE.re_ranking(wanted[0], wanted[1], found[2])
    for one in (own, ours, mixed):
        np.testing.assert_allclose(one, utils.re_ranking(*wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("cuhk03", [True, False])
def test_figures_from_features_are_those_of_the_matrix(metric, cuhk03):
    query, gallery = torch.randn(20, 6), torch.randn(300, 6)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 9, 20), rng.integers(0, 9, 300), rng.integers(0, 3, 20), rng.integers(0, 3, 300)
    whole = metrics.compute_distance_matrix(query, gallery, metric).numpy()
    with exact_ranking(max_rank=30) as results:
        for distances in (whole, metrics.compute_distance_matrix(query, gallery, metric)):
            metrics.evaluate_rank(distances, *labels, use_metric_cuhk03=cuhk03)
    np.testing.assert_allclose(results[1].cmc, results[0].cmc, rtol=0, atol=1e-6)
    assert (results[1].mAP, results[1].mINP) == pytest.approx((results[0].mAP, results[0].mINP), abs=1e-6)


def test_distances_that_are_looked_at_are_computed_once(computed):
    with exact_ranking():
        distances = metrics.compute_distance_matrix(torch.randn(6, 5), torch.randn(40, 5)).numpy()
        assert not computed
        rows = [row.min() for row in distances]
        distances.argsort(axis=1)
        changed = np.array(distances)
        changed[:] = 0
    assert computed == [(6, 40)]
    assert min(rows) == np.asarray(distances).min() > 0


def test_an_unknown_metric_is_torchreids_error():
    with exact_ranking(), pytest.raises(ValueError, match="Unknown distance metric"):
        metrics.compute_distance_matrix(torch.randn(2, 3), torch.randn(2, 3), "hamming")


def test_what_does_not_fit_the_gpu_is_ranked_on_the_cpu(monkeypatch):
    """Tensors whose copy to the device fails stand in for a GPU that is full."""

    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "cuda", full)
    query, gallery = torch.eye(3), torch.eye(3)
    labels = np.arange(3), np.arange(3), np.zeros(3, int), np.ones(3, int)
    with exact_ranking(use_gpu=True) as results:
        metrics.evaluate_rank(metrics.compute_distance_matrix(query, gallery), *labels)
    assert results[0].mAP == 1.0


@pytest.mark.gpu
def test_features_are_ranked_on_the_gpu(monkeypatch):
    """The CPU's way is not taken, and the figures are its."""
    query, gallery = torch.randn(50, 32), torch.randn(2000, 32)
    labels = np.arange(50) % 7, np.arange(2000) % 7, np.zeros(50, int), np.ones(2000, int)
    with exact_ranking() as expected:
        metrics.evaluate_rank(metrics.compute_distance_matrix(query, gallery), *labels)
    monkeypatch.setattr("ppreid_plugin.retrieval.ranking.positive_ranks", None)
    with exact_ranking(use_gpu=True) as results:
        metrics.evaluate_rank(metrics.compute_distance_matrix(query, gallery), *labels)
    assert results[0].mAP == pytest.approx(expected[0].mAP, abs=1e-5)
