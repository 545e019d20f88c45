"""Erasure of the image: against its definition by autograd, what least squares finds afterwards, and stopped midway."""

import copy

import pytest
import torch
from adversary_cases import DIM, make_context
from torch import nn
from torch.nn import functional as F

from ppreid_plugin.components import Batch
from ppreid_plugin.suppression import ImageErasure


def make(size=12, **settings):
    part = ImageErasure(bank=size, **settings)
    part.build(make_context((part,)))
    return part


def images_of(codes, seed=0):
    """Images (n, 3, 32, 16) in which every code (n, k) has a pattern of its own, coarse enough to survive 16 x 8."""
    patterns = torch.rand(codes.shape[1], 3, 16, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate((codes[:, :, None, None, None] * patterns).mean(1), scale_factor=2.0)


def batch_of(features, images):
    pids = torch.zeros(len(features), dtype=torch.int64)
    return Batch(images=images, pids=pids, features=features, feature_map=None, progress=0.0)


def share(rows, images):
    """The definition: squared covariance with the pixels at 16 x 8, over the variance of these."""
    pixels = F.adaptive_avg_pool2d(images, (16, 8)).flatten(1)
    offsets = pixels - pixels.mean(0)
    covariance = (rows - rows.mean(0)).T @ offsets / len(rows)
    return covariance.square().sum() / offsets.square().sum(1).mean()


def test_a_bank_that_is_the_batch_gives_the_gradient_of_the_definition():
    torch.manual_seed(0)
    part = make(weight=0.7)
    features, images = torch.randn(12, DIM, requires_grad=True), torch.rand(12, 3, 32, 16)
    (term,) = part.loss_terms(batch_of(features, images)).values()
    (got,) = torch.autograd.grad(term, features)
    wanted = share(part.state.center(features), images)
    (expected,) = torch.autograd.grad(0.7 * wanted, features)
    torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-4)
    assert got.abs().max() > 1e-4
    assert part.finish_step(None)["image_erasure_covariance"] == pytest.approx(wanted.item(), rel=1e-4)


def test_features_that_say_nothing_linear_of_the_image_feel_nothing():
    part = make()
    half = torch.rand(6, 3, 32, 16)
    direction = torch.randn(6, DIM)
    # every image with one feature and its opposite: the covariance is 0
    features, images = torch.cat([direction, -direction]).requires_grad_(), torch.cat([half, half])
    (term,) = part.loss_terms(batch_of(features, images)).values()
    assert torch.autograd.grad(term, features)[0].abs().max() < 1e-5
    assert part.finish_step(None)["image_erasure_covariance"] < 1e-10


def test_one_constant_image_is_no_division_by_zero():
    part = make()
    features = torch.randn(12, DIM, requires_grad=True)
    (term,) = part.loss_terms(batch_of(features, torch.full((12, 3, 32, 16), 0.5))).values()
    assert torch.isfinite(term)
    assert torch.autograd.grad(term, features)[0].abs().max() < 1e-3


def test_nothing_is_pushed_before_the_bank_is_full_nor_at_weight_0():
    part, watching = make(), make(weight=0.0)
    half = batch_of(torch.randn(6, DIM), torch.rand(6, 3, 32, 16))
    assert part.loss_terms(half) == {}
    assert part.finish_step(half) == {}
    assert set(part.loss_terms(half)) == {"loss_image_erasure"}
    assert watching.loss_terms(batch_of(torch.randn(12, DIM), torch.rand(12, 3, 32, 16))) == {}
    assert watching.finish_step(None)["image_erasure_covariance"] > 0


def test_the_bank_is_no_larger_than_the_training_split():
    assert (len(make(4096).state.rows), len(make(5).state.rows)) == (12, 5)


def test_what_is_shown_goes_and_what_is_not_stays():
    """Features hold two codes, images show the first: it is no longer found, the second as ever."""
    torch.manual_seed(0)
    codes = torch.randn(12, 2)
    images = images_of(codes[:, :1])
    inputs = torch.cat([codes, torch.zeros(12, DIM - 2)], 1)
    part, layer = make(weight=1.0), nn.Linear(DIM, DIM, bias=False)
    nn.init.eye_(layer.weight)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    shares = []
    for _ in range(200):
        batch = batch_of(layer(inputs + 0.01 * torch.randn(12, DIM)), images)
        optimizer.zero_grad()
        for term in part.loss_terms(batch).values():
            term.backward()
        optimizer.step()
        shares.append(part.finish_step(batch)["image_erasure_covariance"])
    assert shares[-1] < 0.05 * shares[0]
    rows = part.state.center(layer(inputs)).detach()

    def found(code):
        return abs(torch.corrcoef(torch.stack([rows @ torch.linalg.lstsq(rows, code).solution, code]))[0, 1].item())

    assert (rows - rows.mean(0)).T.matmul(codes[:, 0] - codes[:, 0].mean()).abs().max() < 0.5
    assert found(codes[:, 1]) > 0.7


def test_a_resumed_bank_goes_on_where_it_was():
    torch.manual_seed(0)
    part, resumed = make(), make()
    part.loss_terms(batch_of(torch.randn(12, DIM), torch.rand(12, 3, 32, 16)))
    resumed.state.load_state_dict(copy.deepcopy(part.state.state_dict()))
    later = batch_of(torch.randn(6, DIM), torch.rand(6, 3, 32, 16))
    assert torch.equal(part.loss_terms(later)["loss_image_erasure"], resumed.loss_terms(later)["loss_image_erasure"])
    assert part.trainables()["image_erasure"].module is part.state


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"privacy.image_erasure.weight is -1.0, must be a finite number >= 0"):
        ImageErasure(weight=-1.0)
    with pytest.raises(ValueError, match=r"privacy.image_erasure.bank is 1, must be a whole number >= 2"):
        ImageErasure(bank=1)
    with pytest.raises(RuntimeError, match="no bank yet"):
        ImageErasure().loss_terms(batch_of(torch.zeros(12, DIM), torch.zeros(12, 3, 32, 16)))
