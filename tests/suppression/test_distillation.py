"""Similarities that are kept: against their definition, with a teacher that never changes."""

import dataclasses

import pytest
import torch
from adversary_cases import DIM, SIZE, Encoder, make_context
from torch import nn
from torch.nn import functional as F

from ppreid_plugin.components import Batch
from ppreid_plugin.suppression import SimilarityDistillation


class Normed(nn.Module):
    """An encoder that computes otherwise while it trains, and sees normalized images."""

    def __init__(self):
        super().__init__()
        self.encoder, self.norm = Encoder(), nn.BatchNorm1d(DIM)

    def forward(self, images):
        return self.norm(self.encoder(images))


def make(encoder, **settings):
    part = SimilarityDistillation(**settings)
    context = dataclasses.replace(make_context((part,)), encoder=encoder, norm_mean=(0.5,) * 3, norm_std=(0.25,) * 3)
    part.build(context)
    return part


def batch_of(encoder, images):
    features = encoder((images - 0.5) / 0.25)
    return Batch(images=images, pids=torch.zeros(len(images)).long(), features=features, feature_map=None, progress=0.0)


def centered(features):
    """The definition for a first batch: unit rows less their mean, unit again."""
    unit = F.normalize(features, dim=1)
    return F.normalize(unit - unit.mean(0), dim=1)


def test_the_loss_is_the_mean_squared_difference_of_centered_cosines():
    torch.manual_seed(0)
    encoder = Normed().eval()
    part = make(encoder, weight=3.0)
    start = encoder((images := torch.rand(8, 3, *SIZE)) * 4 - 2).detach()
    with torch.no_grad():
        encoder.encoder.layer.weight.add_(0.02 * torch.randn_like(encoder.encoder.layer.weight))
    batch = batch_of(encoder, images)
    (term,) = part.loss_terms(batch).values()
    rows, wanted = centered(batch.features), centered(start)
    expected = sum((rows[i] @ rows[j] - wanted[i] @ wanted[j]).square() for i in range(8) for j in range(8)) / 64
    assert term.item() == pytest.approx(3.0 * expected.item(), rel=1e-4)
    assert part.finish_step(batch)["loss_distillation"] == pytest.approx(expected.item(), rel=1e-4)
    assert expected.item() > 1e-3


def test_the_unchanged_encoder_loses_nothing():
    torch.manual_seed(0)
    encoder = Normed().eval()
    part = make(encoder)
    batch = batch_of(encoder, torch.rand(8, 3, *SIZE))
    (term,) = part.loss_terms(batch).values()
    assert term.item() < 1e-9


def test_the_teacher_neither_learns_nor_trains():
    torch.manual_seed(0)
    encoder = Normed()
    part = make(encoder)
    before = {name: value.clone() for name, value in part.state.teacher.state_dict().items()}
    part.state.train()  # as torchreid's engine does with every registered module
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    for _ in range(3):
        batch = batch_of(encoder, torch.rand(8, 3, *SIZE))
        optimizer.zero_grad()
        sum(part.loss_terms(batch).values()).backward()
        optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in part.state.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in part.state.teacher.parameters())
    assert any(not torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_the_gradient_brings_the_similarities_back():
    torch.manual_seed(0)
    encoder = Normed().eval()
    part = make(encoder)
    images = torch.rand(8, 3, *SIZE)
    with torch.no_grad():
        encoder.encoder.layer.weight.add_(0.05 * torch.randn_like(encoder.encoder.layer.weight))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        batch = batch_of(encoder, images)
        optimizer.zero_grad()
        sum(part.loss_terms(batch).values()).backward()
        optimizer.step()
        losses.append(part.finish_step(batch)["loss_distillation"])
    assert losses[-1] < 0.1 * losses[0]


def test_weight_0_watches():
    encoder = Normed().eval()
    part = make(encoder, weight=0.0)
    batch = batch_of(encoder, torch.rand(4, 3, *SIZE))
    assert part.loss_terms(batch) == {}
    assert "loss_distillation" in part.finish_step(batch)


def test_errors_are_named():
    with pytest.raises(ValueError, match=r"privacy.distillation.weight is -1, must be a finite number >= 0"):
        SimilarityDistillation(weight=-1)
    part = SimilarityDistillation()
    with pytest.raises(ValueError, match="no encoder to copy"):
        part.build(make_context((part,)))
    with pytest.raises(RuntimeError, match="no teacher yet"):
        part.loss_terms(batch_of(Encoder(), torch.rand(2, 3, *SIZE)))
