"""The guard speaks when an adversary is of no use, each cause provoked, and is silent otherwise."""

import logging

import pytest
import torch
from adversary_cases import setup
from hypothesis import given
from hypothesis import strategies as st

from ppreid_plugin.suppression.adversary_guard import AdversaryGuard, feature_spread


def train(adversary, batches, epochs, epoch=0):
    causes = []
    for number in range(epoch, epoch + epochs):
        adversary.begin_epoch(number)
        for batch in batches:
            adversary.loss_terms(batch)
            adversary.finish_step(batch)
        adversary.finish_epoch(number)
        causes.append(sorted(adversary.guard._standing))
    return causes


def test_an_adversary_that_knows_its_people_by_heart_is_reported_once(caplog, tmp_path):
    # random images: what is learned of some people says nothing of others
    _, _, adversary, batch = setup("camera", tmp_path, input="feature", people="cross_fit", lr=0.01)
    batch.features = torch.randn_like(batch.features)
    with caplog.at_level(logging.WARNING):
        causes = train(adversary, [batch] * 20, 6)
    assert causes[-1] == ["by heart"]
    (said,) = [record.getMessage() for record in caplog.records if "by heart" in record.getMessage()]
    assert "adversary_camera knows its training people by heart" in said
    assert "on people it does not learn" in said


def test_identity_by_heart_is_told_without_held_out_people(caplog):
    _, _, adversary, batch = setup(input="feature", lr=0.01)
    with caplog.at_level(logging.WARNING):
        train(adversary, [batch] * 20, 5)
    assert "adversary_identity knows its training people by heart" in caplog.text
    assert "cross_fit" not in caplog.text


def test_what_holds_for_others_too_is_no_memory(caplog, tmp_path):
    _, _, adversary, batch = setup("camera", tmp_path, input="feature", people="cross_fit", lr=0.01)
    batch.features = 0.1 * torch.randn_like(batch.features)
    batch.features[:, 0] += 2.0 * batch.data["camid"] - 1.0  # the camera can be read off anybody's feature
    with caplog.at_level(logging.WARNING):
        causes = train(adversary, [batch] * 20, 5)
    assert causes[-1] == []
    assert not caplog.records


def test_chance_for_long_is_reported(caplog):
    _, _, adversary, batch = setup(input="feature", lr=1e-9)
    torch.nn.init.zeros_(adversary.module[-1].weight)
    torch.nn.init.zeros_(adversary.module[-1].bias)
    with caplog.at_level(logging.WARNING):
        causes = train(adversary, [batch], 5)
    assert causes == [[], [], ["chance"], ["chance"], ["chance"]]
    assert sum("has been at chance for 3 epochs" in record.getMessage() for record in caplog.records) == 1


def test_collapsed_features_are_reported_and_so_is_their_return(caplog):
    _, _, adversary, batch = setup(input="feature")
    healthy, batch.features = batch.features, torch.ones_like(batch.features)
    with caplog.at_level(logging.WARNING):
        assert "features" in train(adversary, [batch], 1)[-1]
        batch.features = healthy
        assert "features" not in train(adversary, [batch], 1, epoch=1)[-1]
        batch.features = torch.zeros_like(healthy)
        assert "features" in train(adversary, [batch], 1, epoch=2)[-1]
    assert sum("are nearly equal" in record.getMessage() for record in caplog.records) == 2


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 10_000))
def test_spread_is_the_variance_over_the_energy(rows, dim, seed):
    features = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    wanted = rows * features.var(0, unbiased=False).sum() / features.square().sum()
    assert feature_spread(features) == pytest.approx(float(wanted), rel=1e-9)
    assert feature_spread(features - features.mean(0)) == pytest.approx(1.0)
    assert feature_spread(features[:1].expand(rows, dim)) == pytest.approx(0.0, abs=1e-12)


def test_figures_that_are_not_finite_are_left_out():
    guard = AdversaryGuard("adversary")
    guard.watch(loss=float("nan"), chance=1.0, spread=0.5)
    assert guard.finish_epoch(0) == []
