"""The contrastive loss against plain loops, and the running center against stage 2's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppreid_plugin.aware import supervised_contrastive
from ppreid_plugin.dp.transforms import Center
from ppreid_plugin.suppression.centering import RunningCenter


def contrastive_by_loops(scores, pids, temperature):
    """Equation 2 of Khosla et al. 2020, term by term."""
    losses = []
    for i, pid in enumerate(pids):
        others = [j for j in range(len(pids)) if j != i]
        positives = [j for j in others if pids[j] == pid]
        total = sum(math.exp(scores[i][j] / temperature) for j in others)
        shares = [math.log(math.exp(scores[i][j] / temperature) / total) for j in positives]
        if positives:
            losses.append(-sum(shares) / len(positives))
    return sum(losses) / len(losses)


@given(
    pids=st.lists(st.integers(0, 3), min_size=5, max_size=9),
    temperature=st.floats(0.05, 2.0),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_the_loss_is_that_of_plain_loops(pids, temperature, seed):
    scores = (
        torch.rand(len(pids), len(pids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    )
    got = supervised_contrastive(scores, torch.tensor(pids), temperature)
    assert got.item() == pytest.approx(contrastive_by_loops(scores.tolist(), pids, temperature), rel=1e-9)


def test_a_number_added_to_all_scores_of_a_query_changes_nothing():
    scores, pids = torch.randn(6, 6, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1, 2])
    shifted = scores + torch.randn(6, 1, dtype=torch.float64)
    wanted = supervised_contrastive(scores, pids, 0.2)
    assert supervised_contrastive(shifted, pids, 0.2).item() == pytest.approx(wanted.item(), rel=1e-9)


def test_the_gradient_is_that_of_finite_differences():
    scores = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    pids = torch.tensor([0, 1, 0, 1, 2])
    assert torch.autograd.gradcheck(lambda s: supervised_contrastive(s, pids, 0.3), scores)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: supervised_contrastive(torch.eye(2), torch.tensor([0, 0]), 0.0), "is 0.0, must be a finite number"),
        (lambda: supervised_contrastive(torch.eye(3), torch.tensor([0, 0]), 0.1), r"\(3, 3\), must be \(2, 2\)"),
        (
            lambda: supervised_contrastive(torch.eye(3), torch.arange(3), 0.1),
            "none of the 3 images .* RandomIdentitySampler with sampler.num_instances >= 2",
        ),
    ],
)
def test_errors_name_value_allowed_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_center_is_that_of_stage_2_over_the_first_batches():
    features = torch.rand(40, 6) * torch.arange(1, 41.0)[:, None]  # long rows count as short ones
    center = RunningCenter(6, momentum=0.9)
    for batch in features.split(8):
        center.update(batch)
    wanted = Center().fit(features)
    np.testing.assert_allclose(center.mean.numpy(), wanted.mean, atol=1e-6)
    np.testing.assert_allclose(center(features).numpy(), wanted.transform(features).numpy(), atol=1e-5)


def test_the_center_forgets_old_batches_at_its_momentum():
    center = RunningCenter(2, momentum=0.5)
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for batch in (first, first, second):
        center.update(batch)
    assert torch.allclose(center.mean, torch.tensor([0.5, 0.5]))


def test_a_feature_of_zeros_does_not_blow_up_the_gradient():
    center = RunningCenter(4)
    center.update(torch.rand(8, 4))
    features = torch.rand(3, 4)
    features[1] = 0
    features.requires_grad_()
    (center(features) * torch.randn(3, 4)).sum().backward()
    assert torch.equal(features.grad[1], torch.zeros(4))
    assert 0 < features.grad[[0, 2]].abs().max() < 100


def test_the_center_passes_no_gradient_to_the_mean_but_to_the_rows():
    center = RunningCenter(4)
    features = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
    center.double().update(features.detach())
    assert torch.autograd.gradcheck(center, features)
