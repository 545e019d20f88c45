"""The guard speaks when an adversary is of no use, each cause provoked, and is silent otherwise."""

import json
import logging
import math
import re

import pytest
import torch
from adversary_cases import setup
from hypothesis import given
from hypothesis import strategies as st

from ppreid_plugin.components import Batch
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


def test_one_image_has_no_spread_and_is_no_collapse(caplog):
    assert math.isnan(feature_spread(torch.rand(1, 8)))
    _, _, adversary, batch = setup(input="feature")
    one = Batch(batch.images[:1], batch.pids[:1], batch.features[:1], None, 0.5, {"camid": torch.zeros(1).long()})
    with caplog.at_level(logging.WARNING):
        adversary.loss_terms(one)
        figures = adversary.finish_step(one)
        assert adversary.guard.finish_epoch(0) == []
    assert figures
    assert "feature_spread" not in figures
    assert not caplog.records


def test_figures_that_are_not_finite_are_left_out():
    guard = AdversaryGuard("adversary")
    guard.watch(loss=float("nan"), chance=1.0, spread=0.5)
    assert guard.finish_epoch(0) == []


def told(epochs, *, people=False, chance=2.0, spread=0.5):
    """Return the causes after each of these epochs, of (own loss, loss on people not learned) as shares of chance."""
    guard, causes = AdversaryGuard("adversary", labels_are_people=people), []
    for epoch, (own, held_out) in enumerate(epochs):
        for side in (0.5, 1.5):  # two steps, whose mean counts
            missing = held_out is None
            guard.watch(
                loss=side * own * chance,
                chance=chance,
                spread=side * spread,
                held_out=None if missing else side * held_out * chance,
            )
        causes.append(guard.finish_epoch(epoch))
    return causes


@pytest.mark.parametrize("chance", [0.05, 0.693, 6.62])
@pytest.mark.parametrize(
    ("own", "held_out", "causes"),
    [
        (0.0999, 0.5001, ["by heart"]),
        (0.1001, 0.5001, []),
        (0.0999, 0.4999, []),
        (0.0999, None, ["by heart"]),
        (0.1001, None, []),
        (0.0, 30.0, ["by heart"]),
    ],
)
def test_by_heart_is_a_tenth_of_chance_and_half_of_it_on_others(own, held_out, causes, chance):
    assert told([(own, held_out)], chance=chance) == [causes]


@pytest.mark.parametrize("chance", [0.05, 0.693, 6.62])
def test_chance_is_98_percent_for_three_epochs_on_end(chance):
    under, over = (0.9799, None), (0.9801, None)
    assert told([over] * 4, chance=chance) == [[], [], ["chance"], ["chance"]]
    assert told([under] * 5, chance=chance) == [[]] * 5
    assert told([over, over, under, over, over, over, under], chance=chance) == [[]] * 5 + [["chance"], []]


def test_spread_of_a_ten_thousandth_is_a_collapse():
    assert told([(0.5, None)], spread=0.9999e-4) == [["features"]]
    assert told([(0.5, None)], spread=1.0001e-4) == [[]]


@pytest.mark.parametrize(
    ("epochs", "people", "message"),
    [
        (
            [(0.05, 0.9)],
            False,
            "epoch 1: adversary knows its .*: loss 0.1, of chance 2; .* not learn 1.8. .*nobody else",
        ),
        ([(0.05, None)], True, "epoch 1: adversary knows its .*: loss 0.1, of chance 2. What it says .*nobody else"),
        ([(0.05, None)], False, "adversary may know its .*is not measured: set privacy.adversary.people cross_fit"),
        ([(1.99, None)] * 3, False, "epoch 3: .*at chance for 3 epochs .*too weak: raise privacy.adversary.lr"),
        ([(2.01, None)] * 3, False, "epoch 3: .*at chance for 3 epochs .*It diverges: lower privacy.adversary.lr"),
    ],
)
def test_the_warning_says_what_was_measured_and_what_to_do(epochs, people, message, caplog):
    with caplog.at_level(logging.WARNING):
        told(epochs, people=people)
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.search(message, said), said


def test_a_guard_goes_on_where_another_stopped(caplog):
    def watched(guard, *epochs):
        for epoch in epochs:
            guard.watch(loss=1.99, chance=2.0, spread=0.5)
            guard.finish_epoch(epoch)
        return guard

    first = watched(AdversaryGuard("adversary"), 0, 1)
    second = AdversaryGuard("adversary")
    second.take_state(json.loads(json.dumps(first.state())))
    assert not caplog.messages
    watched(second, 2)
    assert [text.split("(")[0] for text in caplog.messages] == ["epoch 3: adversary has been at chance for 3 epochs "]
    third = AdversaryGuard("adversary")
    third.take_state(second.state())
    watched(third, 3)
    assert len(caplog.messages) == 1  # what stands is not said again
    for state in ({}, {"epochs_at_chance": -1, "standing": []}, {"epochs_at_chance": 1, "standing": ["tired"]}):
        with pytest.raises((KeyError, ValueError)):
            third.take_state(state)


def test_what_comes_back_is_said_again(caplog):
    with caplog.at_level(logging.WARNING):
        told([(0.05, 0.9), (0.05, 0.9), (0.5, 0.9), (0.05, 0.9)])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["epoch 1", "epoch 4"]
