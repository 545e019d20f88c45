"""Composition against dp-accounting, against sums over all outcomes in many digits, and on the private side."""

import itertools
import math

import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution

from ppreid_plugin.dp import build_mechanism, compose, composed_delta, gaussian_delta, gaussian_epsilon
from ppreid_plugin.dp import composition as module
from ppreid_plugin.dp.calibration import person_level_epsilon

STEP = 1e-3


def delta_by_outcomes(epsilon, budgets, digits=60):
    """Sum of (P - e^epsilon Q)+ over every outcome of randomized response on one bit for each budget."""
    with mpmath.workdps(digits):
        total = mpmath.mpf(0)
        for signs in itertools.product((1, -1), repeat=len(budgets)):
            losses = [sign * mpmath.mpf(budget) for sign, budget in zip(signs, budgets, strict=True)]
            probability = mpmath.fprod(1 / (1 + mpmath.exp(-loss)) for loss in losses)
            total += probability * max(0, 1 - mpmath.exp(epsilon - sum(losses)))
        return total


def theorem(k, epsilon, i):
    """(k - 2i) epsilon and its delta, as Theorem 3.3 of Kairouz, Oh and Viswanath writes them."""
    with mpmath.workdps(60):
        e = mpmath.mpf(epsilon)
        terms = (mpmath.binomial(k, j) * (mpmath.exp((k - j) * e) - mpmath.exp((k - 2 * i + j) * e)) for j in range(i))
        return (k - 2 * i) * epsilon, sum(terms) / (1 + mpmath.exp(e)) ** k


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 1.0, 4.0, 8.0, 30.0])
@pytest.mark.parametrize("k", [2, 7, 16, 71])
def test_equals_the_optimal_composition_theorem(epsilon, k):
    for i in range(1, k // 2 + 1, max(1, k // 10)):
        at, delta = theorem(k, epsilon, i)
        assert composed_delta(at, epsilons=[epsilon] * k) == pytest.approx(float(delta), rel=1e-10, abs=1e-300)
        if 1e-250 < float(delta) < 1:
            composed = compose(epsilons=[epsilon] * k, delta=float(delta))
            assert at <= composed
            # where delta is the mass of the largest losses, all but e^-epsilon of it, epsilon hangs on its last digits
            assert composed_delta(composed, epsilons=[epsilon] * k) == pytest.approx(float(delta), rel=1e-8)


@pytest.mark.parametrize("budgets", [[0.5], [1.0, 1.0], [0.1, 1.0, 3.0], [2.0, 2.0, 0.7, 8.0, 8.0]])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.1, 4.0, 12.0])
def test_unequal_budgets_equal_the_sum_over_all_outcomes(budgets, epsilon):
    expected = float(delta_by_outcomes(epsilon, budgets))
    assert composed_delta(epsilon, epsilons=budgets) == pytest.approx(expected, rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("mus", [[0.05], [0.3, 0.4], [2.9]])
@pytest.mark.parametrize("budgets", [[0.5], [1.0, 1.0, 1.0], [4.0, 2.0]])
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 5.0])
def test_mixtures_equal_the_integral(mus, budgets, epsilon):
    """delta = E (1 - e^(epsilon - loss))+ with the Gaussian loss N(mu^2 / 2, mu^2) integrated numerically."""
    mu = math.hypot(*mus)
    with mpmath.workdps(30):
        expected = mpmath.mpf(0)
        for signs in itertools.product((1, -1), repeat=len(budgets)):
            weight = mpmath.fprod(1 / (1 + mpmath.exp(-s * b)) for s, b in zip(signs, budgets, strict=True))
            rest = epsilon - sum(s * b for s, b in zip(signs, budgets, strict=True))
            start = (rest - mu * mu / 2) / mu  # in standard deviations of the Gaussian loss
            points = [max(start, -12), max(start, -12) + 4, max(start, -12) + 12, max(start, 0) + 30]
            gap = rest - mu * mu / 2
            expected += weight * mpmath.quad(lambda z, gap=gap: mpmath.npdf(z) * (1 - mpmath.exp(gap - mu * z)), points)
    assert composed_delta(epsilon, mus=mus, epsilons=budgets) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(("epsilon", "k"), [(0.5, 16), (2.0, 16), (8.0, 16), (1.0, 71)])
@pytest.mark.parametrize("delta", [1e-7, 1e-5])
def test_equals_the_accounting_library(epsilon, k, delta):
    bit = privacy_loss_distribution.from_randomized_response(
        2 / (1 + math.exp(epsilon)), 2, value_discretization_interval=STEP
    )
    theirs = bit.self_compose(k).get_epsilon_for_delta(delta)
    assert -STEP <= theirs - compose(epsilons=[epsilon] * k, delta=delta) <= STEP * (k + 1)  # theirs rounds up


