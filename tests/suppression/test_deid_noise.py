"""Noise as a fixed function of image and seed, Gaussian noise, and DP pixelation against its closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ppreid_plugin.suppression import DPPixelate, Noise, Pixelate
from ppreid_plugin.suppression.deid_noise import image_uniforms

WORD = 2**64


def mix(word):
    """SplitMix64's finalizer (Steele, Lea, Flood 2014) on Python's whole numbers."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
    return word ^ word >> 31


def uniforms_by_loops(image, count, seed, bits):
    golden = 0x9E3779B97F4A7C15
    levels = [round(float(value) * 255) for value in image.flatten()]
    key = mix(sum(v * (mix(((p + 1) * golden + seed) % WORD) | 1) for p, v in enumerate(levels)) % WORD)
    return [((mix((key + (i + 1) * golden) % WORD) >> (64 - bits)) + 0.5) / 2**bits for i in range(count)]


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 23), (torch.float64, 52)])
def test_uniform_numbers_are_those_of_whole_number_arithmetic(dtype, bits):
    images = torch.rand(3, 3, 4, 2, dtype=dtype)
    got = image_uniforms(images, (3, 5), seed=9)
    for image, row in zip(images, got, strict=True):
        wanted = uniforms_by_loops(image, 15, 9, bits)
        assert row.flatten().tolist() == pytest.approx(wanted, abs=2.0**-bits)
    assert ((got > 0) & (got < 1)).all()


@pytest.mark.parametrize("target", [Noise(noise_std=0.1), DPPixelate(blocks=4)], ids=["noise", "dp_pixelate"])
def test_a_target_is_a_fixed_function_of_image_and_seed(target):
    images = torch.rand(4, 3, 32, 16)
    state = torch.get_rng_state()
    got = target(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(target(images), got)
    assert torch.equal(target(images[[2, 0]]), got[[2, 0]])  # whatever else is in the batch
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    eight_bit = (images * 255).round() / 255
    again = (eight_bit - mean) / std * std + mean  # what the engine does to an image before and after the model
    torch.testing.assert_close(target(again), target(eight_bit), atol=1e-5, rtol=0)


def test_other_images_mirror_images_and_seeds_have_other_noise():
    """A pattern that images shared would be learned as a bias: noise must not correlate between them."""
    image = torch.full((1, 3, 64, 32), 0.5)
    image[..., 0] = 0.52
    darker = image.clone()
    darker[0, 0, 5, 5] -= 1 / 255
    shown = {
        "image": Noise(0.05, seed=1)(image) - image,
        "one pixel changed": Noise(0.05, seed=1)(darker) - darker,
        "mirrored": (Noise(0.05, seed=1)(image.flip(-1)) - image.flip(-1)).flip(-1),
        "mirrored, same place": Noise(0.05, seed=1)(image.flip(-1)) - image.flip(-1),
        "another seed": Noise(0.05, seed=2)(image) - image,
    }
    rows = np.corrcoef(torch.stack([noise.flatten() for noise in shown.values()]).numpy())
    # 6,144 pixels: 4.5 standard deviations of a correlation are 0.057
    assert np.abs(rows - np.eye(len(rows))).max() < 0.057


def test_noise_has_the_stated_distribution_and_no_neighbors_in_common():
    images = torch.full((40, 3, 64, 32), 0.5) + torch.arange(40.0).view(-1, 1, 1, 1) / 255 / 4
    for noisy in (Noise(noise_std=0.03)(images), Noise(noise_std=0.03).fresh(images)):
        noise = (noisy - images).numpy() / 0.03
        assert stats.kstest(noise.ravel()[::7], "norm").pvalue > 1e-3
        for axis in (1, 2, 3):
            first, second = np.split(noise, [1], axis) if axis == 1 else (noise, noise)
            shifted = np.roll(second, 1, axis)[: len(first)]
            wanted = first if axis != 1 else np.broadcast_to(first, shifted.shape)
            assert abs(np.corrcoef(wanted.ravel(), shifted.ravel())[0, 1]) < 0.02


def test_noise_is_clipped_to_the_pixel_range():
    got = Noise(noise_std=2.0)(torch.rand(2, 3, 16, 8))
    assert got.min() == 0
    assert got.max() == 1


@pytest.mark.parametrize(("width", "blocks"), [(128, 8), (128, 16), (64, 4), (32, 1)])
@pytest.mark.parametrize(("epsilon", "neighborhood"), [(0.5, 16), (1.0, 1), (4.0, 100)])
def test_the_scale_is_fans_formula(width, blocks, epsilon, neighborhood):
    """255 m / (b^2 epsilon) gray levels; one image spends three times epsilon."""
    target = DPPixelate(blocks=blocks, epsilon=epsilon, neighborhood=neighborhood)
    side = width // blocks
    assert 255 * target.scale(2 * width, width) == pytest.approx(255 * neighborhood / (side**2 * epsilon))
    assert target.image_epsilon == 3 * epsilon


@given(data=st.data(), height=st.integers(5, 24), width=st.integers(4, 20))
@settings(max_examples=40, deadline=None)
def test_no_neighbor_moves_the_block_means_further_than_the_sensitivity(data, height, width):
    """Per channel, in L1 norm, whatever m pixels change; at sizes that blocks do not divide too."""
    blocks = data.draw(st.integers(1, width))
    count = data.draw(st.integers(1, height * width))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    image = torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64).round()
    other = image.clone().flatten(2)
    other[..., torch.randperm(height * width, generator=generator)[:count]] -= 1
    other = other.abs().view_as(image)
    means = Pixelate(blocks).means
    moved = (means(image) - means(other)).abs().sum((2, 3)).max().item()
    target = DPPixelate(blocks=blocks, epsilon=1.0, neighborhood=count)
    assert moved <= target.scale(height, width) + 1e-9


