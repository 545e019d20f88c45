"""Mechanisms: containers, types, randomness, noise scale, and errors. Calibration and audit have files of their own."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from ppreid_plugin.dp import MECHANISMS, Mechanism, build_mechanism, clip_rows, gaussian_sigma, register_mechanism
from ppreid_plugin.dp.mechanisms import GaussianMechanism, NoMechanism

NAMES = ["gaussian", "none", "privunit", "privunit_g", "codebook", "prior_subset"]
OPTIONS = {"codebook": {"codebook": np.eye(4)}, "prior_subset": {"codebook": np.eye(4), "set_size": 2}}
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


def build(name, epsilon=8.0):
    return build_mechanism(name, epsilon=epsilon, **OPTIONS.get(name, {}))


def rows(n=6, d=4, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(n, d)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8"])
@pytest.mark.parametrize("name", NAMES)
def test_numpy_in_numpy_out(name, dtype):
    features = rows(dtype=dtype)
    before = features.copy()
    released = build(name).privatize(features)
    assert isinstance(released, np.ndarray)
    assert (released.dtype, released.shape) == (features.dtype, features.shape)
    np.testing.assert_array_equal(features, before)
    released[0, 0] = 7  # the output is the caller's own
    np.testing.assert_array_equal(features, before)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("generator", [None, np.random.default_rng(0), torch.Generator().manual_seed(0)])
@pytest.mark.parametrize("name", NAMES)
def test_tensor_in_tensor_out(name, dtype, device, generator):
    features = torch.from_numpy(rows()).to(device=device, dtype=dtype).requires_grad_()
    released = build(name).privatize(features, generator=generator)
    assert (released.dtype, released.shape, released.device) == (features.dtype, features.shape, features.device)
    assert not released.requires_grad


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_empty(name, shape):
    assert build(name).privatize(np.zeros(shape)).shape == shape


@pytest.mark.parametrize("make", [np.random.default_rng, lambda seed: torch.Generator().manual_seed(seed)])
@pytest.mark.parametrize("name", ["gaussian", "privunit", "privunit_g"])
def test_a_generator_makes_the_noise_reproducible_and_moves_on(name, make):
    mechanism, features = build(name), rows()
    generator = make(3)
    first, second = (mechanism.privatize(features, generator=generator) for _ in range(2))
    np.testing.assert_array_equal(mechanism.privatize(features, generator=make(3)), first)
    assert (first != second).all()
    assert (mechanism.privatize(features, generator=make(4)) != first).all()


def test_noise_drawn_twice_in_one_chunk_is_two_draws():
    """The first draw may lie in the output's own memory, the second must not."""

    class TwoDraws(GaussianMechanism):
        def randomize(self, rows, noise):
            first = noise.normal(tuple(rows.shape), rows.dtype)
            return first - noise.normal(tuple(rows.shape), rows.dtype)

    assert (TwoDraws(epsilon=1.0).privatize(torch.zeros(100, 4)) != 0).all()


@pytest.mark.parametrize("name", ["gaussian", "privunit", "privunit_g"])
def test_noise_is_fresh_without_a_generator_whatever_the_global_seeds(name):
    released = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        released.append(build(name).privatize(rows()))
    assert (released[0] != released[1]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_noise_is_normal_with_sigma_independent_of_the_row(dtype):
    """Kolmogorov-Smirnov at a false alarm of 1e-4; seed fixed."""
    mechanism = GaussianMechanism(epsilon=4.0, delta=1e-6, clip_norm=3.0)
    assert mechanism.sigma == gaussian_sigma(4.0, 1e-6, 6.0)
    features = np.tile(np.array([[90.0, 0.0], [0.0, 0.0]], dtype=dtype), (20_000, 1))
    released = mechanism.privatize(features, generator=np.random.default_rng(1)).astype(np.float64)
    noise = (released - clip_rows(features.astype(np.float64), 3.0)) / mechanism.sigma
    for sample in (noise[::2, 0], noise[::2, 1], noise[1::2, 0], noise[1::2, 1]):
        assert stats.kstest(sample, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise[::2, 0], noise[1::2, 0])[0, 1]) < 4 / math.sqrt(20_000)
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 4 / math.sqrt(40_000)


def test_rows_are_bounded_and_not_renormalized():
    mechanism = GaussianMechanism(epsilon=1e6, clip_norm=2.0)  # hardly any noise
    features = np.array([[1e300, 0.0], [0.3, 0.0], [0.0, 0.0], [5e-324, 0.0]])
    np.testing.assert_allclose(mechanism.privatize(features)[:, 0], [2.0, 0.3, 0.0, 0.0], atol=8 * mechanism.sigma)


def test_large_noise_saturates_float16():
    mechanism = GaussianMechanism(epsilon=1.0, clip_norm=1e6)
    released = mechanism.privatize(np.zeros((100, 4), dtype=np.float16))
    assert np.isfinite(released).all()
    assert np.abs(released).max() == 65504


def test_chunks_change_nothing(monkeypatch):
    mechanism, features = GaussianMechanism(epsilon=8.0), rows(n=50)
    whole = mechanism.privatize(features, generator=np.random.default_rng(0))
    monkeypatch.setattr("ppreid_plugin.dp.arrays.CHUNK_ELEMENTS", 24)
    np.testing.assert_array_equal(mechanism.privatize(features, generator=np.random.default_rng(0)), whole)
    fresh = mechanism.privatize(np.zeros((50, 4), dtype=np.float32))
    assert len(np.unique(fresh)) == fresh.size  # no chunk repeats another one's noise


