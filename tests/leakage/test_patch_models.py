"""Regressions of patches: each strength beside scikit-learn's own, on columns that were standardized by hand."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from ppreid_plugin.leakage import patch_models
from ppreid_plugin.leakage.patch_models import KERNEL_PENALTIES, KERNEL_WIDTHS, LOOKS, PENALTIES, regressions

rng = np.random.default_rng(0)
FEATURES = (rng.normal(size=(60, 5)) * [1, 10, 0.1, 1, 0] + [0, 5, 0, 0, 3]).astype(np.float32)  # the last is constant
WANTED = np.stack([np.sin(2 * FEATURES[:, 0]), 0.1 * FEATURES[:, 1]], axis=1).astype(np.float32)
WANTED -= WANTED.mean(axis=0)
OTHERS = (rng.normal(size=(20, 5)) * [1, 10, 0.1, 1, 0] + [0, 5, 0, 0, 3]).astype(np.float32)


def standardized(rows):
    spread = FEATURES[:, :4].std(axis=0)
    return np.concatenate([(rows[:, :4] - FEATURES[:, :4].mean(axis=0)) / spread, np.zeros((len(rows), 1))], axis=1)


@pytest.fixture(scope="module")
def made():
    found = {}
    for family, predict in regressions(FEATURES, WANTED, seed=1):
        found.setdefault(family, []).append(predict(OTHERS))
    return found


def test_ridge(made):
    for got, penalty in zip(made["ridge"], PENALTIES, strict=True):
        wanted = Ridge(alpha=60 * penalty).fit(standardized(FEATURES), WANTED).predict(standardized(OTHERS))
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_kernel_ridge(made):
    scale = np.median(pdist(standardized(FEATURES), "sqeuclidean"))
    for got, (width, penalty) in zip(
        made["kernel ridge"], itertools.product(KERNEL_WIDTHS, KERNEL_PENALTIES), strict=True
    ):
        model = KernelRidge(kernel="rbf", gamma=width / scale, alpha=penalty).fit(standardized(FEATURES), WANTED)
        np.testing.assert_allclose(got, model.predict(standardized(OTHERS)), atol=1e-3)


def test_the_network_learns_and_is_given_at_every_look(made):
    assert len(made["decoder"]) == LOOKS
    wanted = np.stack([np.sin(2 * OTHERS[:, 0]), 0.1 * OTHERS[:, 1]], axis=1) - WANTED.mean(axis=0)
    errors = [float(((one - wanted) ** 2).mean()) for one in made["decoder"]]
    assert errors[-1] < 0.5 * float((wanted**2).mean())
    assert errors[-1] < errors[0]
    assert len({error for error in errors}) == LOOKS


def test_the_kernel_is_cut_down_to_some_rows(monkeypatch):
    monkeypatch.setattr(patch_models, "KERNEL_ROWS", 10)
    monkeypatch.setattr(patch_models, "STEPS", 6)
    one, again, other = (
        [predict(OTHERS) for family, predict in regressions(FEATURES, WANTED, seed=seed) if family == "kernel ridge"]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_equal_rows_have_no_kernel(monkeypatch):
    monkeypatch.setattr(patch_models, "STEPS", 6)
    families = [family for family, _ in regressions(np.ones((8, 3), np.float32), np.zeros((8, 2), np.float32), seed=1)]
    assert set(families) == {"ridge", "decoder"}