@pytest.mark.parametrize(("height", "width", "blocks"), [(32, 16, 4), (31, 17, 5), (20, 9, 8)])
def test_the_sensitivity_of_one_pixel_is_reached_and_an_image_spends_three_epsilon(height, width, blocks):
    target = DPPixelate(blocks=blocks, epsilon=0.7, neighborhood=1)
    impulses = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width).expand(-1, 3, -1, -1)
    moved = Pixelate(blocks).means(impulses).sum((1, 2, 3))  # from black to white in all three channels
    assert moved.max().item() / target.scale(height, width) == pytest.approx(target.image_epsilon)


@pytest.mark.parametrize("draw", ["fixed", "fresh"])
def test_dp_pixelation_is_the_block_mean_plus_laplace_noise_of_each_channel(draw):
    target = DPPixelate(blocks=4, epsilon=40.0, neighborhood=4)
    torch.manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(300, 3, 32, 16)
    got = (target if draw == "fixed" else target.fresh)(images)
    assert torch.equal(Pixelate(4)(got), got) or torch.allclose(Pixelate(4)(got), got, atol=1e-6)
    noise = ((got - Pixelate(4)(images))[..., ::4, ::4] / target.scale(32, 16)).numpy()
    assert stats.kstest(noise.ravel(), "laplace").pvalue > 1e-3
    channels = np.corrcoef(noise.transpose(1, 0, 2, 3).reshape(3, -1))
    assert np.abs(channels - np.eye(3)).max() < 0.05  # 9,600 blocks: 4.5 standard deviations are 0.046


def test_pixels_out_of_range_cannot_break_the_bound():
    target = DPPixelate(blocks=1, epsilon=1000.0, neighborhood=1)
    image = torch.zeros(1, 3, 4, 4)
    image[..., 0, 0] = 1e6
    means = target(image)[..., 0, 0]
    assert means.max() <= 1 / 16 + 30 * target.scale(4, 4)


def test_fresh_noise_is_new_each_time_and_follows_the_global_seed():
    images = torch.rand(2, 3, 32, 16)
    for target in (Noise(), DPPixelate()):
        torch.manual_seed(5)
        first, second = target.fresh(images), target.fresh(images)
        assert not torch.allclose(first, second)
        torch.manual_seed(5)
        assert torch.equal(target.fresh(images), first)


@pytest.mark.gpu
@pytest.mark.parametrize("target", [Noise(), DPPixelate()], ids=["noise", "dp_pixelate"])
def test_the_target_is_the_same_on_a_gpu(target):
    images = (torch.rand(4, 3, 64, 32) * 255).round() / 255
    torch.testing.assert_close(target(images.cuda()).cpu(), target(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Noise(noise_std=0.0), "noise_std is 0.0, must be a finite number > 0"),
        (lambda: Noise(noise_std=float("nan")), "noise_std is nan, must be a finite number > 0"),
        (lambda: Noise(seed=-1), "seed of a De-ID target is -1, must be a whole number from 0 to 9223372036854775807"),
        (lambda: DPPixelate(epsilon=0.0), "epsilon of dp_pixelate is 0.0, must be a finite number > 0"),
        (lambda: DPPixelate(neighborhood=0), "neighborhood of dp_pixelate is 0, must be a whole number >= 1"),
        (lambda: DPPixelate(neighborhood=1.5), "neighborhood of dp_pixelate is 1.5"),
        (lambda: DPPixelate(blocks=0), "blocks is 0, must be a whole number >= 1"),
        (lambda: DPPixelate(blocks=64)(torch.rand(1, 3, 64, 32)), "blocks is 64, must be <= the image width of 32"),
    ],
)
def test_errors_name_value_allowed_and_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
