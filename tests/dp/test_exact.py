"""Release noise: lattice, exact samplers, calibration, refusal of seeds. Statistical tests use OS entropy: no seed.

Their false-alarm rates are stated; together under 1e-6 a run.
"""

import math
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from mpmath import mp
from scipy import stats

from ppreid_plugin.dp import exact
from ppreid_plugin.dp.calibration import gaussian_delta, gaussian_sigma
from ppreid_plugin.dp.entropy import Entropy
from ppreid_plugin.dp.exact import LatticeGaussian, rational_below_exp, sample_subset

FALSE_ALARM = 1e-7  # of each statistical test


class Counting:
    """Stands in for Entropy: every integer below the bound once, so that probabilities can be counted exactly."""

    def below(self, bound, count):
        assert bound == count
        return list(range(bound))


@pytest.mark.parametrize("dim", [1, 128, 2048])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 16.0, 64.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5])
def test_sigma_covers_rounding_and_slack_and_costs_next_to_nothing(epsilon, delta, dim):
    mechanism = LatticeGaussian(epsilon, delta, dim)
    assert mechanism.sensitivity >= 2 + math.sqrt(dim) * mechanism.step
    assert mechanism.step == 2.0 ** round(math.log2(mechanism.step))
    assert mechanism.sigma / mechanism.step >= exact.STEPS_PER_SIGMA
    spent = gaussian_delta(mechanism.sigma, epsilon - 2 * exact.LOG_RATIO, mechanism.sensitivity)
    assert spent * math.exp(exact.LOG_RATIO) + exact.TAIL <= delta
    assert mechanism.sigma <= gaussian_sigma(epsilon, delta, 2.0) * (1 + 2e-4)


def test_the_bounds_on_the_two_laws_hold_at_high_precision():
    """Steps 3 and 4 of the proof, against mpmath at small s (where the gap is large enough to see) and both tails."""
    mp.dps = 40
    for s in (2, 5, 20):
        normalizer = mp.nsum(lambda k, s=s: mp.exp(-(k**2) / mp.mpf(2 * s * s)), [-60 * s, 60 * s])
        for reach in (2, 4, 10):
            k = reach * s
            p = mp.exp(-mp.mpf(k * k) / (2 * s * s)) / normalizer
            q = mp.ncdf((k + mp.mpf(1) / 2) / s) - mp.ncdf((k - mp.mpf(1) / 2) / s)
            bound = mp.mpf(reach**2) / (8 * s * s) + 3 * mp.exp(-2 * mp.pi**2 * s * s)
            assert abs(mp.log(q / p)) <= bound
            assert abs(mp.log(q / p)) >= bound / 10  # the bound is not idle
            tail = mp.nsum(lambda j, s=s: 2 * mp.exp(-(j**2) / mp.mpf(2 * s * s)), [k, 60 * s])
            assert tail / normalizer <= 2 * mp.exp(-mp.mpf(k * k) / (2 * s * s))


def test_an_exact_count_of_the_privacy_of_one_number():
    """One dimension, coarse lattice: the true delta of the discrete Gaussian lies within the proof's slack."""
    s, shift, epsilon = 40, 100, 4.0
    k = np.arange(-4000, 4001)
    log_p = -(k**2) / (2 * s**2)
    log_q = -((k - shift) ** 2) / (2 * s**2)
    normalizer = np.logaddexp.reduce(log_p)
    true = np.clip(np.exp(log_p - normalizer) - np.exp(epsilon + log_q - normalizer), 0, None).sum()
    mu = shift / s
    eta = (mu + 16) ** 2 / (8 * s**2)
    assert true <= math.exp(eta) * gaussian_delta(1.0, epsilon - 2 * eta, mu)
    assert true == pytest.approx(gaussian_delta(1.0, epsilon, mu), rel=0.02)


def test_opendp_states_the_same_noise():
    """Its own map: rho = (sensitivity / sigma)^2 / 2 in lattice steps."""
    mechanism = LatticeGaussian(8.0, 1e-5, 64)
    rho = exact._discrete_gaussian(mechanism.sigma / mechanism.step).map(mechanism.sensitivity / mechanism.step)
    assert rho == pytest.approx(mechanism.mu**2 / 2, rel=1e-12)


def test_input_is_rounded_to_the_lattice_and_bounded():
    mechanism = LatticeGaussian(8.0, 1e-5, 3)
    rows = np.array([[0.1, -0.2, 0.3], [3e200, 4e200, 0.0], [0.0, 0.0, 0.0], [1e-310, 0, 0]])
    lattice = mechanism.lattice(rows)
    assert lattice.dtype == np.int64
    assert np.abs(lattice[0] * mechanism.step - rows[0]).max() <= mechanism.step / 2
    assert (np.linalg.norm(lattice * mechanism.step, axis=1) <= 1 + math.sqrt(3) * mechanism.step / 2).all()
    np.testing.assert_allclose(lattice[1] * mechanism.step, [0.6, 0.8, 0.0], atol=1e-7)
    assert not lattice[2:].any()
    released = mechanism.release(rows) / mechanism.step
    np.testing.assert_array_equal(released, np.rint(released))  # every output is a lattice point


