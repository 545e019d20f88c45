"""The audit has to pass the honest mechanism tightly, and to fail every broken one."""

import mechanism_audit as audit
import numpy as np
import pytest

from ppreid_plugin.dp.mechanisms import GaussianMechanism


class HalfSigma(GaussianMechanism):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sigma /= 2


class NoClip(GaussianMechanism):
    def privatize(self, features, *, generator=None):
        return features + self.sigma * np.random.default_rng().standard_normal(features.shape, dtype=np.float32)


class ReusedNoise(GaussianMechanism):
    def randomize(self, rows, noise):
        return rows + self.sigma * noise.normal((1, rows.shape[1]), rows.dtype)


class FixedSeed(GaussianMechanism):
    def privatize(self, features, *, generator=None):
        return super().privatize(features, generator=np.random.default_rng(0))


class RootTwoSensitivity(GaussianMechanism):
    """Calibrated to sqrt(2) C, as holds for features that are never negative only."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sigma /= 2**0.5


@pytest.mark.parametrize("epsilon", [4.0, 16.0])
def test_honest_mechanism_stays_below_its_epsilon_and_close_to_it(epsilon):
    # false alarm: 1e-3 for the upper side; the draw is fresh, so it is not pinned to a lucky seed
    assert 0.9 * epsilon < audit.epsilon_lower(GaussianMechanism(epsilon=epsilon, delta=1e-5)) <= epsilon


@pytest.mark.parametrize("broken", [HalfSigma, NoClip, ReusedNoise, FixedSeed, RootTwoSensitivity])
def test_audit_catches_a_broken_mechanism(broken):
    assert audit.epsilon_lower(broken(epsilon=16.0, delta=1e-5)) > 20.0
