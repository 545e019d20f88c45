"""Stock torchreid with our ranking inside: the same figures from every way in, and itself again afterwards."""

import itertools
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from ppreid_plugin import build, toolbox
from ppreid_plugin.retrieval import acceleration, evaluate_distances
from ppreid_plugin.retrieval.acceleration import accelerate_torchreid
from ppreid_plugin.toolbox import engine as torchreid_engine
from ppreid_plugin.toolbox import metrics, models, utils

RANK, RERANK, ENGINE = (toolbox.submodule(name) for name in ("metrics.rank", "utils.rerank", "engine.engine"))
COMPILED = 1e-6 if hasattr(RANK, "evaluate_cy") else 1e-12  # Cython sums in float32
NAMES = [(RANK, name) for name in ("evaluate_rank", "evaluate_py", "evaluate_cy", "eval_cuhk03", "IS_CYTHON_AVAI")]
NAMES += [(metrics, "evaluate_rank"), *((module, "re_ranking") for module in (RERANK, utils, ENGINE))]


def state():
    return [getattr(module, name, None) for module, name in NAMES]


@pytest.fixture(autouse=True)
def torchreid_is_itself_again():
    before = state()
    yield
    assert not acceleration._active
    assert all(now is then for now, then in zip(state(), before, strict=True))


@pytest.fixture
def counted(monkeypatch):
    """Calls of our ranking, as ``max_rank``."""
    calls = []
    own = acceleration.evaluate_distances

    def evaluate_distances(*args, **kwargs):
        calls.append(kwargs["max_rank"])
        return own(*args, **kwargs)

    monkeypatch.setattr(acceleration, "evaluate_distances", evaluate_distances)
    return calls


def random_case(seed, num_query=9, num_gallery=70, dtype=np.float32):
    """Distances without ties; a query loses at most one gallery row to its camera."""
    rng = np.random.default_rng(seed)
    distances = rng.permuted(np.arange(num_query * num_gallery)).reshape(num_query, num_gallery).astype(dtype)
    q_pids, g_pids = rng.integers(0, 8, num_query), rng.integers(0, 7, num_gallery)
    g_camids = np.arange(num_gallery) % 40
    q_camids = np.array([g_camids[g_pids == pid][0] if (g_pids == pid).any() else 0 for pid in q_pids])
    return distances, q_pids, g_pids, q_camids, g_camids