@pytest.mark.parametrize("name", ["privunit", "privunit_g", "codebook", "prior_subset"])
def test_pure_mechanisms_describe_themselves_in_json(name):
    mechanism = build(name, epsilon=2.0)
    before, _, after = mechanism.describe(), mechanism.privatize(rows()), mechanism.describe()
    for described in (before, after):
        described = json.loads(json.dumps(described, allow_nan=False))
        assert (described["mechanism"], described["pure"], described["delta"]) == (name, True, 0.0)
        assert (described["epsilon"], described["sigma"], described["noise"]) == (2.0, None, "research")
    assert after["columns"] == 4
    with pytest.raises(ValueError, match=f"delta is 1e-05, {name} is pure and needs delta 0"):
        build_mechanism(name, epsilon=2.0, delta=1e-5, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [1e38, 1e-38, 1e-45, 0.0])
def test_rows_of_any_size_give_finite_output(name, value):
    features = np.full((50, 4), value, dtype=np.float32)
    features[::2, 1:] = 0
    assert np.isfinite(build(name).privatize(features)).all()


def test_describe_is_json_and_tells_the_parameters():
    mechanism = GaussianMechanism(epsilon=16.0, delta=1e-5)
    described = json.loads(json.dumps(mechanism.describe(), allow_nan=False))
    assert described["mechanism"] == "gaussian"
    assert (described["epsilon"], described["delta"], described["sensitivity"]) == (16.0, 1e-5, 2.0)
    assert described["mu"] == described["sensitivity"] / described["sigma"]
    assert described["noise"] == "research"


def test_none_says_that_it_protects_nothing():
    mechanism = build_mechanism("none", epsilon=4.0, delta=1e-5, clip_norm=0.1)
    assert (mechanism.epsilon, mechanism.delta, mechanism.sigma) == (math.inf, 0.0, None)
    np.testing.assert_array_equal(mechanism.privatize(rows()), rows())
    described = json.loads(json.dumps(mechanism.describe(), allow_nan=False))
    assert described["epsilon"] is None
    assert described["protection"].startswith("none")


def test_delta_none_means_1e_5_or_0():
    class PureForTest(NoMechanism):
        name, pure = "pure_for_test", True
        __init__ = Mechanism.__init__

    assert build_mechanism("gaussian", epsilon=1.0).delta == 1e-5
    assert PureForTest(epsilon=1.0).delta == 0.0
    assert PureForTest(epsilon=1.0, delta=0).delta == 0.0
    with pytest.raises(ValueError, match=r"delta is 1e-05, pure_for_test is pure and needs delta 0"):
        PureForTest(epsilon=1.0, delta=1e-5)


def test_an_extension_can_register_its_own(monkeypatch):
    monkeypatch.setattr(MECHANISMS, "_entries", dict(MECHANISMS._entries))

    @register_mechanism("signs")
    class Signs(Mechanism):
        name, pure = "signs", True

        def __init__(self, epsilon, delta=None, clip_norm=1.0, bits=1):
            super().__init__(epsilon, delta, clip_norm)
            self.bits = bits

        def randomize(self, rows, noise):
            return torch.sign(noise.normal((len(rows), self.bits), rows.dtype))

    released = build_mechanism("signs", epsilon=2.0, bits=3).privatize(rows())
    assert released.shape == (6, 3)
    assert set(np.unique(released)) <= {-1.0, 1.0}
    with pytest.raises(ValueError, match="mechanism 'signs' takes no argument 'bit'; further arguments: bits"):
        build_mechanism("signs", epsilon=2.0, bit=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianMechanism(epsilon=0.0), "epsilon is 0.0, must be a finite number > 0"),
        (lambda: GaussianMechanism(epsilon=-4.0), "epsilon is -4.0"),
        (lambda: GaussianMechanism(epsilon=math.nan), "epsilon is nan"),
        (lambda: GaussianMechanism(epsilon=math.inf), "epsilon is inf"),
        (lambda: GaussianMechanism(epsilon=True), "epsilon is True"),
        (lambda: GaussianMechanism(epsilon=1.0, delta=0.0), "delta is 0.0, gaussian needs 0 < delta < 1"),
        (lambda: GaussianMechanism(epsilon=1.0, delta=1), "delta is 1, gaussian needs"),
        (lambda: GaussianMechanism(epsilon=1.0, clip_norm=-1.0), "clip_norm is -1.0, must be"),
        (lambda: GaussianMechanism(epsilon=1.0, clip_norm=math.inf), "clip_norm is inf, must be"),
        (
            lambda: build_mechanism("gausian", epsilon=1.0),
            "mechanism is 'gausian'; registered: .*Did you mean 'gaussian'",
        ),
        (lambda: build_mechanism("gaussian", epsilon=1.0, cap=2), "takes no argument 'cap'; further arguments: none"),
        (lambda: GaussianMechanism(epsilon=1.0).privatize(np.ones(3)), r"features has shape \(3,\)"),
        (lambda: NoMechanism().privatize(np.full((2, 2), np.inf)), r"features rows 0, 1 \(2 of 2\) hold NaN"),
        (lambda: GaussianMechanism(epsilon=1.0).privatize(np.full((1, 2), np.nan)), r"features rows 0 \(1 of 1\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("seed", [0, np.random.RandomState(0)])
def test_a_seed_is_not_a_generator(seed):
    with pytest.raises(TypeError, match="must be None, a numpy Generator or"):
        GaussianMechanism(epsilon=1.0).privatize(rows(), generator=seed)