def test_neighbors_differ_by_no_more_than_the_sensitivity():
    mechanism = LatticeGaussian(16.0, 1e-5, 16)
    row = np.random.default_rng(0).normal(size=(500, 16))
    lattice = mechanism.lattice(np.vstack([row * 1e3, -row * 1e3])) * mechanism.step
    gaps = np.linalg.norm(lattice[:500] - lattice[500:], axis=1)
    assert gaps.max() <= mechanism.sensitivity
    assert gaps.max() >= 2 - 1e-6  # opposite rows: the bound is tight


@pytest.mark.parametrize("dtype", [np.float32, torch.float32])
def test_noise_is_normal_with_sigma_for_zero_and_other_rows(dtype):
    """Kolmogorov-Smirnov against N(row, sigma^2), and the variance; the lattice is too fine to be seen."""
    mechanism = LatticeGaussian(4.0, 1e-6, 2, clip_norm=3.0)
    rows = np.tile([[90.0, 0.0], [0.0, 0.0]], (5_000, 1))
    rows = torch.tensor(rows, dtype=dtype) if isinstance(dtype, torch.dtype) else rows.astype(dtype)
    noise = (mechanism.release(rows) - np.tile([[3.0, 0.0], [0.0, 0.0]], (5_000, 1))) / mechanism.sigma
    assert stats.kstest(noise.ravel(), "norm").pvalue > FALSE_ALARM
    spread = stats.chi2.interval(1 - FALSE_ALARM, noise.size)
    assert spread[0] < (noise**2).sum() < spread[1]
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 5.5 / math.sqrt(len(noise))  # false alarm 4e-8


@pytest.mark.parametrize("steps", [0.7, 2.0, 5.5])
def test_the_sampler_draws_the_discrete_gaussian_itself(steps):
    """Chi-square against exp(-k^2 / 2 s^2) / Z at scales small enough to see single lattice points."""
    trials, reach = 20_000, math.ceil(3 * steps)
    drawn = np.array(exact._discrete_gaussian(steps)([0] * trials))
    everywhere = np.arange(-60 * reach, 60 * reach + 1)
    mass = np.exp(-(everywhere**2) / (2 * steps**2)) / np.exp(-(everywhere**2) / (2 * steps**2)).sum()
    inside = np.abs(everywhere) <= reach
    counts = np.append([(drawn == k).sum() for k in everywhere[inside]], (np.abs(drawn) > reach).sum())
    expected = np.append(mass[inside], 1 - mass[inside].sum()) * trials
    assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM


def test_the_low_bits_tell_nothing():
    """Parity of the noised lattice points: even as often as odd, for even and for odd inputs."""
    mechanism = LatticeGaussian(64.0, 1e-5, 1)
    for parity in (0, 1):
        row = np.full((4_000, 1), (2 * 1000 + parity) * mechanism.step)
        odd = int((mechanism.release(row)[:, 0] / mechanism.step % 2).sum())
        assert stats.binomtest(odd, 4_000).pvalue > FALSE_ALARM


def test_no_draw_repeats():
    mechanism = LatticeGaussian(8.0, 1e-5, 8)
    drawn = mechanism.release(np.zeros((200, 8)))
    assert len(np.unique(drawn)) > drawn.size - 10  # a few of 1600 lattice points may meet by chance
    again = mechanism.release(np.zeros((200, 8)))
    assert (drawn != again).any(axis=1).all()


def test_a_forked_child_draws_its_own_noise():
    mechanism = LatticeGaussian(8.0, 1e-5, 4)
    mechanism.release(np.zeros((1, 4)))
    outputs = []
    for _ in range(2):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            os.write(write, pickle.dumps((mechanism.release(np.zeros((1, 4))), Entropy().below(2**64, 2))))
            os._exit(0)
        os.waitpid(child, 0)
        outputs.append(pickle.loads(os.read(read, 65536)))
    assert (outputs[0][0] != outputs[1][0]).any()
    assert outputs[0][1] != outputs[1][1]


@pytest.mark.parametrize("given", [(0,), (np.random.default_rng(0),)])
def test_a_seed_is_refused(given):
    with pytest.raises(TypeError, match="a release takes no seed"):
        Entropy(*given)
    with pytest.raises(TypeError, match="a release takes no seed"):
        Entropy(seed=given[0])
    with pytest.raises(TypeError):
        LatticeGaussian(8.0, 1e-5, 4).release(np.zeros((1, 4)), generator=given[0])


def test_entropy_holds_no_state():
    assert vars(Entropy()) == {}
    torch.manual_seed(0)
    np.random.seed(0)
    first = Entropy().below(2**64, 4)
    torch.manual_seed(0)
    np.random.seed(0)
    assert Entropy().below(2**64, 4) != first
    assert sorted(Entropy().permutation(50).tolist()) == list(range(50))
    assert Entropy().permutation(50).tolist() != Entropy().permutation(50).tolist()  # 1 in 50! otherwise


