"""PrivUnit and PrivUnitG: cap probabilities in many digits, best parameters, the law of the output, exact ratio."""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from ppreid_plugin.dp import PrivUnit, PrivUnitG, build_mechanism
from ppreid_plugin.dp.caps import cap_log_probability, privunit_g_parameters, privunit_parameters

DIMENSIONS = [2, 3, 4, 8, 33, 511, 512, 2048, 4096]
EPSILONS = [1e-3, 0.5, 4.0, 16.0, 100.0]
NAMES = ["privunit", "privunit_g"]


def exact_log_cap(dimension, cosine):
    with mpmath.workdps(60):
        g, half = mpmath.mpf(cosine), mpmath.mpf(1) / 2
        cap = mpmath.betainc(mpmath.mpf(dimension - 1) / 2, half, 0, (1 - g) * (1 + g), regularized=True) / 2
        return mpmath.log(cap if g >= 0 else 1 - cap)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_cap_probability_in_many_digits(dimension):
    """Relative error of the probability, which is the absolute one of its log, also where it is e^-28000."""
    spread = np.random.default_rng(0).random(8)
    for cosine in [0, 1e-12, 1e-3, 0.02, 0.05, 0.3, 0.9, 0.999999, 1 - 1e-12, *spread, *spread**4]:
        for signed in (float(cosine), -float(cosine)):
            assert abs(cap_log_probability(dimension, signed) - exact_log_cap(dimension, signed)) < 1e-10


def test_cap_probability_at_the_ends():
    for dimension in DIMENSIONS:
        assert cap_log_probability(dimension, 1.0) == -math.inf
        assert cap_log_probability(dimension, -1.0) == 0.0
        assert cap_log_probability(dimension, 0.0) == -math.log(2)
    assert cap_log_probability(2, 0.5) == pytest.approx(math.log(1 / 3), abs=1e-15)
    assert cap_log_probability(3, 0.25) == pytest.approx(math.log(3 / 8), abs=1e-15)  # Archimedes: (1 - cosine) / 2


@pytest.mark.parametrize("dimension", [2, 8, 512, 4096])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_worst_likelihood_ratio_is_epsilon(epsilon, dimension):
    """p/q over (1-p)/(1-q) with q in many digits, from the threshold alone; a tiny cap in two columns from log q."""
    for name in NAMES:
        cap = build_mechanism(name, epsilon=epsilon).parameters(dimension)
        with mpmath.workdps(50):
            if name == "privunit_g":
                log_q = mpmath.log(mpmath.erfc(mpmath.mpf(cap.threshold) / mpmath.sqrt(2)) / 2)
            elif 1 - cap.threshold > 1e-6:
                log_q = exact_log_cap(dimension, cap.threshold)
            else:
                log_q = mpmath.mpf(cap.log_cap)
            q, outside = mpmath.exp(log_q), mpmath.mpf(cap.outside)
            ratio = mpmath.log((1 - outside) / q) - mpmath.log(outside / (1 - q))
        # the rounding of gamma moves log q by the hazard of the law times it; that of 1 - p by its own last digit
        assert float(ratio) == pytest.approx(epsilon, abs=1e-9)
        assert float(ratio) <= epsilon * (1 + 1e-9) + 1e-10


def test_effective_sigma_of_the_design():
    for dimension in (512, 2048):
        sigmas = [privunit_g_parameters(float(epsilon), dimension).effective_sigma for epsilon in (4, 8, 16, 32, 64)]
        np.testing.assert_allclose(sigmas, [0.66, 0.365, 0.219, 0.141, 0.095], atol=6e-4)
        for epsilon, sigma in zip((4.0, 8.0, 16.0, 32.0, 64.0), sigmas, strict=True):
            assert privunit_parameters(epsilon, dimension).effective_sigma <= sigma


