"""Erasure of class means: against its definition by autograd, on planted attributes, and stopped in the middle."""

import copy

import numpy as np
import pytest
import torch
from adversary_cases import DIM, LABELS, make_context
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ppreid_plugin.components import Batch
from ppreid_plugin.suppression import ClassMeanErasure
from ppreid_plugin.suppression.bank import FeatureBank
from ppreid_plugin.suppression.erasure import class_offsets

PIDS = torch.tensor([0, 1, 2, 3, 4, 5] * 2)  # gender f m f ? m f, by the table of adversary_cases


@pytest.fixture
def people(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(LABELS)
    return str(path)


def make(people, **settings):
    part = ClassMeanErasure(people, settings.pop("attributes", ["gender"]), **settings)
    part.build(make_context((part,)))
    return part


def batch_of(features, pids=PIDS):
    return Batch(images=torch.zeros(len(pids), 3, 2, 2), pids=pids, features=features, feature_map=None, progress=0.0)


def mean_distance(rows, labels):
    """The definition, class by class."""
    classes = sorted(set(labels.tolist()) - {-1})
    means = [rows[labels == one].mean(0) for one in classes]
    center = sum(means) / len(means)
    return sum((mean - center).square().sum() for mean in means) / len(means)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_offsets_are_class_means_less_their_mean(seed):
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.normal(size=(30, 4)))
    labels = torch.from_numpy(np.concatenate([[0, 1, 2], rng.integers(-1, 3, size=27)]))
    offsets = class_offsets(rows, labels, 3)
    assert torch.allclose(offsets.sum(0), torch.zeros(4, dtype=torch.float64), atol=1e-9)
    assert float(offsets.square().sum() / 3) == pytest.approx(float(mean_distance(rows, labels)))


def test_a_class_that_no_row_is_of_is_left_out():
    rows = torch.eye(3, dtype=torch.float64)
    offsets = class_offsets(rows, torch.tensor([0, 2, -1]), 4)
    assert offsets[1].abs().sum() == offsets[3].abs().sum() == 0
    assert torch.allclose(offsets[0], (rows[0] - rows[1]) / 2)


@pytest.mark.parametrize("attributes", [["gender"], ["gender", "hair"]])
def test_a_bank_that_is_the_batch_gives_the_gradient_of_the_definition(people, attributes):
    torch.manual_seed(0)
    part = make(people, attributes=attributes, weight=0.7, bank=12)
    features = torch.randn(12, DIM, requires_grad=True)
    (term,) = part.loss_terms(batch_of(features)).values()
    (got,) = torch.autograd.grad(term, features)
    labels = part._people.of_pids(PIDS)
    rows = part.state.center(features)
    wanted = sum(mean_distance(rows, labels[:, column]) for column in range(len(attributes))) / len(attributes)
    (expected,) = torch.autograd.grad(0.7 * wanted, features)
    assert torch.allclose(got, expected, atol=1e-7)
    assert got.abs().max() > 1e-3
    assert part.finish_step(None)["erasure_distance"] == pytest.approx(wanted.item(), rel=1e-5)


def test_images_without_a_label_feel_nothing(people):
    part = make(people, bank=12)
    features = torch.randn(12, DIM, requires_grad=True)
    (term,) = part.loss_terms(batch_of(features)).values()
    (gradient,) = torch.autograd.grad(term, features)
    felt = gradient.abs().sum(1) > 0
    assert felt.tolist() == (PIDS != 3).tolist()


def test_equal_means_push_nobody(people):
    part = make(people, bank=12)
    # every person twice, mirrored: all class means are 0, and so is the center
    half = torch.randn(6, DIM)
    features = torch.cat([half, -half]).requires_grad_()
    (term,) = part.loss_terms(batch_of(features)).values()
    (gradient,) = torch.autograd.grad(term, features)
    assert gradient.abs().max() < 1e-6
    assert part.finish_step(None)["erasure_distance"] < 1e-12