def test_mixture_equals_the_accounting_library():
    bit = privacy_loss_distribution.from_randomized_response(
        2 / (1 + math.exp(1.0)), 2, value_discretization_interval=STEP
    )
    gaussian = privacy_loss_distribution.from_gaussian_mechanism(1.0, value_discretization_interval=STEP)
    theirs = bit.self_compose(5).compose(gaussian).get_epsilon_for_delta(1e-5)
    assert theirs == pytest.approx(compose(epsilons=[1.0] * 5, mus=[1.0], delta=1e-5), abs=8 * STEP)


def test_gaussian_alone_is_the_gaussian_curve():
    assert compose(mus=[0.6, 0.8], delta=1e-5) == pytest.approx(gaussian_epsilon(1.0, 1e-5, 1.0), rel=1e-9)
    assert composed_delta(2.0, mus=[1.0]) == gaussian_delta(1.0, 2.0, 1.0)


@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.1])
@pytest.mark.parametrize("releases", [{"epsilons": [0.5] * 40}, {"epsilons": [3.0, 0.2], "mus": [0.7]}])
def test_errs_on_the_private_side_and_by_little(releases, delta):
    epsilon = compose(**releases, delta=delta)
    assert delta * (1 - 1e-8) < composed_delta(epsilon, **releases) <= delta


def test_never_above_basic_composition_and_monotone():
    for budgets in ([0.5], [0.5] * 16, [1.0, 2.0, 3.0], [1e-3] * 50):
        values = [compose(epsilons=budgets, delta=delta) for delta in (0.0, 1e-12, 1e-6, 1e-2)]
        assert values == sorted(values, reverse=True)
        assert values[0] == pytest.approx(sum(budgets))
    assert compose() == compose(epsilons=[0.0, 0.0], delta=1e-5) == 0.0
    assert compose(epsilons=[1e-4], delta=0.5) == 0.0


def test_merging_atoms_errs_on_the_private_side(monkeypatch):
    budgets = list(np.random.default_rng(0).uniform(0.1, 2.0, size=12))
    exact = [compose(epsilons=budgets, mus=mus, delta=1e-5) for mus in ([], [0.5])]
    monkeypatch.setattr(module, "_MAX_ATOMS", 500)
    for mus, value in zip(([], [0.5]), exact, strict=True):
        merged = compose(epsilons=budgets, mus=mus, delta=1e-5)
        assert value <= merged <= value + 0.4


def test_many_unequal_budgets_take_no_time():
    budgets = list(np.linspace(0.1, 1.0, 60))
    assert compose(epsilons=budgets, delta=1e-5) < 0.9 * sum(budgets)


def test_pairs_add_their_delta():
    alone = compose(epsilons=[1.0, 2.0], mus=[0.3], delta=1e-5)
    target = 1 - (1 - 1e-5) * (1 - 1e-6)
    assert compose(epsilons=[1.0], pairs=[(2.0, 1e-6)], mus=[0.3], delta=target) == pytest.approx(alone, rel=1e-6)
    assert compose(pairs=[(2.0, 1e-6)], delta=1e-5) <= 2.0
    with pytest.raises(ValueError, match="delta is 1e-05, but the releases' own deltas come to 2e-05"):
        compose(pairs=[(1.0, 1e-5), (1.0, 1e-5)], delta=1e-5)


def test_person_level_of_a_pure_mechanism():
    class Pure:
        name, pure, epsilon, delta, sensitivity, sigma = "pure", True, 0.5, 0.0, 2.0, None

    assert person_level_epsilon(Pure, 71) == 35.5
    assert person_level_epsilon(Pure, 71, delta=1e-5) == compose(epsilons=[0.5] * 71, delta=1e-5) < 27.0
    gaussian = build_mechanism("gaussian", epsilon=4.0, delta=1e-5)
    assert person_level_epsilon(gaussian, 1, delta=1e-5) == 4.0
    assert person_level_epsilon(gaussian, 2, delta=1e-6) > person_level_epsilon(gaussian, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compose(epsilons=[-1.0], delta=1e-5), "epsilon is -1.0, must be a finite number >= 0"),
        (lambda: compose(epsilons=[math.inf], delta=1e-5), "epsilon is inf, must be"),
        (lambda: compose(mus=[math.nan], delta=1e-5), "mu is nan, must be"),
        (lambda: compose(mus=[1.0]), "delta is 0.0, a release that is not pure needs 0 < delta < 1"),
        (lambda: compose(epsilons=[1.0], delta=1.0), "delta is 1.0"),
        (lambda: compose(epsilons=[1.0], delta=True), "delta is True"),
        (lambda: compose(pairs=[(1.0, 2.0)], delta=1e-5), "delta is 2.0, an approximate release needs"),
        (lambda: composed_delta(-1.0, mus=[1.0]), "epsilon is -1.0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
