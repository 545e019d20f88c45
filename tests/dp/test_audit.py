"""The audit has to pass the honest mechanisms tightly, and to fail every broken one.

The draws are fresh, so nothing is pinned to a lucky seed: a bound above an honest epsilon has probability 1e-6 a test,
one that is not tight enough stands three standard deviations off or more.
"""

import dataclasses
import math

import dp_accounting
import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm

from ppreid_plugin.dp import PriorSubset, PrivUnit, PrivUnitG, build_mechanism, build_transform, clip_rows
from ppreid_plugin.dp import exact as exact_noise
from ppreid_plugin.dp.audit import audit_mechanism
from ppreid_plugin.dp.audit_bounds import event_epsilon_lower, gaussian_epsilon_lower, rate_at_least, rate_at_most
from ppreid_plugin.dp.audit_exact import exact_cap_epsilon, exact_symbol_epsilon, rows_that_change
from ppreid_plugin.dp.audit_games import game_for, play
from ppreid_plugin.dp.mechanisms import GaussianMechanism, Mechanism


class SmallSigma(GaussianMechanism):
    factor = 0.5

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sigma *= self.factor


class SigmaTenPercentLow(SmallSigma):
    factor = 0.9


class RootTwoSensitivity(SmallSigma):
    """Calibrated to sqrt(2) C, as holds for features that are never negative only."""

    factor = 0.5**0.5


class NoClip(GaussianMechanism):
    def prepare(self, rows):
        return rows


class ClipAfterNoise(NoClip):
    def privatize(self, features, *, generator=None):
        return clip_rows(super().privatize(features, generator=generator), self.clip_norm)


class NoiseSharedByRows(GaussianMechanism):
    def randomize(self, rows, noise):
        return rows + self.sigma * noise.normal((1, rows.shape[1]), rows.dtype)


def fixed_seed(kind):
    class FixedSeed(kind):
        def privatize(self, features, *, generator=None):
            return super().privatize(features, generator=np.random.default_rng(0))

    return FixedSeed


class ReusedNoise(GaussianMechanism):
    """Draws once and keeps it: the second release of the same rows differs by nothing but the rows."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = {}

    def randomize(self, rows, noise):
        if rows.shape not in self.kept:
            self.kept[rows.shape] = noise.normal(tuple(rows.shape), rows.dtype).clone()
        return rows + self.sigma * self.kept[rows.shape]


class OneRow:
    """Noise that is drawn for one row and given to all of them."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, shape, dtype, sigma=1.0):
        return self.noise.normal((1, shape[1]), dtype, sigma).repeat(shape[0], 1)

    def uniform(self, count):
        return np.repeat(self.noise.uniform(1), count)


def shared_noise(kind):
    class SharedNoise(kind):
        def randomize(self, rows, noise):
            return super().randomize(rows, OneRow(noise))

    return SharedNoise


def wrong_cap(kind, factor):
    """A PrivUnit whose p is computed from a cap probability that is wrong by a factor."""

    class WrongCap(kind):
        def parameters(self, dimension):
            cap = super().parameters(dimension)
            q = factor * math.exp(cap.log_cap)
            return dataclasses.replace(cap, outside=(1 - q) / (1 + q * math.expm1(self.epsilon)))

    return WrongCap


class SetSizeByRow(PriorSubset):
    """One more symbol in the set of rows with a positive first entry, each law normalized for itself."""

    def symbol_probabilities(self, features):
        result = []
        for row in np.asarray(features):
            size = self.set_size + int(row[0] > 0)
            law = PriorSubset(self.epsilon, codebook=self.codebook, set_size=size)
            result.append(law.symbol_probabilities(row[None])[0])
        return np.array(result)


class KeepsTooOften(PriorSubset):
    """States the right probabilities, and draws with others."""

    def _draw(self, rows, noise):
        self.outside *= 0.8
        try:
            return super()._draw(rows, noise)
        finally:
            self.outside /= 0.8


