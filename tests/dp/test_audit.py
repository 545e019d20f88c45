"""The audit has to pass the honest mechanisms tightly, and to fail every broken one.

The draws are fresh, so nothing is pinned to a lucky seed: a bound above an honest epsilon has probability 1e-6 a test.
"""

import dataclasses
import math

import mechanism_audit as audit
import numpy as np
import pytest
import torch

from ppreid_plugin.dp import PriorSubset, PrivUnit, PrivUnitG, build_mechanism, build_transform, clip_rows
from ppreid_plugin.dp.mechanisms import GaussianMechanism

SURE, USUAL = 1e-6, 0.05


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


class FixedSeed(GaussianMechanism):
    def privatize(self, features, *, generator=None):
        return super().privatize(features, generator=np.random.default_rng(0))


class ReusedNoise(GaussianMechanism):
    """Draws once and keeps it: the second release of the same rows differs by nothing but the rows."""

    kept = None

    def randomize(self, rows, noise):
        if self.kept is None or self.kept.shape != rows.shape:
            self.kept = noise.normal(tuple(rows.shape), rows.dtype)
        return rows + self.sigma * self.kept


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


def codewords(count=6, columns=3):
    return np.random.default_rng(0).normal(size=(count, columns))


def subset(kind=PriorSubset, epsilon=1.0, set_size=2):
    return kind(epsilon=epsilon, codebook=codewords(), set_size=set_size)


def gallery(rows=12, columns=3):
    return np.random.default_rng(5).normal(size=(rows, columns))


@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0, 16.0])
def test_gaussian_stays_below_its_epsilon_and_within_ten_percent(epsilon):
    lower = audit.gaussian_audit(GaussianMechanism(epsilon=epsilon, delta=1e-5), trials=400_000)
    assert lower(SURE) <= epsilon
    assert lower(USUAL) >= 0.9 * epsilon


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", [PrivUnit, PrivUnitG])
def test_sphere_mechanisms_stay_below_their_epsilon_and_within_twenty_percent(kind, epsilon):
    lower = audit.cap_audit(kind(epsilon=epsilon))
    assert lower(SURE) <= epsilon
    assert lower(USUAL) >= 0.8 * epsilon
    assert audit.exact_cap_epsilon(kind(epsilon=epsilon), 4) == pytest.approx(epsilon, abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("set_size", [1, 2])
def test_finite_mechanisms_stay_below_their_epsilon_and_within_twenty_percent(epsilon, set_size):
    mechanism = subset(epsilon=epsilon, set_size=set_size)
    lower = audit.symbol_audit(mechanism)
    assert lower(SURE) <= epsilon
    assert lower(USUAL) >= 0.8 * epsilon
    assert audit.exact_symbol_epsilon(mechanism, gallery(100)) == pytest.approx(epsilon, rel=1e-12)


@pytest.mark.parametrize(
    ("broken", "length"),
    [
        (SmallSigma, 1.0),
        (SigmaTenPercentLow, 1.0),
        (RootTwoSensitivity, 1.0),
        (NoClip, 100.0),
        (ClipAfterNoise, 100.0),
        (NoiseSharedByRows, 1.0),
        (FixedSeed, 1.0),
        (ReusedNoise, 1.0),
    ],
)
@pytest.mark.parametrize("epsilon", [4.0, 16.0])
def test_audit_catches_a_broken_gaussian(broken, length, epsilon):
    assert audit.gaussian_audit(broken(epsilon=epsilon, delta=1e-5), length=length)(SURE) > epsilon


@pytest.mark.parametrize("kind", [PrivUnit, PrivUnitG])
def test_audit_catches_a_cap_probability_that_is_ten_percent_off(kind):
    high, low = wrong_cap(kind, 1.1), wrong_cap(kind, 0.9)
    for epsilon in (1.0, 16.0):
        assert audit.exact_cap_epsilon(high(epsilon=epsilon), 4) > epsilon + 0.09
        assert audit.exact_cap_epsilon(low(epsilon=epsilon), 4) < epsilon - 0.09
    assert audit.cap_audit(high(epsilon=1.0), trials=400_000)(SURE) > 1.0
    assert audit.cap_audit(low(epsilon=0.5))(USUAL) < 0.8 * 0.5  # private enough, but not tight


def test_audit_catches_finite_mechanisms_that_are_wrong():
    assert audit.exact_symbol_epsilon(subset(SetSizeByRow), gallery(100)) > 1.05
    assert audit.symbol_audit(subset(KeepsTooOften), trials=400_000)(SURE) > 1.0


def pipeline(transform, mechanism):
    return lambda rows, generator: mechanism.privatize(transform(rows), generator=generator)


@pytest.mark.parametrize("name", ["gaussian", "privunit", "privunit_g", "prior_subset", "codebook"])
def test_no_other_row_changes_with_the_canary(name):
    options = {"codebook": codewords()} if name in ("prior_subset", "codebook") else {}
    center = build_transform("center").fit(np.random.default_rng(9).normal(size=(50, 3)))
    mechanism = build_mechanism(name, epsilon=4.0, **options)
    assert audit.rows_that_change(pipeline(center.transform, mechanism), gallery()) == []


def test_fitting_on_the_gallery_is_seen_in_other_rows():
    fitted_on_gallery = pipeline(
        lambda rows: build_transform("center").fit(rows).transform(rows), GaussianMechanism(epsilon=4.0)
    )
    assert len(audit.rows_that_change(fitted_on_gallery, gallery())) == 11
    codebook_from_gallery = pipeline(lambda rows: rows, subset(CodebookFromGallery, epsilon=16.0, set_size=1))
    assert audit.rows_that_change(codebook_from_gallery, gallery())


def test_the_canary_itself_does_change():
    """Else the check above would pass for a mechanism that ignores its input."""
    center = build_transform("center").fit(np.random.default_rng(9).normal(size=(50, 3)))
    protect, rows = pipeline(center.transform, GaussianMechanism(epsilon=4.0)), gallery()
    swapped = rows.copy()
    swapped[0] *= -1
    first, second = (protect(features, torch.Generator().manual_seed(0)) for features in (rows, swapped))
    assert (first[0] != second[0]).any()