def test_nothing_is_pushed_before_the_bank_is_full_nor_at_weight_0(people):
    part = make(people, bank=12)
    half = batch_of(torch.randn(6, DIM), PIDS[:6])
    assert part.loss_terms(half) == {}
    assert part.finish_step(half) == {}
    assert set(part.loss_terms(half)) == {"loss_erasure"}
    watching = make(people, bank=12, weight=0.0)
    features = torch.randn(12, DIM, requires_grad=True)
    assert watching.loss_terms(batch_of(features)) == {}
    assert watching.finish_step(None)["erasure_distance"] > 0


def test_the_bank_is_no_larger_than_the_training_split(people):
    assert (len(make(people).state.rows), len(make(people, bank=5).state.rows)) == (12, 5)


def test_the_bank_keeps_the_latest_rows():
    state = FeatureBank(1, 5)
    for start, size in ((0, 3), (3, 4), (7, 9), (16, 1)):
        values = torch.arange(start, start + size)
        state.put(values[:, None].float(), values)
    assert sorted(state.beside.tolist()) == [12, 13, 14, 15, 16]
    assert state.rows[:, 0].tolist() == state.beside.tolist()


def test_a_planted_attribute_is_erased_and_the_person_is_not(people):
    """Features are a person's own direction and, four times as long, the gender's: only the latter goes."""
    torch.manual_seed(0)
    part = make(people, bank=12, weight=1.0)
    own = torch.eye(DIM)[PIDS]
    gender = torch.tensor([0, 1, 0, 0, 1, 0])[PIDS]
    inputs = own + 4 * gender[:, None] * torch.eye(DIM)[-1]
    layer = nn.Linear(DIM, DIM, bias=False)
    nn.init.eye_(layer.weight)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    distances = []
    for _ in range(150):
        batch = batch_of(layer(inputs + 0.01 * torch.randn(12, DIM)))
        optimizer.zero_grad()
        for term in part.loss_terms(batch).values():
            term.backward()
        optimizer.step()
        distances.append(part.finish_step(batch)["erasure_distance"])
    assert distances[-1] < 0.02 * distances[0]
    rows = part.state.center(layer(inputs)).detach()
    cosines = rows @ rows.T
    same = PIDS[:, None] == PIDS[None]
    assert cosines[same].min() > cosines[~same].max() + 0.1


def test_a_resumed_bank_goes_on_where_it_was(people):
    torch.manual_seed(0)
    part = make(people, bank=12)
    part.loss_terms(batch_of(torch.randn(12, DIM)))
    resumed = make(people, bank=12)
    resumed.state.load_state_dict(copy.deepcopy(part.state.state_dict()))
    later = batch_of(torch.randn(6, DIM), PIDS[:6])
    assert torch.equal(part.loss_terms(later)["loss_erasure"], resumed.loss_terms(later)["loss_erasure"])
    assert part.trainables()["erasure"].module is part.state


def test_bad_settings_are_named(people, tmp_path):
    with pytest.raises(ValueError, match=r"privacy.erasure.weight is -1.0, must be a finite number >= 0"):
        ClassMeanErasure(people, weight=-1.0)
    with pytest.raises(ValueError, match=r"privacy.erasure.bank is 1, must be a whole number >= 2"):
        ClassMeanErasure(people, bank=1)
    with pytest.raises(ValueError, match=r"privacy.erasure has no labels of people. Set privacy.erasure.labels"):
        ClassMeanErasure()
    with pytest.raises(FileNotFoundError, match=r"privacy.erasure.labels is '.*none.csv', which does not exist"):
        ClassMeanErasure(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match=r"privacy.erasure.attributes has 'gendr'.*Did you mean 'gender'"):
        make(people, attributes=["gendr"])
    with pytest.raises(RuntimeError, match="no bank yet"):
        ClassMeanErasure(people).loss_terms(batch_of(torch.zeros(12, DIM)))
