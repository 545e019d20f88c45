"""SSIM and PSNR against scikit-image; means over people against loops."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ppreid_plugin.leakage.image_scores import in_chunks, mean_over_people, psnr, ssim


def pairs(shape=(5, 3, 64, 32), noise=0.2, seed=0):
    rng = np.random.default_rng(seed)
    images = np.kron(rng.random((*shape[:2], shape[2] // 4, shape[3] // 4)), np.ones((4, 4)))
    return images, (images + noise * rng.normal(size=shape)).clip(0, 1)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("shape", [(5, 3, 64, 32), (2, 1, 12, 40)])
def test_ssim_is_that_of_scikit_image(noise, shape):
    images, others = pairs(shape, noise)
    wanted = [
        structural_similarity(
            one, other, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for one, other in zip(images, others, strict=True)
    ]
    np.testing.assert_allclose(ssim(torch.tensor(images), torch.tensor(others)), wanted, atol=1e-10)
    rounded = ssim(torch.tensor(images).float(), torch.tensor(others).float())
    np.testing.assert_allclose(rounded, wanted, atol=2e-4)
    np.testing.assert_allclose(ssim(torch.tensor(others), torch.tensor(images)), wanted, atol=1e-10)


def test_psnr_is_that_of_scikit_image():
    images, others = pairs()
    wanted = [peak_signal_noise_ratio(one, other, data_range=1.0) for one, other in zip(images, others, strict=True)]
    np.testing.assert_allclose(psnr(torch.tensor(images), torch.tensor(others)), wanted)
    assert psnr(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)).item() == pytest.approx(100)


def test_gradient_of_ssim_is_right_and_leads_to_equal_images():
    images, others = (torch.tensor(one[:1, :1, :14, :12]) for one in pairs((1, 1, 16, 12)))
    assert torch.autograd.gradcheck(lambda one: ssim(one, others), images.clone().requires_grad_())
    made = torch.full_like(images, 0.5).requires_grad_()
    solver = torch.optim.Adam([made], lr=0.05)
    for _ in range(200):
        solver.zero_grad()
        (1 - ssim(made, images).mean()).backward()
        solver.step()
    assert ssim(made, images).item() > 0.95


@pytest.mark.parametrize("score", [ssim, psnr])
def test_scores_name_shapes_that_differ(score):
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\), the others \(2, 3, 16, 16\)"):
        score(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))


def test_ssim_names_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="images are 16 x 8, must be at least 11 x 11"):
        ssim(torch.zeros(1, 3, 16, 8), torch.zeros(1, 3, 16, 8))


def test_means_over_people_are_what_loops_say():
    rng = np.random.default_rng(0)
    values, pids = rng.random(40), rng.integers(0, 7, size=40)
    each = [values[pids == pid].mean() for pid in np.unique(pids)]
    mean, error = mean_over_people(values, pids)
    assert mean == pytest.approx(np.mean(each))
    assert error == pytest.approx(np.std(each, ddof=1) / len(each) ** 0.5)
    assert mean_over_people(values, 0 * pids) == (pytest.approx(values.mean()), 0.0)


def test_chunks_give_what_all_rows_at_once_do():
    images, others = (torch.tensor(one) for one in pairs((7, 1, 16, 16)))
    np.testing.assert_array_equal(in_chunks(ssim, images, others, size=3), ssim(images, others))
