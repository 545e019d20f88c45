"""The learned codebook against stage 2's mechanism: nearest codewords, mean release, and the gradients through it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ppreid_plugin.aware.codebook import Assignment, LearnedCodebook, expected_gain, set_mean
from ppreid_plugin.dp.codebooks import LevelCodebook, residual_codebook
from ppreid_plugin.dp.gallery import DPGallery
from ppreid_plugin.dp.subset import PriorSubset


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_codebook(codewords=24, levels=2, columns=6, temperature=0.2, seed=0):
    codebook = LearnedCodebook(codewords, levels, columns, temperature).double()
    with torch.no_grad():
        for number, level in enumerate(codebook.levels):
            level.copy_(normal(*level.shape, seed=seed + number))
    return codebook


@given(shape=st.sampled_from([(8, 1), (24, 2), (36, 2), (60, 3)]), count=st.integers(1, 7), seed=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_the_nearest_codewords_are_the_set_of_the_mechanism(shape, count, seed):
    codebook = random_codebook(*shape, seed=seed)
    rows = F.normalize(normal(9, 6, seed=seed + 9), dim=1)
    mechanism = PriorSubset(epsilon=4.0, codebook=codebook.released(), set_size=count)
    symbols = codebook.nearest(rows, count)
    assert torch.equal(symbols.sort(1).values, mechanism.members(rows))
    np.testing.assert_allclose(codebook.rows(symbols[:, 0]).detach().numpy(), mechanism.decode(symbols[:, 0].numpy()))
    cosines = (codebook.rows(symbols).detach() * rows[:, None]).sum(-1)
    assert (cosines.diff(dim=1) <= 1e-12).all()  # nearest first


def test_it_starts_as_stage_2_fits_a_residual_prior():
    rows = F.normalize(normal(300, 5), dim=1)
    codebook = LearnedCodebook(12, 2, 5, 0.1)
    assert not codebook.started
    codebook.start(rows, seed=3)
    wanted = residual_codebook(rows.numpy(), np.zeros(300, dtype=np.int64), 12, 3).codebook
    for level, array in zip(codebook.levels, wanted.arrays().values(), strict=True):
        np.testing.assert_allclose(level.detach().numpy(), array, atol=1e-6)
    assert codebook.started


def test_the_release_takes_the_learned_codebook():
    codebook = random_codebook(24, 2, 6)
    gallery = DPGallery("prior_subset", epsilon=30.0, transform="none", options={"codebook": codebook.released()})
    rows = F.normalize(normal(20, 6, seed=4), dim=1)
    wanted = codebook.rows(codebook.nearest(rows, 1)[:, 0]).detach()
    assert torch.allclose(gallery.protect(rows), wanted, atol=1e-6)
    assert isinstance(codebook.released(), LevelCodebook)


@pytest.mark.parametrize("epsilon", [0.5, 4.0, 8.0])
@pytest.mark.parametrize("set_size", [1, 5])
def test_the_mean_release_is_that_of_the_mechanisms_probabilities(epsilon, set_size):
    codebook = random_codebook()
    rows = F.normalize(normal(7, 6, seed=2), dim=1)
    mechanism = PriorSubset(epsilon=epsilon, codebook=codebook.released(), set_size=set_size)
    gain, rest = expected_gain(epsilon, 24, set_size)
    every = codebook.rows(torch.arange(24)).sum(0)
    got = gain * set_mean(codebook.assign(rows, set_size), set_size) + rest * every
    wanted = mechanism.symbol_probabilities(rows) @ mechanism.decoder
    np.testing.assert_allclose(got.detach().numpy(), wanted, atol=1e-9)


def test_the_mean_release_is_the_mean_of_the_mechanisms_draws():
    """40,000 draws a row: every coordinate within 5 standard errors."""
    codebook, draws = random_codebook(), 40_000
    rows = F.normalize(normal(3, 6, seed=2), dim=1)
    mechanism = PriorSubset(epsilon=3.0, codebook=codebook.released(), set_size=2)
    gain, rest = expected_gain(3.0, 24, 2)
    got = gain * set_mean(codebook.assign(rows, 2), 2) + rest * codebook.rows(torch.arange(24)).sum(0)
    for row in range(3):
        released = mechanism.privatize(rows[row].expand(draws, -1), generator=np.random.default_rng(row)).numpy()
        error = released.std(axis=0) / math.sqrt(draws)
        assert (np.abs(released.mean(axis=0) - got[row].detach().numpy()) < 5 * error).all()


def test_large_budgets_and_codebooks_do_not_overflow():
    assert expected_gain(800.0, 262_144, 1) == (1.0, 0.0)
    gain, _ = expected_gain(8.0, 1024, 1)
    assert gain == pytest.approx((math.exp(8) - 1) / (math.exp(8) + 1023), rel=1e-12)


def test_the_gradient_is_that_of_the_soft_assignment_by_finite_differences():
    """The assignment is gradchecked with its symbols fixed; straight through adds nothing to the gradient."""
    codebook = random_codebook()
    rows = F.normalize(normal(4, 6, seed=3), dim=1).requires_grad_()

    def soft(x, *levels):
        vectors = F.normalize(levels[0][symbols // 4] + levels[1][symbols % 4], dim=-1)
        weights = torch.softmax(torch.einsum("bd,bkd->bk", x, vectors) / codebook.temperature, dim=1)
        return torch.einsum("bk,bkd->bd", weights, vectors)

    assert codebook.sizes == (6, 4)
    symbols = codebook.nearest(rows.detach(), 24)
    levels = tuple(codebook.levels)
    assert torch.autograd.gradcheck(soft, (rows, *levels))
    assigned = codebook.assign(rows)
    assert torch.allclose(set_mean(assigned, 1), codebook.rows(symbols[:, 0]))  # hard in value
    toward = normal(4, 6, seed=5)
    got = torch.autograd.grad((set_mean(assigned, 1) * toward).sum(), (rows, *levels))
    wanted = torch.autograd.grad((soft(rows, *levels) * toward).sum(), (rows, *levels))
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other)
        assert one.abs().sum() > 0


def assignment(symbols, codebook):
    weights = torch.ones(len(symbols), 1, dtype=torch.float64)
    return Assignment(symbols[:, None], codebook.rows(symbols[:, None]), weights)


def test_the_usage_gap_is_0_for_equal_use_and_nears_1_when_all_share_a_symbol():
    codebook = random_codebook()
    assert codebook.usage_gap(assignment(torch.arange(24), codebook)).item() == pytest.approx(0, abs=1e-6)
    assert codebook.usage_gap(assignment(torch.full((24,), 5), codebook)).item() == pytest.approx(1, abs=1e-6)
    gap = codebook.usage_gap(assignment(torch.tensor([0, 1, 4, 5, 8, 9]), codebook))  # 3 of 6 and 2 of 4, used alike
    assert gap.item() == pytest.approx(1 - (math.log(3) + math.log(2)) / math.log(24), abs=1e-6)
    few = codebook.usage_gap(assignment(torch.tensor([0, 6, 13]), codebook))  # three rows in three vectors of each
    assert few.item() == pytest.approx(0, abs=1e-6)


def test_use_is_watched_over_several_batches():
    codebook = random_codebook()
    assert codebook.used() == pytest.approx(1)
    for symbol in range(24):  # one symbol a batch, all in turn
        codebook.usage_gap(assignment(torch.full((8,), symbol), codebook))
    assert codebook.used() > 0.7
    for _ in range(60):
        codebook.usage_gap(assignment(torch.full((8,), 5), codebook))
    assert codebook.used() < 0.02


def test_lowering_the_usage_gap_spreads_the_rows():
    codebook = random_codebook(temperature=0.3)
    with torch.no_grad():
        rows = F.normalize(codebook.rows(torch.tensor([5])) + 0.05 * normal(32, 6), dim=1)
    for _ in range(60):
        codebook.usage_gap(codebook.assign(rows))
    before = len(codebook.nearest(rows, 1).unique())
    optimizer = torch.optim.Adam([rows.requires_grad_()], lr=0.03)
    for _ in range(100):
        optimizer.zero_grad()
        codebook.usage_gap(codebook.assign(F.normalize(rows, dim=1))).backward()
        optimizer.step()
    assert before <= 3
    assert len(codebook.nearest(F.normalize(rows.detach(), dim=1), 1).unique()) >= 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LearnedCodebook(1, 1, 4, 0.1), "codewords is 1 with 1 levels"),
        (lambda: LearnedCodebook(7, 2, 4, 0.1), "codewords is 7 with 2 levels, which does not split"),
        (lambda: LearnedCodebook(8, 0, 4, 0.1), "codewords is 8 with 0 levels"),
        (lambda: LearnedCodebook(8, 2, 4, 0.0), "codebook temperature is 0.0, must be a finite number > 0"),
        (lambda: expected_gain(0.0, 8, 1), "epsilon is 0.0 and set_size 1 of 8 codewords"),
        (lambda: expected_gain(1.0, 8, 8), "set_size 8 of 8 codewords; must be > 0 and 1 to 7"),
    ],
)
def test_errors_name_value_allowed_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