@pytest.mark.parametrize("use_cython", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_torchreids(seed, dtype, use_cython, counted):
    case = random_case(seed, dtype=dtype)
    for options in ({}, {"max_rank": 1}, {"max_rank": 20, "use_metric_cuhk03": False}):
        cmc, mAP = metrics.evaluate_rank(*case, **options, use_cython=use_cython)
        assert not counted
        with accelerate_torchreid():
            fast_cmc, fast_map = metrics.evaluate_rank(*case, **options, use_cython=use_cython)
        assert counted == [len(cmc)]
        counted.clear()
        np.testing.assert_array_equal(fast_cmc, cmc)
        assert (fast_cmc.dtype, fast_cmc.shape) == (cmc.dtype, cmc.shape)
        assert isinstance(mAP, float)
        assert isinstance(fast_map, float)
        assert fast_map == pytest.approx(mAP, rel=0, abs=COMPILED if use_cython else 1e-12)


@pytest.mark.parametrize("use_cython", [True, False])
def test_cuhk03s_metric_is_the_mean_of_all_draws(use_cython, counted):
    case = random_case(2, num_gallery=80)
    _, mAP = metrics.evaluate_rank(*case, max_rank=5, use_metric_cuhk03=True, use_cython=use_cython)
    with accelerate_torchreid():
        fast_cmc, fast_map = metrics.evaluate_rank(*case, max_rank=5, use_metric_cuhk03=True, use_cython=use_cython)
    assert fast_map == pytest.approx(mAP, abs=COMPILED if use_cython else 1e-12)
    result = evaluate_distances(*case, protocol="cuhk03", max_rank=5)
    np.testing.assert_array_equal(fast_cmc, result.cmc.astype(np.float32))
    assert counted == [5]


def test_small_galleries_give_as_many_values_as_torchreid():
    distances, q_pids, g_pids = np.array([[3.0, 1.0, 2.0]]), np.array([1]), np.array([1, 2, 1])
    case = distances, q_pids, g_pids, np.array([0]), np.array([1, 1, 1])
    cmc, mAP = metrics.evaluate_rank(*case)
    with accelerate_torchreid():
        fast_cmc, fast_map = metrics.evaluate_rank(*case)
    assert fast_cmc.tolist() == cmc.tolist() == [0.0, 1.0, 1.0]
    assert fast_map == (1 / 2 + 2 / 3) / 2
    assert mAP == pytest.approx(fast_map, abs=COMPILED)


def test_a_compiled_path_is_replaced_and_given_back(monkeypatch, counted):
    def evaluate_cy(*args):
        raise AssertionError("the compiled function was called")

    monkeypatch.setattr(RANK, "IS_CYTHON_AVAI", True)
    monkeypatch.setattr(RANK, "evaluate_cy", evaluate_cy, raising=False)
    case = random_case(0)
    with accelerate_torchreid():
        fast = metrics.evaluate_rank(*case)
    assert counted == [50]
    assert RANK.evaluate_cy is evaluate_cy
    with pytest.raises(AssertionError, match="the compiled function"):
        metrics.evaluate_rank(*case)
    assert fast[1] == pytest.approx(metrics.evaluate_rank(*case, use_cython=False)[1], abs=1e-12)


def test_without_a_compiled_path_none_appears():
    if hasattr(RANK, "evaluate_cy"):
        pytest.skip("Cython was built")
    with accelerate_torchreid():
        assert not hasattr(RANK, "evaluate_cy")


def test_names_that_were_imported_before_are_reached(counted):
    imported_before = metrics.evaluate_rank
    with accelerate_torchreid():
        for evaluate_rank in (imported_before, RANK.evaluate_rank, torchreid_engine.engine.metrics.evaluate_rank):
            evaluate_rank(*random_case(1))
    assert len(counted) == 3
    imported_before(*random_case(1))
    assert len(counted) == 3


def test_nested_calls_are_undone_in_any_order_and_each_once():
    stock = RANK.evaluate_py
    first, second = accelerate_torchreid(), accelerate_torchreid()
    ours = RANK.evaluate_py
    assert ours is not stock
    first.undo()
    first.undo()  # the second time it undoes nothing
    assert RANK.evaluate_py is ours
    with second:
        third = accelerate_torchreid()
    assert RANK.evaluate_py is ours
    third.undo()
    assert RANK.evaluate_py is stock
    third.undo()
    with accelerate_torchreid(), accelerate_torchreid():
        assert RANK.evaluate_py is not stock
    assert RANK.evaluate_py is stock


def test_an_error_inside_the_block_undoes_it_too():
    stock = RANK.evaluate_py
    with pytest.raises(ValueError, match="no query has a match"), accelerate_torchreid():
        metrics.evaluate_rank(np.zeros((1, 2)), np.array([1]), np.array([2, 3]), np.array([0]), np.array([1, 1]))
    assert RANK.evaluate_py is stock


def test_what_somebody_else_put_there_meanwhile_stays():
    def another():
        return None

    stock, mine = RANK.evaluate_py, accelerate_torchreid()
    RANK.evaluate_py = another
    mine.undo()
    found, RANK.evaluate_py = RANK.evaluate_py, stock
    assert found is another


def features(seed, count, people=6):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.eye(people)[np.arange(count) % people] + 0.3 * rng.normal(size=(count, people)))


@pytest.mark.parametrize("options", [{}, {"k1": 6, "k2": 2, "lambda_value": 0.6}])
def test_re_ranking_is_ours_wherever_it_was_imported(options):
    matrices = [
        metrics.compute_distance_matrix(a, b) for a, b in itertools.product((features(0, 9), features(1, 60)), repeat=2)
    ]
    arguments = matrices[1].numpy(), matrices[0], matrices[3]  # as the engine passes them: an array and two tensors
    stock = utils.re_ranking
    wanted = stock(*arguments, **options)
    script, renamed = ModuleType("a_script"), ModuleType("another_script")
    script.re_ranking = renamed.reference = stock
    sys.modules.update({"a_script": script, "another_script": renamed})
    try:
        with accelerate_torchreid(), accelerate_torchreid():
            for module in (RERANK, utils, ENGINE, script):
                assert module.re_ranking is acceleration.re_ranking
            assert renamed.reference is stock  # another name: kept on purpose
            np.testing.assert_allclose(ENGINE.re_ranking(*arguments, **options), wanted, rtol=0, atol=1e-6)
        assert script.re_ranking is stock
    finally:
        del sys.modules["a_script"], sys.modules["another_script"]


@pytest.mark.parametrize("rerank", [False, True], ids=["", "rerank"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_engines_output_is_identical(make_cfg, capsys, metric, rerank, counted):
    cfg = make_cfg("train.batch_size", 4)
    torch.manual_seed(0)
    manager = build.build_datamanager(cfg)
    model = models.build_model(cfg.model.name, manager.num_train_pids, pretrained=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = torchreid_engine.ImageSoftmaxEngine(manager, model, optimizer, use_gpu=False)
    printed, returned = [], []
    for accelerated in (False, True):
        capsys.readouterr()
        if accelerated:
            with accelerate_torchreid():
                returned.append(engine.test(dist_metric=metric, rerank=rerank))
        else:
            returned.append(engine.test(dist_metric=metric, rerank=rerank))
        printed.append([line for line in capsys.readouterr().out.splitlines() if "sec/batch" not in line])
    assert len(counted) == 1
    assert returned[0] == returned[1]
    assert type(returned[0]) is type(returned[1])
    assert printed[0] == printed[1]
    assert any(line.startswith("Rank-20") for line in printed[0])
