"""Noise with a gradient: the law of the real mechanism; finite differences and the exact pathwise derivative."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.stats import ks_2samp, kstest
from torch.nn import functional as F

from ppreid_plugin.aware.contrastive import supervised_contrastive
from ppreid_plugin.aware.noise import ReleaseNoise, check_range, draw_epsilon
from ppreid_plugin.dp.mechanisms import build_mechanism

MECHANISMS = ["gaussian", "privunit", "privunit_g"]


def unit(rows, columns, seed=0):
    draws = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draws, dim=1)


def rotation_by_exponential(start, end):
    """The rotation in the plane of two unit vectors, as the exponential of its generator."""
    side = end - (start @ end) * start
    angle = np.arctan2(np.linalg.norm(side), start @ end)
    side /= np.linalg.norm(side)
    return expm(angle * (np.outer(side, start) - np.outer(start, side)))


def rotated(drawn, start, rows):
    """Each draw turned by the rotation that takes its row of ``start`` to that of ``rows``."""
    middle = start + rows
    along = torch.linalg.vecdot(start, drawn)
    share = torch.linalg.vecdot(middle, drawn) / (1 + torch.linalg.vecdot(start, rows))
    return drawn - share[:, None] * middle + 2 * along[:, None] * rows


@given(columns=st.integers(2, 7), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_oracle_turns_draws_as_the_matrix_exponential_does(columns, seed):
    start, end = unit(3, columns, seed), unit(3, columns, seed + 1)
    drawn = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = rotated(drawn, start, end)
    for row in range(3):
        wanted = rotation_by_exponential(start[row].numpy(), end[row].numpy()) @ drawn[row].numpy()
        np.testing.assert_allclose(got[row].numpy(), wanted, atol=1e-6)


def test_the_gradient_of_gaussian_noise_is_that_of_finite_differences_with_the_noise_fixed():
    noise, rows, query = ReleaseNoise("gaussian"), unit(4, 5), unit(1, 5, seed=9)[0]
    fixed = noise.at(6.0).privatize(rows, generator=np.random.default_rng(3)) - rows
    length = float(noise.release(rows, 6.0, np.random.default_rng(3)).norm(dim=1)[0])

    def scores(moved):
        return length * F.normalize(moved + fixed, dim=1) @ query

    tracked = rows.clone().requires_grad_()
    got = noise.release(tracked, 6.0, np.random.default_rng(3)) @ query
    (gradient,) = torch.autograd.grad(got.sum(), tracked)
    assert torch.allclose(got, scores(rows))
    for row in range(4):
        for column in range(5):
            step = torch.zeros_like(rows)
            step[row, column] = 1e-6
            numeric = (scores(rows + step) - scores(rows - step)).sum() / 2e-6
            assert float(gradient[row, column]) == pytest.approx(float(numeric), abs=1e-6)


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_mean_gradient_is_that_of_the_exact_pathwise_derivative(name):
    """The rotation that turns a draw with its row is exact for every mechanism, and far noisier. 200 draws, 64 columns.

    Measured: cosine of the mean gradients 0.958, 0.998, 0.997; ratio of the variances 19, 7, 8.
    """
    columns, pids = 64, torch.arange(8).repeat_interleave(4)
    rows = F.normalize(unit(8, columns).repeat_interleave(4, 0) + unit(32, columns, seed=3), dim=1)
    noise = ReleaseNoise(name)
    length = noise.release(rows, 16.0, np.random.default_rng(0)).norm(dim=1)[0]
    gradients = {"shift": [], "rotation": []}
    for seed in range(200):
        for kind, kept in gradients.items():
            tracked = rows.clone().requires_grad_()
            if kind == "shift":
                released = noise.release(tracked, 16.0, np.random.default_rng(seed))
            else:
                drawn = noise.at(16.0).privatize(rows, generator=np.random.default_rng(seed))
                released = length * F.normalize(rotated(drawn, rows, tracked), dim=1)
            loss = supervised_contrastive(rows @ released.T, pids, 0.3)
            (gradient,) = torch.autograd.grad(loss, tracked)
            kept.append(gradient - (gradient * rows).sum(1, keepdim=True) * rows)  # along the sphere
    means = {kind: torch.stack(kept).mean(0).flatten() for kind, kept in gradients.items()}
    spread = {kind: float(torch.stack(kept).var(0).sum()) for kind, kept in gradients.items()}
    assert F.cosine_similarity(means["shift"], means["rotation"], dim=0) > 0.95
    assert float(means["shift"].norm() / means["rotation"].norm()) == pytest.approx(1, abs=0.1)
    assert spread["rotation"] > 5 * spread["shift"]


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_release_is_the_mechanisms_own_draw_normalized(name):
    rows = unit(5, 32).float()
    got = ReleaseNoise(name).release(rows, 8.0, np.random.default_rng(1))
    wanted = build_mechanism(name, epsilon=8.0).privatize(rows, generator=np.random.default_rng(1))
    assert torch.allclose(F.normalize(got, dim=1), F.normalize(wanted, dim=1), atol=1e-6)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("epsilon", [2.0, 16.0])
def test_scores_have_the_mean_and_the_spread_of_the_mechanism(name, epsilon):
    """20,000 draws: mean within 5 standard errors and 0.05 (of normalizing), spread within 5 %, length exact."""
    draws, columns = 20_000, 64
    row, query = unit(2, columns)
    query = F.normalize(0.6 * row + 0.8 * F.normalize(query - (query @ row) * row, dim=0), dim=0)
    mechanism = build_mechanism(name, epsilon=epsilon)
    raw = mechanism.privatize(row.expand(draws, -1), generator=np.random.default_rng(5))
    got = ReleaseNoise(name).release(row.expand(draws, -1), epsilon, np.random.default_rng(6))
    lengths = got.norm(dim=1)
    assert lengths.std() < 1e-9
    assert float(lengths[0]) == pytest.approx(float(raw.square().sum(1).mean().sqrt()), rel=0.02)
    scores, wanted = (got @ query).numpy(), (raw @ query).numpy()
    assert scores.mean() == pytest.approx(0.6, abs=0.05 + 5 * wanted.std() / draws**0.5)
    assert scores.std() == pytest.approx(wanted.std(), rel=0.05)


@pytest.mark.parametrize("name", MECHANISMS)
def test_cosines_with_the_row_and_with_others_have_the_mechanisms_law(name):
    """Two-sample Kolmogorov-Smirnov of normalized rows; false alarm 1 in 1,000 each, seeds fixed."""
    draws, columns = 5000, 24
    row, query = unit(2, columns, seed=7)
    rows = row.expand(draws, -1)
    got = F.normalize(ReleaseNoise(name).release(rows.clone().requires_grad_(), 8.0, np.random.default_rng(1)).detach())
    wanted = F.normalize(build_mechanism(name, epsilon=8.0).privatize(rows, generator=np.random.default_rng(2)))
    for read in (row, query):
        assert ks_2samp((got @ read).numpy(), (wanted @ read).numpy()).pvalue > 1e-3
    half = F.normalize(build_mechanism(name, epsilon=6.5).privatize(rows, generator=np.random.default_rng(2)))
    assert ks_2samp((got @ row).numpy(), (half @ row).numpy()).pvalue < 1e-6  # the test can see another budget


def test_budgets_are_drawn_from_the_range_uniform_in_the_logarithm():
    generator = np.random.default_rng(0)
    drawn = np.array([draw_epsilon(2.0, 32.0, generator) for _ in range(2000)])
    assert 2 <= drawn.min() < 2.1
    assert 30 < drawn.max() <= 32
    assert kstest(np.log(drawn / 2) / np.log(16), "uniform").pvalue > 1e-3
    assert draw_epsilon(8.0, 8.0, generator) == 8.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ReleaseNoise("prior_subset"), "mechanism is 'prior_subset'; .* gaussian, privunit, privunit_g"),
        (lambda: check_range(0.0, 4.0), "epsilon_min is 0.0 and epsilon_max 4.0; must be 0 <"),
        (lambda: check_range(8.0, 4.0), "epsilon_min is 8.0 and epsilon_max 4.0"),
        (lambda: check_range(8.0, float("inf")), "epsilon_max inf"),
        (lambda: check_range(float("nan"), 4.0), "epsilon_min is nan"),
        (lambda: ReleaseNoise("privunit_g", delta=0.1).at(4.0), "needs delta 0"),
    ],
)
def test_errors_name_value_allowed_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
