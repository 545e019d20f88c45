"""Ranking inside an engine's test: what torchreid prints stays, and re-ranking holds no matrix of the gallery."""

from functools import partial

import numpy as np
import pytest
import torch

from ppreid_plugin import toolbox
from ppreid_plugin.retrieval import evaluate_distances
from ppreid_plugin.retrieval.engine_ranking import SelfDistances, exact_ranking
from ppreid_plugin.toolbox import metrics, utils

ENGINE = toolbox.submodule("engine.engine")


@pytest.fixture
def self_distances(monkeypatch):
    """Sizes of the sets whose distances to themselves torchreid computes."""
    sizes = []
    stock = metrics.compute_distance_matrix

    def compute_distance_matrix(input1, input2, metric="euclidean"):
        if input1 is input2:
            sizes.append(len(input1))
        return stock(input1, input2, metric)

    monkeypatch.setattr(metrics, "compute_distance_matrix", compute_distance_matrix)
    return sizes


def test_what_a_re_ranking_engine_prints_is_torchreids(make_engine, capsys, self_distances):
    engine = make_engine("test.evaluate", True)
    stock_test = partial(ENGINE.Engine.test, engine, dist_metric="cosine", rerank=True)
    engine.set_model_mode("eval")
    printed = []
    for options in (None, {}, {"rerank": True}):
        capsys.readouterr()
        if options is None:
            returned = stock_test()
        else:
            with exact_ranking(**options) as results:
                assert stock_test() == pytest.approx(float(returned), abs=1e-6)
            assert results[0].rank1 == pytest.approx(float(returned), abs=1e-6)
        printed.append([line for line in capsys.readouterr().out.splitlines() if "sec/batch" not in line])
    assert printed[0] == printed[1] == printed[2]
    query, gallery = (len(engine.test_loader["synthetic_pedestrians"][role].dataset) for role in ("query", "gallery"))
    assert self_distances == [query, gallery] * 2  # the third time there were none


def test_the_engine_asks_for_it(make_engine, run_engine, self_distances):
    engine = make_engine("test.evaluate", True, "test.rerank", True)
    run_engine(engine)
    assert not self_distances
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
    with pytest.raises(KeyboardInterrupt), exact_ranking(rerank=True):
        assert ENGINE.re_ranking is not before[2]
        raise KeyboardInterrupt
    assert (metrics.evaluate_rank, metrics.compute_distance_matrix, ENGINE.re_ranking) == before


def test_other_readers_of_self_distances_get_the_matrix():
    """An engine of one's own may hand them to a function that it imported itself."""
    query, gallery = torch.randn(6, 5), torch.randn(40, 5)
    pairs = (query, gallery), (query, query), (gallery, gallery)
    wanted = [metrics.compute_distance_matrix(*pair, "cosine").numpy() for pair in pairs]
    with exact_ranking(rerank=True):
        found = [metrics.compute_distance_matrix(*pair, "cosine") for pair in pairs]
        assert [type(distances) for distances in found] == [torch.Tensor, SelfDistances, SelfDistances]
        np.testing.assert_array_equal(found[1].numpy(), wanted[1])
        own = utils.re_ranking(found[0].numpy(), *found[1:])
        mixed = ENGINE.re_ranking(wanted[0], wanted[1], found[2])
    np.testing.assert_allclose(own, utils.re_ranking(*wanted), rtol=0, atol=1e-6)
    np.testing.assert_allclose(mixed, own, rtol=0, atol=1e-6)