@pytest.mark.parametrize("parameters", [privunit_parameters, privunit_g_parameters])
@pytest.mark.parametrize("dimension", [2, 8, 512])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 40.0])
def test_no_other_threshold_is_better(parameters, epsilon, dimension):
    """Error computed afresh, in many digits, for thresholds around the chosen one."""

    def error(threshold):
        with mpmath.workdps(40):
            g = mpmath.mpf(threshold)
            if parameters is privunit_parameters:
                q = mpmath.exp(exact_log_cap(dimension, g))
                power = mpmath.mpf(dimension - 1) / 2
                density = (1 - g * g) ** power / (dimension - 1) / mpmath.beta(power, mpmath.mpf(1) / 2)
            else:
                q, density = mpmath.erfc(g / mpmath.sqrt(2)) / 2, mpmath.npdf(g)
            mean = density * mpmath.expm1(epsilon) / (1 + q * mpmath.expm1(epsilon))
            if parameters is privunit_parameters:
                return 1 / mean**2 - 1
            return (dimension + g * mean) / mean**2 - 1

    chosen = parameters(epsilon, dimension)
    least = error(chosen.threshold)
    if chosen.effective_sigma > 1e-5:
        assert chosen.effective_sigma == pytest.approx(math.sqrt(least / dimension), rel=1e-6)
    for factor in (0.3, 0.7, 0.95, 0.999, 1.001, 1.05, 1.4, 3.0):
        if parameters is privunit_g_parameters or chosen.threshold * factor < 1:
            assert error(chosen.threshold * factor) >= least * (1 - 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dimension", [2, 512, 100_000])
def test_the_least_budget_has_the_error_of_the_smallest_ones(name, dimension):
    """Proportional to 1 / epsilon where e^epsilon is 1 + epsilon."""
    small, least = (build_mechanism(name, epsilon=epsilon, dimension=dimension) for epsilon in (1e-10, 1e-100))
    assert least.effective_sigma == pytest.approx(1e90 * small.effective_sigma, rel=1e-9)
    released = least.privatize(np.eye(2, dimension), generator=np.random.default_rng(0))
    assert np.isfinite(released).all()
    assert np.abs(released).max() > 1e99


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dimension", [2, 3, 512])
@pytest.mark.parametrize("epsilon", [0.5, 4.0, 16.0])
def test_output_is_unbiased_and_has_the_stated_error(name, dimension, epsilon):
    """Seed fixed; the bound is five standard errors."""
    mechanism, count = build_mechanism(name, epsilon=epsilon), 60_000 if dimension < 10 else 4_000
    row = np.linspace(1, 2, dimension)
    unit = row / np.linalg.norm(row)
    released = mechanism.privatize(np.tile(7 * row, (count, 1)), generator=np.random.default_rng(0))
    along = released @ unit
    assert abs(along.mean() - 1) < 5 * along.std() / math.sqrt(count)
    error = ((released - unit) ** 2).sum(axis=1)
    stated = mechanism.effective_sigma**2 * dimension
    assert abs(error.mean() - stated) < 5 * error.std() / math.sqrt(count) + 1e-12
    if name == "privunit":
        cap = mechanism.parameters(dimension)
        np.testing.assert_allclose(np.linalg.norm(released, axis=1) * cap.mean, 1, rtol=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("dimension", [2, 3, 6, 64])
def test_privunit_is_uniform_on_either_part(epsilon, dimension):
    """Kolmogorov-Smirnov of <v, x> against the cap law, false alarm 1e-4 each; p by a binomial test. Seed fixed."""
    mechanism, count = PrivUnit(epsilon=epsilon), 8_000
    row = np.eye(dimension)[-1]
    released = mechanism.privatize(np.tile(row, (count, 1)), generator=np.random.default_rng(1))
    cap = mechanism.parameters(dimension)
    along = released[:, -1] * cap.mean
    inside = along >= cap.threshold
    assert stats.binomtest(int(inside.sum()), count, 1 - cap.outside).pvalue > 1e-4
    q = math.exp(cap.log_cap)

    def upper(values):
        return np.array([math.exp(cap_log_probability(dimension, min(1.0, max(-1.0, v)))) for v in values])

    for part, probabilities in (
        (along[inside], lambda v: 1 - upper(v) / q),
        (along[~inside], lambda v: (1 - upper(v)) / (1 - q)),
    ):
        if len(part) > 50:
            assert stats.kstest(part, probabilities).pvalue > 1e-4
    others = released[:, :-1] / np.linalg.norm(released[:, :-1], axis=1, keepdims=True)
    assert np.abs(others.mean(axis=0)).max() < 5 / math.sqrt(count)


def test_privunit_g_is_normal_across_and_tilted_along():
    mechanism, count = PrivUnitG(epsilon=4.0), 40_000
    cap = mechanism.parameters(3)
    released = mechanism.privatize(np.tile([0.0, 0.0, 9.0], (count, 1)), generator=np.random.default_rng(1)) * cap.mean
    for column in (0, 1):
        assert stats.kstest(released[:, column], "norm").pvalue > 1e-4
    along, q = released[:, 2], math.exp(cap.log_cap)
    inside = along >= cap.threshold
    assert stats.binomtest(int(inside.sum()), count, 1 - cap.outside).pvalue > 1e-4
    assert stats.kstest(along[inside], lambda z: 1 - stats.norm.sf(z) / q).pvalue > 1e-4
    assert stats.kstest(along[~inside], lambda z: stats.norm.cdf(z) / (1 - q)).pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dimension", [2, 4096])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_whole_range_is_finite(name, epsilon, dimension):
    released = build_mechanism(name, epsilon=epsilon).privatize(np.eye(20, dimension, dtype=np.float32))
    assert np.isfinite(released).all()
    assert (np.abs(released).sum(axis=1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_length_is_dropped_and_a_zero_row_is_the_first_unit_vector(name):
    rows = np.array([[1.0, 0.0, 0.0], [1e300, 0.0, 0.0], [5e-324, 0.0, 0.0], [0.0, 0.0, 0.0]])
    released = [
        build_mechanism(name, epsilon=4.0).privatize(row[None], generator=np.random.default_rng(0)) for row in rows
    ]
    for other in released[1:]:
        np.testing.assert_allclose(other, released[0], rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_the_others(name):
    rows = np.random.default_rng(0).normal(size=(9, 5))
    changed = rows.copy()
    changed[1:] *= -100
    first, second = (
        build_mechanism(name, epsilon=4.0).privatize(features, generator=np.random.default_rng(0))
        for features in (rows, changed)
    )
    np.testing.assert_array_equal(first[0], second[0])


def test_dimension_is_known_before_or_with_the_first_rows():
    assert PrivUnitG(epsilon=8.0).effective_sigma is None
    assert PrivUnitG(epsilon=8.0, dimension=512).describe()["effective_sigma"] == pytest.approx(0.3646, abs=1e-4)
    mechanism = PrivUnitG(epsilon=8.0, dimension=512, clip_norm=3.0)
    mechanism.privatize(np.ones((1, 4)))
    assert (mechanism.dimension, mechanism.clip_norm, mechanism.sensitivity) == (4, 1.0, 2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PrivUnit(epsilon=501.0), "epsilon is 501.0, privunit is computed up to 500"),
        (lambda: PrivUnit(epsilon=1e308, dimension=8), r"epsilon is 1e\+308, privunit is computed up to 500"),
        (lambda: PrivUnitG(epsilon=5e-324), "epsilon is 5e-324, privunit_g is computed from 1e-100 on"),
        (lambda: PrivUnit(epsilon=9e-101, dimension=8), "epsilon is 9e-101, privunit is computed from 1e-100 on"),
        (
            lambda: PrivUnit(epsilon=1.0).privatize(np.ones((2, 1))),
            "features have 1 columns, PrivUnit needs at least 2",
        ),
        (lambda: PrivUnit(epsilon=1.0, dimension=1), "features have 1 columns"),
        (lambda: PrivUnitG(epsilon=1.0, delta=1e-5), "delta is 1e-05, privunit_g is pure and needs delta 0"),
        (lambda: PrivUnitG(epsilon=1.0).privatize(np.full((1, 3), np.nan)), "hold NaN or infinity"),
        (lambda: cap_log_probability(1, 0.0), "features have 1 columns"),
        (lambda: cap_log_probability(3, 1.5), "cosine is 1.5, must be in"),
        (
            lambda: build_mechanism("privunit", epsilon=1.0, cap=1),
            "takes no argument 'cap'; further arguments: dimension",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