class CodebookFromGallery(PriorSubset):
    def privatize(self, features, *, generator=None):
        mechanism = PriorSubset(self.epsilon, codebook=features[: len(self.codebook)], set_size=self.set_size)
        return mechanism.privatize(features, generator=generator)


def minus_statistic(statistic):
    class MinusStatistic(GaussianMechanism):
        def privatize(self, features, *, generator=None):
            return super().privatize(features - statistic(features), generator=generator)

    return MinusStatistic(epsilon=4.0)


class Laplace(Mechanism):
    """What an extension may register: pure, neither Gaussian nor finite. Meant for rows of one column."""

    name, pure, scale = "laplace", True, 1.0

    def randomize(self, rows, noise):
        sides = [torch.from_numpy(np.log(noise.uniform(rows.numel()))).reshape(rows.shape) for _ in range(2)]
        return rows + self.scale * self.sensitivity / self.epsilon * (sides[0] - sides[1])


class HalfLaplace(Laplace):
    scale = 0.5


class SometimesClean(Laplace):
    """Laplace noise, but with probability delta none at all: (epsilon, delta)-DP."""

    pure = False

    def randomize(self, rows, noise):
        clean = torch.from_numpy(noise.uniform(len(rows)) <= self.delta)[:, None]
        return torch.where(clean, rows, super().randomize(rows, noise))


def codewords(count=6, columns=3):
    return np.random.default_rng(0).normal(size=(count, columns))


def subset(kind=PriorSubset, epsilon=1.0, set_size=2):
    return kind(epsilon=epsilon, codebook=codewords(), set_size=set_size)


def gallery(rows=12, columns=3):
    return np.random.default_rng(5).normal(size=(rows, columns))


@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0, 16.0])
def test_gaussian_stays_below_its_epsilon_and_within_ten_percent(epsilon):
    found = audit_mechanism(GaussianMechanism(epsilon=epsilon, delta=1e-5), trials=400_000, dimension=2)
    assert found.passed
    assert found.epsilon_lower <= found.epsilon_lower_95
    assert found.tight >= 0.9
    assert (found.epsilon_exact, found.rows_changed) == (None, 0)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", [PrivUnit, PrivUnitG])