@pytest.mark.parametrize("epsilon", [1e-6, 0.1, 0.5, 1.0, math.log(2), 8.0, 16.0, 63.999, 64.0, 300.0])
def test_the_rational_lies_below_e_to_epsilon_and_close(epsilon):
    mp.dps = 300
    a, b = rational_below_exp(epsilon)
    ratio = mp.mpf(a) / b
    assert ratio <= mp.exp(mp.mpf(epsilon))
    assert ratio >= mp.exp(mp.mpf(epsilon)) * (1 - mp.mpf(2) ** -63)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 64.0])
def test_the_exponential_itself_is_rounded_down(epsilon, monkeypatch):
    """With a denominator so fine that the last rounding cannot hide the one before."""
    mp.dps = 300
    monkeypatch.setattr(exact, "_RATIO_BITS", 400)
    a, b = rational_below_exp(epsilon)
    assert mp.mpf(a) / b <= mp.exp(mp.mpf(epsilon))


@pytest.mark.parametrize("members", [[[0]], [[4]], [[1, 3]], [[3, 1]], [[0, 1, 2, 3]], [[0, 4]]])
def test_every_symbol_has_its_exact_probability(members, monkeypatch):
    """All Z integers counted, with a small ratio in place of e^epsilon."""
    monkeypatch.setattr(exact, "rational_below_exp", lambda epsilon: (7, 3))
    size = len(members[0])
    total = 7 * size + 3 * (5 - size)
    drawn = sample_subset(np.repeat(np.array(members), total, axis=0), 5, 1.0, Counting())
    counts = np.bincount(drawn, minlength=5)
    np.testing.assert_array_equal(counts, [7 if symbol in members[0] else 3 for symbol in range(5)])


@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_sampled_frequencies(epsilon):
    """Chi-square over all symbols with OS entropy; two neighbors' sets."""
    num_symbols, trials = 12, 20_000
    a, b = rational_below_exp(epsilon)
    for members in ([1, 5, 6], [0, 10, 11]):
        drawn = sample_subset(np.tile(members, (trials, 1)), num_symbols, epsilon, Entropy())
        total = 3 * Fraction(a, b) + num_symbols - 3
        expected = [float((Fraction(a, b) if s in members else 1) / total) * trials for s in range(num_symbols)]
        assert stats.chisquare(np.bincount(drawn, minlength=num_symbols), expected).pvalue > FALSE_ALARM


def test_a_huge_epsilon_keeps_to_the_set_and_no_row_draws_none():
    sets = np.array([[2, 3]] * 50)
    assert set(sample_subset(sets, 10, 300.0, Entropy())) <= {2, 3}
    assert sample_subset(sets[:0], 10, 1.0, Entropy()).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_subset(np.zeros(3, int), 5, 1.0, Entropy()), r"sets has shape \(3,\)"),
        (lambda: sample_subset(np.zeros((1, 1)), 5, 1.0, Entropy()), "float64, must be whole numbers"),
        (lambda: sample_subset(np.arange(5)[None], 5, 1.0, Entropy()), "1 <= K < 5 symbols"),
        (lambda: sample_subset(np.array([[1, 1]]), 5, 1.0, Entropy()), "distinct symbols"),
        (lambda: sample_subset(np.array([[5]]), 5, 1.0, Entropy()), r"in \[0, 5\)"),
        (lambda: sample_subset(np.array([[-1]]), 5, 1.0, Entropy()), r"in \[0, 5\)"),
        (lambda: sample_subset(np.array([[1]]), 5, 0.0, Entropy()), "epsilon is 0.0, must be a finite number > 0"),
        (lambda: rational_below_exp(math.nan), "epsilon is nan"),
        (lambda: LatticeGaussian(0.0, 1e-5, 4), "epsilon is 0.0"),
        (lambda: LatticeGaussian(1e-7, 1e-5, 4), "needs delta >= 1e-30 and epsilon > 4e-07"),
        (lambda: LatticeGaussian(1.0, 1e-40, 4), "needs delta >= 1e-30"),
        (lambda: LatticeGaussian(1.0, 0.0, 4), "needs 0 < delta < 1"),
        (lambda: LatticeGaussian(1e6, 1e-5, 512), "the proof of the release noise does not hold"),
        (lambda: LatticeGaussian(1.0, 1e-5, 0), "dim is 0, must be a whole number >= 1"),
        (lambda: LatticeGaussian(1.0, 1e-5, 4, clip_norm=-1.0), "clip_norm is -1.0"),
        (
            lambda: LatticeGaussian(1.0, 1e-5, 4).release(np.zeros((2, 3))),
            "has 3 columns, the mechanism was made for 4",
        ),
        (lambda: LatticeGaussian(1.0, 1e-5, 1).release(np.array([[0.0], [np.nan]])), r"rows 1 \(1 of 2\) hold NaN"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("epsilon", [5e-324, 1e-40, 1e-20, 1e-19])
def test_a_tiny_budget_is_never_below_none(epsilon):
    """a/b below 1 would make symbols outside a row's set the likelier ones, at a budget of its own."""
    a, b = rational_below_exp(epsilon)
    assert 0 <= Fraction(a - b, b) <= Fraction(epsilon)  # 1 + epsilon is below e^epsilon
