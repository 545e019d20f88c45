"""Calibration against dp-accounting, and against the formula in 80 digits."""

import math
from types import SimpleNamespace

import dp_accounting
import mpmath
import numpy as np
import pytest

from ppreid_plugin.dp import (
    build_mechanism,
    compose_gaussian,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_sigma,
    person_level_epsilon,
)


def exact_delta(sigma, epsilon, sensitivity):
    """Theorem 8 of Balle and Wang as it is written, in 80 digits."""
    with mpmath.workdps(80):
        mu = mpmath.mpf(sensitivity) / mpmath.mpf(sigma)
        low, high = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        return mpmath.ncdf(low) - mpmath.exp(epsilon) * mpmath.ncdf(high)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5, 1, 2, 4, 8, 16, 32, 64, 100])
@pytest.mark.parametrize("delta", [1e-12, 1e-10, 1e-7, 1e-5, 1e-3, 1e-2])
def test_equals_dp_accounting(epsilon, delta):
    sigma = gaussian_sigma(epsilon, delta, sensitivity=1.0)
    assert sigma == pytest.approx(dp_accounting.get_sigma_gaussian(epsilon, delta, tol=1e-14), rel=1e-9)
    assert gaussian_epsilon(sigma, delta, sensitivity=1.0) == pytest.approx(
        dp_accounting.get_epsilon_gaussian(sigma, delta, tol=1e-14), rel=1e-9
    )
    assert gaussian_sigma(epsilon, delta, sensitivity=2.0) == pytest.approx(2 * sigma, rel=1e-14)


@pytest.mark.parametrize("epsilon", [0.001, 0.01, 0.3, 1, 10, 64, 300, 1000])
@pytest.mark.parametrize("delta", [1e-12, 1e-8, 1e-5, 1e-2, 0.1, 0.5, 0.9])
def test_errs_on_the_private_side_and_by_little(epsilon, delta):
    sigma = gaussian_sigma(epsilon, delta, sensitivity=2.0)
    assert gaussian_delta(sigma, epsilon, sensitivity=2.0) <= delta
    assert delta * (1 - 1e-10) < exact_delta(sigma, epsilon, 2.0) <= delta
    back = gaussian_epsilon(sigma, delta, sensitivity=2.0)
    assert back == pytest.approx(epsilon, rel=1e-9)
    assert exact_delta(sigma, back, 2.0) <= delta


@pytest.mark.parametrize("sigma", [1e-3, 0.05, 0.7, 3.0, 100.0, 1e6, 1e12])
@pytest.mark.parametrize("epsilon", [0, 1e-6, 0.01, 1, 20])
def test_delta_equals_the_formula_in_many_digits(sigma, epsilon):
    expected = float(exact_delta(sigma, epsilon, 2.0))
    assert gaussian_delta(sigma, epsilon, 2.0) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("sigma", "epsilon", "delta"),
    [(1e-300, 1.0, 1.0), (1e-320, 0.0, 1.0), (1e300, 1e10, 0.0), (1e300, 0.0, 0.0), (0.05, 1e300, 0.0)],
)
def test_delta_at_the_ends_of_the_range(sigma, epsilon, delta):
    assert gaussian_delta(sigma, epsilon, 2.0) == pytest.approx(delta, abs=1e-299)


def test_table_of_the_design():
    sigmas = [gaussian_sigma(epsilon, 1e-5, sensitivity=2.0) for epsilon in (1, 4, 8, 16, 32, 64)]
    assert [float(f"{sigma:.3g}") for sigma in sigmas] == [7.46, 2.16, 1.20, 0.688, 0.410, 0.253]


def test_epsilon_is_zero_where_the_noise_alone_suffices():
    assert gaussian_epsilon(1e9, 1e-5, sensitivity=1.0) == 0.0


@pytest.mark.parametrize(("rows", "expected"), [(1, 4.0), (2, 6.0), (5, 10.4), (10, 16.1), (20, 25.5)])
def test_person_level_gaussian(rows, expected):
    mechanism = build_mechanism("gaussian", epsilon=4.0)
    assert person_level_epsilon(mechanism, rows) == pytest.approx(expected, abs=0.05)
    mu = compose_gaussian([mechanism.sensitivity / mechanism.sigma] * rows)
    assert person_level_epsilon(mechanism, rows) == pytest.approx(gaussian_epsilon(1 / mu, 1e-5, 1.0), rel=1e-9)


def test_person_level_of_other_mechanisms():
    budget = {"name": "other", "epsilon": 3.0, "sensitivity": 2.0, "sigma": None}
    assert person_level_epsilon(SimpleNamespace(pure=True, delta=0.0, **budget), 7) == 21.0
    assert person_level_epsilon(build_mechanism("none", epsilon=1.0), 7) == math.inf
    with pytest.raises(ValueError, match="mechanism is 'other', which is neither pure nor Gaussian"):
        person_level_epsilon(SimpleNamespace(pure=False, delta=1e-5, **budget), 2)


def test_composition():
    assert compose_gaussian([]) == 0.0
    assert compose_gaussian(mu for mu in (3.0, 4.0, 12.0)) == 13.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_sigma(0.0, 1e-5, 1.0), "epsilon is 0.0, must be a finite number > 0"),
        (lambda: gaussian_sigma(-4.0, 1e-5, 1.0), "epsilon is -4.0, must be"),
        (lambda: gaussian_sigma(math.inf, 1e-5, 1.0), "epsilon is inf, must be"),
        (lambda: gaussian_sigma(True, 1e-5, 1.0), "epsilon is True, must be"),
        (lambda: gaussian_sigma("8", 1e-5, 1.0), "epsilon is '8', must be"),
        (lambda: gaussian_sigma(1.0, 0.0, 1.0), "delta is 0.0, the Gaussian mechanism needs 0 < delta < 1"),
        (lambda: gaussian_sigma(1.0, 1.0, 1.0), "delta is 1.0"),
        (lambda: gaussian_sigma(1.0, math.nan, 1.0), "delta is nan"),
        (lambda: gaussian_sigma(1.0, 1e-5, 0), "sensitivity is 0, must be"),
        (lambda: gaussian_delta(0.0, 1.0, 1.0), "sigma is 0.0, must be"),
        (lambda: gaussian_delta(1.0, -1.0, 1.0), "epsilon is -1.0, must be a finite number >= 0"),
        (lambda: gaussian_epsilon(math.nan, 1e-5, 1.0), "sigma is nan, must be"),
        (lambda: gaussian_epsilon(1.0, 2.0, 1.0), "delta is 2.0"),
        (lambda: compose_gaussian([1.0, -1.0]), "mu is -1.0, must be"),
        (
            lambda: person_level_epsilon(build_mechanism("gaussian", epsilon=1.0), 0),
            "rows is 0, must be a whole number",
        ),
        (lambda: person_level_epsilon(build_mechanism("gaussian", epsilon=1.0), 2.5), "rows is 2.5, must be"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numpy_numbers_are_numbers():
    assert gaussian_sigma(np.float32(8), np.float64(1e-5), np.int64(2)) == gaussian_sigma(8.0, 1e-5, 2.0)