def test_sphere_mechanisms_stay_below_their_epsilon_and_within_twenty_percent(kind, epsilon):
    found = audit_mechanism(kind(epsilon=epsilon))
    assert found.passed
    assert found.tight >= 0.8
    assert found.epsilon_exact == pytest.approx(epsilon, abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("set_size", [1, 2])
def test_finite_mechanisms_stay_below_their_epsilon_and_within_twenty_percent(epsilon, set_size):
    found = audit_mechanism(subset(epsilon=epsilon, set_size=set_size))
    assert found.passed
    assert found.tight >= 0.8
    assert found.epsilon_exact == pytest.approx(epsilon, rel=1e-12)
    assert found.dimension == 3


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
def test_any_other_mechanism_is_attacked_by_a_linear_score(epsilon):
    found = audit_mechanism(Laplace(epsilon=epsilon), dimension=1)
    assert found.passed
    assert found.tight >= 0.8
    assert "weak" in found.method
    assert not audit_mechanism(HalfLaplace(epsilon=epsilon), dimension=1).passed
    assert not audit_mechanism(shared_noise(Laplace)(epsilon=epsilon), dimension=1).passed


def test_delta_counts_for_any_other_mechanism():
    """The event's rates are 0.85 and 0.15: log ratio 1.72 at delta 0, 1.28 at 0.3, 0.83 at 0.5."""
    honest = SometimesClean(epsilon=1.0, delta=0.5)
    found = audit_mechanism(honest, dimension=1)
    assert found.passed
    assert found.tight > 0.7
    claims_too_little = SometimesClean(epsilon=1.0, delta=0.3)
    claims_too_little.randomize = honest.randomize
    assert not audit_mechanism(claims_too_little, dimension=1).passed


@pytest.mark.parametrize(
    "broken",
    [
        SmallSigma,
        SigmaTenPercentLow,
        RootTwoSensitivity,
        NoClip,
        ClipAfterNoise,
        NoiseSharedByRows,
        fixed_seed(GaussianMechanism),
        ReusedNoise,
    ],
)
@pytest.mark.parametrize("epsilon", [4.0, 16.0])
def test_audit_catches_a_broken_gaussian(broken, epsilon):
    found = audit_mechanism(broken(epsilon=epsilon, delta=1e-5), dimension=2)
    assert found.epsilon_lower > epsilon
    assert not found.passed


@pytest.mark.parametrize("broken", [fixed_seed, shared_noise])
@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_audit_catches_noise_that_pure_mechanisms_use_twice(broken, epsilon):
    assert audit_mechanism(broken(PrivUnit)(epsilon=epsilon)).epsilon_lower > epsilon
    assert audit_mechanism(broken(PrivUnitG)(epsilon=epsilon)).epsilon_lower > epsilon
    assert audit_mechanism(subset(broken(PriorSubset), epsilon=epsilon)).epsilon_lower > epsilon


@pytest.mark.parametrize("kind", [PrivUnit, PrivUnitG])
def test_audit_catches_a_cap_probability_that_is_ten_percent_off(kind):
    high, low = wrong_cap(kind, 1.1), wrong_cap(kind, 0.9)
    for epsilon in (1.0, 16.0):
        assert exact_cap_epsilon(high(epsilon=epsilon), 4) > epsilon + 0.09
        assert exact_cap_epsilon(low(epsilon=epsilon), 4) < epsilon - 0.09
    found = audit_mechanism(high(epsilon=1.0), trials=200_000)
    assert found.epsilon_lower > 1.0
    assert not found.passed
    assert not audit_mechanism(high(epsilon=16.0), trials=1000).passed  # by the exact ratio alone
    private_but_not_tight = audit_mechanism(low(epsilon=0.5))
    assert private_but_not_tight.passed
    assert private_but_not_tight.tight < 0.8


def test_audit_catches_finite_mechanisms_that_are_wrong():
    assert exact_symbol_epsilon(subset(SetSizeByRow), gallery(100)) > 1.05
    by_row = audit_mechanism(subset(SetSizeByRow), trials=1000)
    assert by_row.epsilon_exact > 1.05
    assert not by_row.passed
    too_often = audit_mechanism(subset(KeepsTooOften))
    assert too_often.epsilon_lower > 1.0
    assert not too_often.passed


@pytest.mark.parametrize("dimension", [4, 64])
@pytest.mark.parametrize("epsilon", [0.5, 4.0, 16.0])
@pytest.mark.parametrize("kind", [PrivUnit, PrivUnitG, wrong_cap(PrivUnit, 1.1), wrong_cap(PrivUnitG, 0.9)])
def test_exact_cap_epsilon_matches_forty_digits(kind, epsilon, dimension):
    cap = kind(epsilon=epsilon).parameters(dimension)
    with mpmath.workdps(40):
        threshold, outside = mpmath.mpf(cap.threshold), mpmath.mpf(cap.outside)
        if issubclass(kind, PrivUnitG):
            q = mpmath.erfc(threshold / mpmath.sqrt(2)) / 2
        else:
            half = mpmath.mpf(1) / 2
            q = mpmath.betainc((dimension - 1) * half, half, 0, 1 - threshold**2, regularized=True) / 2
        wanted = float(mpmath.log((1 - outside) / q) - mpmath.log(outside / (1 - q)))
    assert exact_cap_epsilon(kind(epsilon=epsilon), dimension) == pytest.approx(wanted, rel=1e-10)


def test_exact_symbol_epsilon_sees_infinity_and_symbols_that_never_come():
    class Law:
        codebook = np.eye(3)

        def __init__(self, *rows):
            self.rows = np.array(rows)

        def symbol_probabilities(self, rows):
            return self.rows[: len(rows)]

    assert exact_symbol_epsilon(Law([0.5, 0.5, 0.0], [0.25, 0.75, 0.0]), np.eye(3)[:2]) == pytest.approx(math.log(2))
    assert exact_symbol_epsilon(Law([0.5, 0.5, 0.0], [1.0, 0.0, 0.0]), np.eye(3)[:2]) == math.inf


@pytest.mark.parametrize("count", [0, 1, 37, 999, 1000])
@pytest.mark.parametrize("failure", [1e-6, 0.05])
def test_rates_are_bounded_as_scipy_bounds_them(count, failure):
    interval = binomtest(count, 1000).proportion_ci(1 - 2 * failure, method="exact")
    assert rate_at_least(count, 1000, failure) == pytest.approx(interval.low, rel=1e-6)
    assert rate_at_most(count, 1000, failure) == pytest.approx(interval.high, rel=1e-6)


def test_event_bound_takes_the_best_event_either_way_round_and_delta_off():
    level, trials = 0.05 / 4, 1000
    low, high = rate_at_least(900, trials, level), rate_at_most(100, trials, level)
    counts = [(500, 500), (900, 100)]
    assert event_epsilon_lower(counts, trials, failure=0.05) == pytest.approx(math.log(low / high))
    with_delta = event_epsilon_lower(counts, trials, failure=0.05, delta=0.1)
    assert with_delta == pytest.approx(math.log((low - 0.1) / high))
    never = event_epsilon_lower([(trials, 500)], trials, failure=0.05)  # its complement never happens for u
    assert never == pytest.approx(
        math.log((1 - rate_at_most(500, trials, 0.025)) / (1 - rate_at_least(trials, trials, 0.025)))
    )
    assert event_epsilon_lower([(500, 500), (100, 900), (0, 0)], trials, failure=0.05) == 0.0


@pytest.mark.parametrize("epsilon", [1.0, 16.0])
def test_gaussian_bound_comes_from_below_to_what_dp_accounting_says(epsilon):
    mu, trials = 1 / dp_accounting.get_sigma_gaussian(epsilon, 1e-5), 10**12
    often = round(trials * norm.cdf(mu / 2))
    lower = gaussian_epsilon_lower([(often, trials - often)], trials, failure=1e-6, delta=1e-5)
    assert 0.999 * epsilon < lower < epsilon
    assert gaussian_epsilon_lower([(500, 500), (300, 700)], 1000, failure=0.05, delta=1e-5) == 0.0


def test_gaussian_bound_splits_its_failure_over_all_rates():
    counts, trials = [(700, 250), (900, 90)], 1000
    intervals = [binomtest(k, trials).proportion_ci(1 - 2 * 0.05 / 4, method="exact") for k in (100, 90)]
    mu = -sum(norm.ppf(interval.high) for interval in intervals)
    wanted = dp_accounting.get_epsilon_gaussian(1 / mu, 1e-5)
    assert gaussian_epsilon_lower(counts, trials, failure=0.05, delta=1e-5) == pytest.approx(wanted, rel=1e-6)


def test_events_are_counted_over_all_calls_and_every_trial_has_its_own_rows(monkeypatch):
    calls = []

    def draw(rows):
        calls.append(rows.copy())
        released = rows.copy()
        rows[:] = np.nan  # works in place, which must not reach the other calls
        return released

    monkeypatch.setattr("ppreid_plugin.dp.audit_games._NUMBERS_A_CALL", 4 * 2 * 300)  # 300 trials a call
    game = game_for(GaussianMechanism(epsilon=4.0, clip_norm=2.0), 4)
    assert play(game, draw, 1000) == [(1000, 0)] * 3
    assert play(game, lambda rows: rows * 0 + 1, 1000) == [(1000, 1000), (0, 0), (0, 0)]
    assert [len(rows) for rows in calls] == [600] * 9 + [200] * 3
    elsewhere, above, below = calls[:3]
    assert not elsewhere.any()
    np.testing.assert_array_equal(above[::2], np.tile([200.0, 0, 0, 0], (300, 1)))
    np.testing.assert_array_equal(below, -above)
    assert not above[1::2].any()


def pipeline(transform, mechanism):
    return lambda rows, generator: mechanism.privatize(transform(rows), generator=generator)


@pytest.mark.parametrize("name", ["gaussian", "privunit", "privunit_g", "prior_subset", "codebook"])
def test_no_other_row_changes_with_the_canary(name):
    options = {"codebook": codewords()} if name in ("prior_subset", "codebook") else {}
    center = build_transform("center").fit(np.random.default_rng(9).normal(size=(50, 3)))
    mechanism = build_mechanism(name, epsilon=4.0, **options)
    assert rows_that_change(pipeline(center.transform, mechanism), gallery()) == []


def test_fitting_on_the_gallery_is_seen_in_other_rows():
    fitted_on_gallery = pipeline(
        lambda rows: build_transform("center").fit(rows).transform(rows), GaussianMechanism(epsilon=4.0)
    )
    assert len(rows_that_change(fitted_on_gallery, gallery())) == 11
    codebook_from_gallery = pipeline(lambda rows: rows, subset(CodebookFromGallery, epsilon=16.0, set_size=1))
    assert rows_that_change(codebook_from_gallery, gallery())


@pytest.mark.parametrize(
    ("broken", "changed"),
    [
        (minus_statistic(lambda rows: rows.mean(axis=0)), 64),
        (minus_statistic(lambda rows: rows[0]), 63),
        (minus_statistic(lambda rows: rows[-1]), 63),
        (subset(CodebookFromGallery, epsilon=16.0, set_size=1), 64),
    ],
)
def test_a_mechanism_that_looks_at_other_rows_fails(broken, changed):
    found = audit_mechanism(broken, trials=1000)
    assert 0 < found.rows_changed <= changed
    assert not found.passed


def test_the_canary_itself_does_change():
    """Else the check above would pass for a mechanism that ignores its input."""
    center = build_transform("center").fit(np.random.default_rng(9).normal(size=(50, 3)))
    protect, rows = pipeline(center.transform, GaussianMechanism(epsilon=4.0)), gallery()
    swapped = rows.copy()
    swapped[0] *= -1
    first, second = (protect(features, torch.Generator().manual_seed(0)) for features in (rows, swapped))
    assert (first[0] != second[0]).any()


def test_release_noise_is_audited_and_a_broken_sampler_fails(monkeypatch):
    mechanism = GaussianMechanism(epsilon=8.0, delta=1e-5)

    def audit():
        return audit_mechanism(mechanism, noise="release", trials=4000, dimension=1)

    found = audit()
    assert found.passed
    assert found.tight > 0.7
    assert (found.noise, found.rows_changed) == ("release", None)
    sampler = exact_noise._discrete_gaussian
    monkeypatch.setattr(exact_noise, "_discrete_gaussian", lambda steps: sampler(steps / 2))
    assert audit().epsilon_lower > 8.0


def test_release_symbols_are_audited_and_a_broken_sampler_fails(monkeypatch):
    found = audit_mechanism(subset(epsilon=2.0), noise="release", trials=20_000)
    assert found.passed
    assert found.tight > 0.8
    rational = exact_noise.rational_below_exp
    monkeypatch.setattr(exact_noise, "rational_below_exp", lambda epsilon: rational(epsilon + 0.5))
    assert audit_mechanism(subset(epsilon=2.0), noise="release", trials=20_000).epsilon_lower > 2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: audit_mechanism(build_mechanism("none", epsilon=1.0)), "'none' claims no epsilon"),
        (lambda: audit_mechanism(subset(), trials=999), "trials is 999, must be a whole number >= 1000"),
        (lambda: audit_mechanism(subset(), trials=1e5), "trials is 100000.0, must be a whole number"),
        (lambda: audit_mechanism(subset(), dimension=0), "dimension is 0, must be a whole number >= 1"),
        (lambda: audit_mechanism(subset(), confidence=1), r"confidence is 1, must be in \(0, 1\)"),
        (lambda: audit_mechanism(subset(), noise="released"), "noise is 'released'; allowed: research, release"),
        (lambda: audit_mechanism(PrivUnit(4.0), noise="release"), "mechanism 'privunit' is research only"),
        (lambda: audit_mechanism(PrivUnit(64.0), dimension=4), "dimension is 4, too small to compute privunit's cap"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
